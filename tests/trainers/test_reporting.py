"""The model card: names and values of a training are shown as they are and are no markup."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

pytestmark = pytest.mark.needs("train")


def outline(text: str) -> list[str]:
    from agentsys.trainers.reporting import model_card

    settings = {"method": text, "student": text, "rows": text, "train_examples": 3, text: text, "list": [text]}
    card = model_card(settings, [{"loss": 1.0}], {text: 0.5}).partition("synthetic]\n---\n")[2]
    blocks = MarkdownIt("commonmark").enable("table").parse(card)
    inline = {child.type for block in blocks for child in block.children or ()}
    return [*(block.type for block in blocks), *sorted(inline - {"text", "code_inline", "softbreak"})]


@pytest.mark.parametrize(
    "text",
    [
        "a\n# Heading\n\n| x |\n|---|", "<script>alert(1)</script>", "a | b", "---\nlicense: mit\n---",
        "`x` [a](b) *c*",
        "http://evil.example", "![x](y.png)", "- item\n> quote", "\x1b[2J",
    ],
)  # fmt: skip
def test_no_name_breaks_the_card(text: str) -> None:
    assert outline(text) == outline("simple")
