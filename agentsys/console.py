"""The console that every table and progress bar is printed with: texts are shown as they are, never as markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.text import Text

from agentsys.display import plain

__all__ = ["Console"]


class Console(rich.console.Console):
    """rich's console without markup, emoji names and highlighting; control characters are escaped (display.plain).

    This holds for what is printed and for the cells, headers and titles of tables. A `Text` is printed as it is.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """See rich.console.Console.render_str; line breaks within the text are kept."""
        lines: Iterable[str] = map(plain, text.split("\n"))
        return super().render_str("\n".join(lines), **settings)
