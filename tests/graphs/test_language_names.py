"""Codes of languages become names before they reach a prompt, in every system that translates."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.crat.system import Context as CratContext
from agentsys.graphs.drt.mine import MiningContext
from agentsys.graphs.drt.system import Context as DrtContext
from agentsys.graphs.ragtrans.system import Context as RagtransContext
from agentsys.graphs.translate.system import Context as TranslateContext

CONTEXTS: list[Any] = [CratContext, DrtContext, MiningContext, RagtransContext, TranslateContext]


@pytest.mark.parametrize("context", CONTEXTS)
def test_prompts_get_names(context: Any) -> None:
    pair = context(source_language="pt", target_language="Klingon-like house style")
    assert pair.languages == {"source_language": "Portuguese", "target_language": "Klingon-like house style"}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["source_language", "target_language"])
def test_what_is_no_code_is_one_line_that_names_the_field(context: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: 'cn' is not a language code; write one such as zh"):
        context(**{name: "cn"})
