"""Bounds of rendering: an untrusted template ends in bounded time and memory, and a busy machine fails no record."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agentsys.prompt import MAX_RENDERED, Prompt, PromptError


def render(text: str, /, **inputs: Any) -> str:
    """All contents of the rendered messages."""
    return "".join(str(message["content"]) for message in Prompt.parse(text, "test").render(inputs))


@pytest.mark.parametrize(
    "text",
    [
        "# user\n" + "{% for a in s %}" * 4 + "{% endfor %}" * 4,
        "# user\n" + "{% for a in s %}" * 4 + "{% if a == 'q' %}x{% endif %}" + "{% endfor %}" * 4,
        "# user\n{% for a in s %}{% for b in s %}{% for c in s if c == 'q' %}x{% endfor %}{% endfor %}{% endfor %}",
        "# user\n{% for a in s %}{% for b in s %}{% if (s|upper) == 'q' %}x{% endif %}{% endfor %}{% endfor %}",
        "# each i in items\n# user\n{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}\n# end",
        "# each i in items\n# user\n# end",
    ],
    ids=["empty", "if", "filtered", "work", "messages", "empty messages"],
)
def test_rendering_is_bounded_in_time(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.prompt.MAX_SECONDS", 0.2)
    with pytest.raises(PromptError, match=r"longer than 0.2 s"):
        render(text, s="x" * 20_000, items=[0] * 3_000_000)


@pytest.mark.parametrize(
    "text",
    [
        "# user\n{% for a in s %}{{ s }}{% endfor %}",
        "# user\n{{ s|join(s) }}",
        "# user\n{% if s|join(s)|length > 5 %}x{% endif %}",
        "# user\n{{ s|join(s)|join(s) }}",
        "# each a in items\n# user\n{{ s }}\n# end",
        "# user\n{{ s }}" * 60,
    ],
    ids=["loop", "join", "hidden join", "joined join", "repeated messages", "many messages"],
)
def test_rendering_is_bounded_in_size(text: str) -> None:
    with pytest.raises(PromptError, match=f"(more|longer) than .*{MAX_RENDERED:,}"):
        render(text, s="x" * 20_000, items=[0] * 100)


def test_a_long_record_fits() -> None:
    assert len(render("# user\n{{ s }}", s="x" * MAX_RENDERED)) == MAX_RENDERED


class Paused:
    """A value that lets the time of the clock pass, but not that of the processor, as when another process has it."""

    def __str__(self) -> str:
        time.sleep(0.3)
        return "x"


@pytest.mark.parametrize("text", ["# user\n{{ s }}{{ s }}", "# each i in items\n# user\n{{ s }}\n# end"])
def test_waiting_for_the_processor_does_not_count(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentsys.prompt.MAX_SECONDS", 0.2)
    assert render(text, s=Paused(), items=[0, 0]) == "xx"
