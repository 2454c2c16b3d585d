"""CRAT on documents: shared decisions, sentences side by side, failures in the middle."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from zlib import crc32

import pytest

from agentsys.graphs.crat.transkg import TransKG
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.traces import strip_measured
from tests.support.crat import (
    DOCUMENT,
    SENTENCE,
    SHORE,
    Runner,
    Script,
    document_script,
    find_decision,
    verdicts,
)


async def test_a_term_stays_the_same_and_an_ambiguous_word_is_judged_again(run: Runner) -> None:
    script = document_script()
    result = await run(script, DOCUMENT)
    assert result["translations"] == ["译文斯科舍。", "译文。", "译文河岸。", "译文斯科舍银行。"]
    assert [r["status"] for r in result["rendered"]] == ["entries", "no term", "entries", "entries"]
    assert script.keys("llm_source") == ["inform/0/0", "inform/2/0"], "each term is looked up once"
    own = find_decision(result, "bank", 3)
    assert verdicts(own) == {"银行": "accepted", "河岸": "relevance"}
    accepted = TransKG.from_json(result["graph"]).accepted("bank")
    assert accepted is not None and accepted.target == "河岸", "the graph keeps the first decision"
    assert not [key for key in script.keys("relevance") if key.startswith("judge/3/0")], "a name is decided once"
    unfit_script = Script(irrelevant={("steep", "银行"), ("lends", "河岸"), ("lends", "银行")}, more={"bank": [SHORE]})
    unfit = find_decision(await run(unfit_script, DOCUMENT), "bank", 3)
    assert verdicts(unfit) == {"河岸": "relevance", "银行": "relevance"} and len(unfit["candidates"]) == 2
    assert "- 河岸: here it is the word, in the entry 河岸" in unfit_script.request("inform/3/1/again"), (
        "the source must not repeat what does not fit here"
    )
    same = Script(irrelevant={("steep", "银行")})
    reused = find_decision(await run(same, DOCUMENT), "bank", 3)
    assert reused["reused"] and verdicts(reused) == {"河岸": "accepted"}
    assert [key for key in same.keys("relevance") if key.startswith("judge/3")] == ["judge/3/1/shared/relevance"]


class Paced(ScriptedChatModel):
    """Each call takes its own time, so each `pace` gives another order of the same work."""

    pace: int

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        await asyncio.sleep((crc32(f"{kwargs['key']} {self.pace}".encode()) % 7) / 1000)
        return await super().complete(messages, **kwargs)


async def test_the_same_replies_give_the_same_result_at_any_speed(run: Runner) -> None:
    results = []
    for pace in range(4):
        script = document_script()
        output = await run(script, DOCUMENT, model=Paced(respond=script, pace=pace))
        results.append(json.dumps(strip_measured(output), ensure_ascii=False))
    assert len(set(results)) == 1


class Held(ScriptedChatModel):
    """Calls whose key starts with `held` wait until the call `until` is answered, or forever."""

    held: str
    until: str
    reached: Any
    forever: bool = False

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        if kwargs["key"].startswith(self.held):
            await asyncio.wait_for((asyncio.Event() if self.forever else self.reached).wait(), 20)
        reply = await super().complete(messages, **kwargs)
        if kwargs["key"] == self.until:
            self.reached.set()
        return reply


async def test_a_sentence_waits_only_for_its_own_terms(run: Runner) -> None:
    for until in ("translate/1", "translate/2"):
        script = document_script()
        await run(script, DOCUMENT, model=Held(respond=script, held="judge/0", until=until, reached=asyncio.Event()))
    script, reached = document_script(), asyncio.Event()
    held = Held(respond=script, held="judge/0", until="translate/2", reached=reached, forever=True)
    work = asyncio.create_task(run(script, DOCUMENT, model=held))
    await asyncio.wait_for(reached.wait(), 20)
    await asyncio.sleep(0.05)
    assert script.keys("translator") == ["translate/1", "translate/2"], "the last sentence has a term of the first"
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_failed_translator_ends_the_record_and_a_down_endpoint_the_run(run: Runner) -> None:
    class Failing(ScriptedChatModel):
        error: Any
        at: str

        async def complete(self, messages: Any, **kwargs: Any) -> Reply:
            if kwargs["key"].startswith(self.at):
                raise self.error
            await asyncio.sleep(0.01)
            return await super().complete(messages, **kwargs)

    script = document_script()
    with pytest.raises(ModelError, match="too long"):
        await run(script, DOCUMENT, model=Failing(respond=script, error=ModelError("too long"), at="translate/1"))
    assert "translate/3" in script.keys("translator"), "the others are finished"
    for at in ("identify/1", "judge/2", "judge/3/1", "repair", "translate/3"):
        script = document_script(translations={DOCUMENT[0]: "无"})
        with pytest.raises(EndpointDown):
            await run(script, DOCUMENT, model=Failing(respond=script, error=EndpointDown("down"), at=at))
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left running"
    script = Script(terms=[("bank", "domain"), ("Scotia", "domain")], irrelevant=set())
    with pytest.raises(EndpointDown):
        failing = Failing(respond=script, error=EndpointDown("down"), at="judge/0/0")
        await run(script, [SENTENCE, "Nothing."], model=failing)
    assert asyncio.all_tasks() == {asyncio.current_task()}
