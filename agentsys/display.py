"""Text of others on a terminal and in Markdown: never terminal codes, never markup.

A server's error, a record, a path or a model's name can hold anything. What is printed goes through `say`, `show` or
the Console of agentsys.console; what is written to Markdown goes through `markdown`.

Notices are log messages too: of the logger "agentsys", and in the log file of a run (agentsys.logs).
"""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from typing import Final

from agentsys import logs

LOGGER: Final = logging.getLogger("agentsys")
"""The logger of notices, above those of the modules. A program sets its level and handlers."""
_JOINERS: Final = "\u200c\u200d"
"""Zero-width joiners, which Persian, Indic scripts and emoji need: the only format characters that are printed."""
_BREAKS: Final = re.compile("\r\n|[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]")
_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs"})
_SAFE_MARKDOWN: Final = re.compile(r"[\w .,:;/@+()%=?'\"-]*")


def plain(text: object) -> str:
    """The text in one line, with escapes such as \\x1b in place of control characters, bidi controls and surrogates.

    Without them, no text moves the cursor, sets a title, hides or reorders what is printed.
    """
    line = _BREAKS.sub(" ", str(text))
    if line.isascii() and line.isprintable():
        return line
    return "".join(map(_escape, line))


def _escape(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) not in _ESCAPED:
        return char
    return char.encode("unicode_escape").decode()


def say(*lines: object) -> None:
    """Print lines on stderr, each made `plain`, and `note` them.

    They are not printed if the program shows the messages of LOGGER by a handler, which would print them again.
    """
    note(*lines)
    if not (LOGGER.isEnabledFor(logging.INFO) and LOGGER.hasHandlers()):
        print_lines(*lines)


def print_lines(*lines: object) -> None:
    """Print lines on stderr, each made `plain`, without logging them."""
    print(*map(plain, lines), sep="\n", file=sys.stderr, flush=True)


def note(*lines: object) -> None:
    """Log lines at INFO, each made `plain`, and write them to the log file of the run in progress."""
    for line in map(plain, lines):
        logs.write(line)
        LOGGER.info("%s", line)


def show(*lines: object) -> None:
    """Print lines on stdout, each made `plain`."""
    print(*map(plain, lines), sep="\n")


def markdown(text: object) -> str:
    """The text as Markdown that shows exactly it, in a line, a list item or a cell of a table.

    What could be a heading, a table, HTML, a link or another markup becomes a code span.
    """
    line = plain(text)
    if _SAFE_MARKDOWN.fullmatch(line) and "://" not in line:
        return line
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}".replace("|", "\\|")
