"""CRAT's option `relations`: internal knowledge in the translator's request."""

from __future__ import annotations

from typing import Any

import pytest

from agentsys.graphs.crat.document import MAX_FACTS, sentence_facts
from agentsys.graphs.crat.system import Context
from tests.support.crat import DOCUMENT, Runner, Script, document_script


async def test_relations_reach_the_translator_where_the_option_is_on(run: Runner) -> None:
    script = Script(relations=[("bank", "is near", "Scotia"), ("Scotia", "is", "wet"), ("bank", "is\nold", "now")])
    result = await run(script, relations=True)
    request = script.request("translate/0")
    assert (
        "Notes on terms:\n- bank - is near - Scotia\n- Scotia - is - wet\n- bank - is old - now\nSentence: " in request
    )
    assert "- bank = 河岸" in request  # besides the entries
    [role] = [target for target in result["targets"] if target["kind"] == "role"]
    assert role["segments"][0]["prompt"] == "translate/0"
    without = Script(relations=script.relations)
    await run(without)
    assert without.request("translate/0") == request.replace(
        request[request.index("Notes") : request.index("Sent")], ""
    )


async def test_relations_of_a_document_are_those_of_each_sentence_s_terms(run: Runner) -> None:
    script = document_script(relations=[("Scotia", "is", "far"), ("bank", "is near", "Scotia")])
    await run(script, DOCUMENT, relations=True)
    for i, text in enumerate(DOCUMENT):
        request = script.request(f"translate/{i}")
        assert ("bank - is near - Scotia" in request) == ("bank" in text or "Scotia" in text), text


def test_facts_of_a_sentence_alternate_and_are_limited() -> None:
    mention = {"surface": "a", "kind": "proper", "start": 0, "end": 1, "sentence": 0}
    sentence: Any = {"mentions": [{**mention, "node": name} for name in "ab"] + [mention]}
    facts = {"a": ["a1", "both", "a3"], "b": ["b1", "both", *(f"b{i}" for i in range(3, 9))]}
    lines = sentence_facts(sentence, facts)
    assert lines == ["a1", "b1", "both", "a3", "b3", "b4", "b5", "b6"] and len(lines) == MAX_FACTS


def test_relations_need_the_graph() -> None:
    with pytest.raises(ValueError, match="relations: they are in the knowledge graph, which is off"):
        Context(relations=True, graph=False)
