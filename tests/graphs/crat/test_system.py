"""CRAT with scripted models: terms, the graph, the judge's verdicts, entries, the check, documents side by side."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from agentsys.graphs.crat.system import CRAT, Context, graph
from agentsys.graphs.crat.terms import confidences, doubtful, glosses, has_term, is_already, joined, place, sentences_of
from agentsys.graphs.crat.terms import script as script_of
from agentsys.graphs.crat.transkg import TransKG
from agentsys.models.errors import EndpointDown, ModelError
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.wire import Reply
from agentsys.recorder import Recorder, current
from agentsys.roles import load_prompt
from agentsys.terms.item import Item
from agentsys.traces import strip_measured

PROMPTS = sorted(Path(str(resources.files("agentsys.prompts"))).glob("crat/*.md"))
SENTENCE = "The bank near Scotia was steep."
SHORE, MONEY = ("the land beside a river", "河岸"), ("a company that keeps money", "银行")


@dataclass
class Script:
    """A small world: each role's reply follows from it and from what the role was asked.

    `irrelevant` holds (word of the sentence, translation), `unplaced` translations that the substituter leaves out,
    `changed` those whose concept is lost on the way back, `rivals` (entry, rival) where the rival is better;
    `translations` what the translator writes for a sentence.
    """

    terms: Sequence[tuple[str, str]] = (("bank", "polysemy"), ("Scotia", "proper"))
    senses: Mapping[str, Sequence[tuple[str, str]]] = field(
        default_factory=lambda: {"bank": [MONEY, SHORE], "Scotia": [("a place", "斯科舍")]}
    )
    more: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    relations: Sequence[tuple[str, str, str]] = (("bank", "is near", "Scotia"), ("river", "is", "wet"))
    irrelevant: set[tuple[str, str]] = field(default_factory=lambda: {("steep", "银行")})
    unplaced: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    rivals: set[tuple[str, str]] = field(default_factory=set)
    names: Sequence[str] = ()
    translations: Mapping[str, str] = field(default_factory=dict)
    repaired: str = ""
    broken: str = "-"
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    def __call__(self, messages: Sequence[Mapping[str, Any]], call: dict[str, Any]) -> str:
        role, key, last = call["role"], call["key"], str(messages[-1]["content"])
        self.asked.append((role, key, last))
        if re.fullmatch(self.broken, key):
            return "no JSON"
        return str(getattr(self, role)(last))

    def identifier(self, request: str) -> str:
        found = [{"term": t, "kind": k} for t, k in self.terms if t.casefold() in request.casefold() or t == "Atlantis"]
        return json.dumps({"terms": found})

    def glosser(self, request: str) -> str:
        return "steep = 陡"

    def grapher(self, request: str) -> str:
        return json.dumps(
            {"relations": [dict(zip(("term", "relation", "object"), r, strict=True)) for r in self.relations]}
        )

    def informant(self, request: str) -> str:
        term = line(request, "Term")
        found = self.more.get(term, ()) if "do not fit" in request else self.senses.get(term, ())
        return json.dumps({"senses": [{"meaning": m, "translation": t} for m, t in found or [("nothing", " ")]]})

    def searcher(self, request: str) -> str:
        return json.dumps({"names": list(self.names)})

    def relevance(self, request: str) -> str:
        target = line(request, "Entry").split(" - ")[0]
        wrong = any(word in line(request, "Sentence") and target == other for word, other in self.irrelevant)
        return json.dumps({"here": "the word", "entry": target, "relevant": not wrong})

    def substituter(self, request: str) -> str:
        [target] = re.findall(r"rendered as[^:]*: (.+)", request)
        return "句子没有它。" if target in self.unplaced else f"句子用{target}。"

    def back(self, request: str) -> str:
        return f"back from {request}"

    def invariance(self, request: str) -> str:
        lost = any(f"用{target}。" in request for target in self.changed)
        return json.dumps({"first": "the word", "last": "lost" if lost else "kept", "same": not lost})

    def counterfactual(self, request: str) -> str:
        entry, rival = (line(request, name).split(" - ")[0] for name in ("Entry", "Rival"))
        better = "rival" if (entry, rival) in self.rivals else "entry"
        return json.dumps({"reason": f"{entry} or {rival}", "changes": True, "better": better})

    def translator(self, request: str) -> str:
        given = "".join(re.findall(r" = (\S+)", request))
        return self.translations.get(line(request, "Sentence"), f"译文{given}。")

    def repairer(self, request: str) -> str:
        return self.repaired

    def keys(self, role: str) -> list[str]:
        return sorted(key for name, key, _ in self.asked if name == role)

    def request(self, key: str) -> str:
        return next(request for _, asked, request in self.asked if asked == key)


def line(request: str, name: str) -> str:
    return next(row for row in request.splitlines() if row.startswith(f"{name}: ")).removeprefix(f"{name}: ")


Runner = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Runner:
    async def start(
        script: Script, given: Any = SENTENCE, model: Any = None, crat: Any = graph, **knobs: Any
    ) -> dict[str, Any]:
        model = model or ScriptedChatModel(respond=script)
        monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: model)
        recorder = current.set(Recorder("r"))  # it refuses a key that is used twice
        try:
            form = "sentences" if isinstance(given, list) else "text"
            asked = given if isinstance(given, dict) else {form: given}
            context = Context(**({"signals": "identifier"} | knobs))
            return dict(await crat.ainvoke(asked, context=context))
        finally:
            current.reset(recorder)

    return start


class Lists:
    """A source of one's own."""

    name = "lists"

    def __init__(self, **known: Sequence[Item]) -> None:
        self.known, self.asked = known, list[tuple[str, ...]]()

    async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
        self.asked.append(tuple(terms))
        return [list(self.known.get(term, ())) for term in terms]


def with_source(source: Any) -> Any:
    return CRAT(sources=(source,)).builder().compile(name="crat")


def term(term: str, target: str, meaning: str = "") -> Item:
    return Item(term, target, meaning, f"{term} = {target}", "list:1")


def decision(result: Mapping[str, Any], surface: str, sentence: int = 0) -> dict[str, Any]:
    return next(d for d in result["decisions"] if (d["surface"], d["sentence"]) == (surface, sentence))


def verdicts(decided: Mapping[str, Any]) -> dict[str, str]:
    return {c["item"]["target"]: "accepted" if c["accepted"] else c["rejected_by"] for c in decided["candidates"]}


# A sentence


async def test_a_sentence_from_its_terms_to_its_translation(run: Runner) -> None:
    script = Script()
    result = await run(script)
    [sentence] = result["document"]
    assert [(m["surface"], m["kind"], SENTENCE[m["start"] : m["end"]]) for m in sentence["mentions"]] == [
        ("bank", "polysemy", "bank"),
        ("Scotia", "proper", "Scotia"),
    ]
    assert verdicts(decision(result, "bank")) == {"银行": "relevance", "河岸": "accepted"}
    assert result["translation"] == "译文河岸斯科舍。" and result["translations"] == [result["translation"]]
    assert result["rendered"][0]["status"] == "entries" and result["rendered"][0]["checked"] == ["河岸", "斯科舍"]
    sent = script.request("translate/0")
    assert "- bank = 河岸\n" in sent and "银行" not in sent
    assert "- bank - is near - Scotia" in script.request("judge/0/0/0/relevance") and "is near" not in sent
    known = TransKG.from_json(result["graph"])
    chosen = known.accepted("bank")
    assert chosen is not None and chosen.target == "河岸"
    assert [item.target for item in known.rejected("bank")] == ["银行"]
    assert sentence["faults"] == ["grapher: 1 relations about no term of the sentence"]


def test_an_entry_without_a_translation_is_explained_to_the_translator() -> None:
    entries = [
        {"term": "bank", "target": "河岸", "meaning": "land"},
        {"term": "APR", "target": "", "meaning": "a rate"},
    ]
    inputs = {
        "source_language": "English",
        "target_language": "Chinese",
        "text": "The bank cut its APR.",
        "entries": entries,
    }
    sent = CRAT().translator.prompt.render(inputs)[-1]["content"]
    assert "- bank = 河岸\n- APR: a rate\n" in sent


async def test_each_verdict_has_its_reason_and_the_way_back_never_sees_the_source(run: Runner) -> None:
    script = Script(irrelevant=set())
    result = await run(script)
    chosen = decision(result, "bank")["candidates"][0]
    assert chosen["reasons"] == {
        "relevance": "here it is the word, in the entry 银行",
        "invariance": "it was the word, it came back as kept",
        "counterfactual": "银行 or 河岸",
    }
    assert (chosen["substituted"], chosen["back_translation"]) == ("句子用银行。", "back from 句子用银行。")
    assert (chosen["rival"], chosen["counterfactual"]) == ("河岸", {"changes": True, "better": "entry"})
    assert verdicts(decision(result, "bank")) == {"银行": "accepted", "河岸": "a better one"}
    for role, _, request in script.asked:
        assert role != "back" or "steep" not in request
    lonely = decision(result, "Scotia")["candidates"][0]
    assert lonely["accepted"] and lonely["counterfactual"] is None, "without a rival there is no counterfactual"


@pytest.mark.parametrize(
    ("world", "found"),
    [
        ({"unplaced": {"银行"}}, {"银行": "substitution", "河岸": "accepted"}),
        ({"changed": {"银行"}}, {"银行": "invariance", "河岸": "accepted"}),
        ({"rivals": {("银行", "河岸")}}, {"银行": "counterfactual", "河岸": "accepted"}),
        ({"changed": {"河岸"}, "rivals": {("银行", "河岸")}}, {"银行": "accepted", "河岸": "invariance"}),
        ({"rivals": {("银行", "河岸"), ("河岸", "银行")}}, {"银行": "accepted", "河岸": "a better one"}),
        (
            {"rivals": {("银行", "河岸")}, "broken": "judge/0/0/1/counterfactual.*"},
            {"银行": "accepted", "河岸": "failed call"},
        ),
        ({"broken": "judge/0/0/0/back.*"}, {"银行": "accepted", "河岸": "a better one"}),
        ({"broken": "judge/0/0/0/invariance.*"}, {"银行": "failed call", "河岸": "accepted"}),
        ({"broken": "judge/0/0/0/relevance.*"}, {"银行": "failed call", "河岸": "accepted"}),
    ],
)
async def test_a_candidate_must_pass_every_check(run: Runner, world: Any, found: dict[str, str]) -> None:
    result = await run(Script(irrelevant=set(), **world))
    assert verdicts(decision(result, "bank")) == found


async def test_a_candidate_that_does_not_get_into_the_sentence_is_the_last_choice(run: Runner) -> None:
    """Nothing speaks against it, so the informant is not told to give others in its place."""
    script = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, unplaced={"银行"})
    result = await run(script)
    assert verdicts(decision(result, "bank")) == {"银行": "accepted", "河岸": "relevance"}
    heard = script.request("inform/0/0/again")
    assert "- 河岸: " in heard and "银行" not in heard.replace("河岸", "")
    assert not script.keys("back"), "there was nothing to bring back"
    known = TransKG.from_json(result["graph"])
    assert [item.target for item in known.rejected("bank")] == ["河岸"]
    later = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, unplaced={"银行"})
    later.more = {"bank": [("a slope", "岸坡")]}
    result = await run(later)
    assert verdicts(decision(result, "bank"))["岸坡"] == "accepted"
    assert verdicts(decision(result, "bank"))["银行"] == "substitution"


async def test_what_was_not_tried_is_not_trusted_where_another_was_tried_and_failed(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")], irrelevant=set(), unplaced={"银行"})
    script.changed = {"河岸"}
    result = await run(script)
    assert verdicts(decision(result, "bank")) == {"银行": "substitution", "河岸": "invariance"}


async def test_the_strongest_rival_is_the_first_whose_concept_stays_the_same(run: Runner) -> None:
    slope = ("a slope", "岸坡")
    script = Script(terms=[("bank", "polysemy")], senses={"bank": [MONEY, SHORE, slope]}, irrelevant=set())
    script.changed, script.rivals = {"河岸"}, {("银行", "河岸"), ("银行", "岸坡")}
    result = await run(script)
    assert verdicts(decision(result, "bank")) == {"银行": "counterfactual", "河岸": "invariance", "岸坡": "accepted"}
    assert [c["rival"] for c in decision(result, "bank")["candidates"]] == ["岸坡", "", "银行"]
    assert script.keys("counterfactual") == ["judge/0/0/0/counterfactual", "judge/0/0/2/counterfactual"]
    script.rivals |= {("岸坡", "银行"), ("河岸", "银行")}
    script.changed = set()
    result = await run(script)
    assert verdicts(decision(result, "bank")) == {
        "银行": "accepted", "河岸": "a better one", "岸坡": "a better one",
    }, "where each loses to the other, nothing is told apart"  # fmt: skip


async def test_an_irrelevant_candidate_costs_one_call(run: Runner) -> None:
    script = Script()
    await run(script)
    assert [key for _, key, _ in script.asked if key.startswith("judge/0/0/0")] == ["judge/0/0/0/relevance"]


async def test_where_nothing_is_accepted_there_is_one_more_retrieval(run: Runner) -> None:
    lost = {("steep", "银行"), ("steep", "河岸")}
    source = Lists(slope=[term("slope", "斜坡")])
    script = Script(irrelevant=lost, more={"bank": [("a slope", "岸坡"), MONEY]}, names=["slope", "bank"])
    result = await run(script, crat=with_source(source))
    decided = decision(result, "bank")
    assert decided["retrievals"] == 2
    assert verdicts(decided) == {
        "银行": "relevance", "河岸": "relevance", "斜坡": "accepted", "岸坡": "a better one",
    }  # fmt: skip
    assert source.asked == [("bank", "Scotia"), ("slope",)], "the same name is not looked up again"
    assert "- 银行: here it is the word, in the entry 银行" in script.request("inform/0/0/again")
    known = TransKG.from_json(result["graph"])
    assert {item.target for item in known.items("bank")} == {"银行", "河岸", "斜坡", "岸坡"}
    assert known.items("slope") == []


async def test_when_nothing_is_accepted_at_all_the_translator_works_without(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "银行"), ("steep", "河岸")})
    result = await run(script)
    assert result["rendered"][0]["status"] == "no entry" and "Entries" not in script.request("translate/0")
    assert decision(result, "bank")["retrievals"] == 2 and result["translation"] == "译文。"
    assert TransKG.from_json(result["graph"]).accepted("bank") is None
    once = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "银行"), ("steep", "河岸")})
    assert decision(await run(once, again=False), "bank")["retrievals"] == 1
    assert once.keys("searcher") == [] and once.keys("informant") == ["inform/0/0"]


async def test_candidates_beyond_the_limit_are_judged_only_if_the_first_fail(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")])
    result = await run(script, candidates=1)
    assert verdicts(decision(result, "bank")) == {"银行": "relevance", "河岸": "accepted"}
    assert decision(result, "bank")["retrievals"] == 1, "nothing that is found now could be judged"
    assert script.keys("informant") == ["inform/0/0"]
    fine = await run(Script(irrelevant=set()), candidates=1)
    assert verdicts(decision(fine, "bank")) == {"银行": "accepted", "河岸": ""}


async def test_the_best_of_each_source_comes_first_and_equal_translations_are_one(run: Runner) -> None:
    source = Lists(bank=[term("bank", "河 岸"), term("bank", "銀行"), term("bank", "", "a passage")])
    result = await run(Script(terms=[("bank", "polysemy")]), crat=with_source(source))
    found = [(c["item"]["target"], c["sources"]) for c in decision(result, "bank")["candidates"]]
    assert found == [("河岸", ["list:1", "model"]), ("银行", ["model", "list:1"]), ("", ["list:1"])] or found == [
        ("河 岸", ["list:1", "model"]), ("银行", ["model", "list:1"]), ("", ["list:1"]),
    ]  # fmt: skip


async def test_all_sources_of_an_equal_translation_are_told_with_and_without_the_graph(run: Runner) -> None:
    source = Lists(bank=[Item("bank", "河岸", "", "one", "a:1"), Item("bank", "河岸", "", "two", "b:1")])
    for knobs in ({}, {"graph": False}):
        result = await run(Script(terms=[("bank", "polysemy")]), crat=with_source(source), **knobs)
        assert decision(result, "bank")["candidates"][0]["sources"] == ["a:1", "b:1", "model"]


async def test_both_sides_of_a_long_pair_of_a_memory_reach_the_translator(run: Runner) -> None:
    pair = f"The bank {'lent money and ' * 25}closed. = 银行关门了。"
    source = Lists(bank=[Item("bank", "", pair, pair, "tm.tmx:D:1")])
    script = Script(terms=[("bank", "polysemy")])
    await run(script, crat=with_source(source), judge=False, informed=False)
    assert "银行关门了" in script.request("translate/0") and len(pair) > 300


async def test_the_informant_hears_why_each_was_refused(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, changed={"银行"})
    assert verdicts(decision(await run(script), "bank")) == {"银行": "invariance", "河岸": "relevance"}
    asked = script.request("inform/0/0/again")
    assert (
        "- 银行: it was the word, it came back as lost" in asked
        and "- 河岸: here it is the word, in the entry 河岸" in asked
    )
    broken = Script(terms=[("bank", "polysemy")], irrelevant={("steep", "河岸")}, broken="judge/0/0/0/relevance.*")
    await run(broken)
    assert "- 银行\n" in broken.request("inform/0/0/again"), "a call that failed is no reason"


async def test_a_source_that_fails_is_told_once_and_is_no_fault_of_other_terms(run: Runner) -> None:
    result = await run(Script(broken="inform/0/0.*"))
    assert [fault.split(":")[0] for fault in result["document"][0]["faults"]] == ["grapher", "informant (inform/0/0)"]
    assert decision(result, "Scotia")["faults"] == []


async def test_a_source_that_cannot_be_used_is_one_line(run: Runner) -> None:
    with pytest.raises(ValueError, match="no term source"):
        await run(Script(), sources="nonsense")


@pytest.mark.parametrize(
    ("at", "gives", "said"), [(2, [[]], "for 2 it gave 1"), (2, None, "NoneType"), (1, [], "gave 0")]
)
async def test_a_source_that_does_not_answer_for_each_term_is_one_line(
    run: Runner, at: int, gives: Any, said: str
) -> None:
    """At first two terms are looked up, in the second retrieval one other name."""

    class Short(Lists):
        async def look_up(self, terms: Sequence[str], sentence: str) -> list[list[Item]]:
            found: list[list[Item]] = gives if len(terms) == at else [[] for _ in terms]
            return found

    unfit = Script(irrelevant={("steep", "银行"), ("steep", "河岸")}, names=["slope"])
    with pytest.raises(ValueError, match=f"^source lists: look_up gives a list of items for each term.*{said}"):
        await run(unfit, crat=with_source(Short()))


# The check


async def test_a_run_closes_what_its_passages_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote:
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

    remote = Remote()
    monkeypatch.setattr("agentsys.terms.sources.load_retriever", lambda folder: remote)
    await Context(sources="passages:index, terms:nowhere.csv").aclose()
    assert remote.closed == 1
    await Context(sources="terms:nowhere.csv", source_language="nonsense").aclose()


async def test_an_accepted_term_that_is_missing_is_repaired_once(run: Runner) -> None:
    script = Script(translations={SENTENCE: "斯科舍附近的岸很陡。"}, repaired="斯科舍附近的河岸很陡。")
    result = await run(script)
    assert result["translation"] == script.repaired
    rendered = result["rendered"][0]
    assert (rendered["missing"], rendered["left"], rendered["repaired"]) == (["河岸"], [], True)
    assert (rendered["asked"], rendered["key"]) == ("translate/0", "repair/0")
    sft, role = result["targets"]
    assert [s["call"] or s["prompt"] for s in role["segments"]] == ["translate/0", "repair/0"]
    assert [s["learned"] for s in sft["segments"]] == [False, False, True] and SENTENCE in sft["segments"][1]["text"]
    assert sft["scores"] == {"score": 100.0, "terms": 2.0, "repaired": 1.0}


@pytest.mark.parametrize(
    "repaired", ["还是没有。", " ", "河岸、斯科舍", f"斯科舍附近的河岸很陡。{'这里的词条都已经按照要求放进去了。' * 2}"]
)
async def test_a_repair_that_mends_nothing_or_is_another_text_is_not_taken(run: Runner, repaired: str) -> None:
    script = Script(translations={SENTENCE: "斯科舍附近的岸很陡。"}, repaired=repaired)
    result = await run(script)
    assert result["translation"] == "斯科舍附近的岸很陡。"
    assert result["rendered"][0]["left"] == ["河岸"] and not result["rendered"][0]["repaired"]
    assert result["targets"][0]["scores"]["score"] == 50.0
    assert not (await run(Script(translations={SENTENCE: "无"}), repair=False))["rendered"][0]["repaired"]


@pytest.mark.parametrize(
    ("target", "translation", "there"),
    [
        ("艾滋病（AIDS）", "他得了愛滋病", False),
        ("艾滋病（AIDS）", "他得了艾滋病。", True),
        ("胸部 X 光检查", "做了胸部X光檢查", True),
        ("acute infection", "two Acute Infections were", True),
        ("acute infection", "an acute and severe infection", False),
        ("Krankenhaus", "in den Krankenhäusern", True),
        ("flu", "he is fluent", False),
        ("WHO", "whole", False),
        ("CDC", "das CDC sagt", True),
        ("CDC", "据CDC称", True),
        ("CDC", "据CDCX称", False),
        ("COVID-19 检测中心", "一家COVID-19檢測中心。", True),
        ("은행", "은행은 금리를 올렸다.", True),
    ],
)
def test_a_term_is_found_in_inflection_and_in_both_scripts(target: str, translation: str, there: bool) -> None:
    assert has_term(target, translation) is there


# The switches


async def test_without_the_judge_every_item_reaches_the_translator(run: Runner) -> None:
    script = Script()
    result = await run(script, judge=False)
    sent = script.request("translate/0")
    assert all(text in sent for text in ("银行", "河岸", "斯科舍"))
    assert {role for role, _, _ in script.asked} == {"identifier", "grapher", "informant", "translator"}
    assert result["rendered"][0]["checked"] == [] and result["rendered"][0]["status"] == "entries"


async def test_plain_retrieval_has_neither_judge_nor_graph(run: Runner) -> None:
    script = Script()
    result = await run(script, judge=False, graph=False)
    assert result["graph"] is None
    sent = script.request("translate/0")
    assert "- bank = 银行" in sent and "- bank = 河岸" in sent
    assert {role for role, _, _ in script.asked} == {"identifier", "informant", "translator"}


async def test_without_the_graph_each_sentence_decides_alone(run: Runner) -> None:
    script = Script(terms=[("Scotia", "proper")], irrelevant=set())
    texts = ["Scotia is cold.", "Scotia is far."]
    result = await run(script, texts, graph=False)
    assert result["graph"] is None and script.keys("grapher") == []
    assert script.keys("informant") == ["inform/0/0", "inform/1/0"]
    assert [r["checked"] for r in result["rendered"]] == [["斯科舍"]] * 2
    shared = Script(terms=[("Scotia", "proper")], irrelevant=set())
    assert len((await run(shared, texts))["decisions"]) == 1 and shared.keys("informant") == ["inform/0/0"]


async def test_without_the_informant_only_sources_are_asked(run: Runner) -> None:
    script = Script(terms=[("bank", "polysemy")])
    source = Lists(bank=[term("bank", "河岸")])
    result = await run(script, crat=with_source(source), informed=False)
    assert verdicts(decision(result, "bank")) == {"河岸": "accepted"} and script.keys("informant") == []


# Input


async def test_a_text_without_terms_is_translated_plainly(run: Runner) -> None:
    script = Script(terms=[])
    result = await run(script)
    assert result["rendered"][0]["status"] == "no term" and result["translation"] == "译文。"
    assert {role for role, _, _ in script.asked} == {"identifier", "translator"}


async def test_an_identifier_that_fails_leaves_a_plain_translation(run: Runner) -> None:
    result = await run(Script(broken="identify.*"))
    assert result["rendered"][0]["status"] == "no term"
    assert "no usable reply" in result["document"][0]["faults"][0]


async def test_a_text_in_the_target_language_is_returned_as_it_is(run: Runner) -> None:
    script = Script()
    result = await run(script, "新冠肺炎 (COVID-19) 是传染病。")
    assert result["translation"] == "新冠肺炎 (COVID-19) 是传染病。"
    assert result["rendered"][0]["status"] == "already in the target language"
    assert script.asked == [] and result["targets"] == []
    assert not is_already("The word 新型冠状病毒肺炎 means it.", "English", "Chinese")
    assert not is_already("COVID-19 PCR检测", "Chinese", "English") and is_already("A test.", "Chinese", "English")
    assert not is_already("Das ist Deutsch.", "English", "German"), "one script for both: it cannot tell"
    assert not is_already("漢字", "Japanese", "Chinese")


@pytest.mark.parametrize("given", ["", "  \n ", [], ["One.", " "], [1], {"sentences": 5}, {"sentences": {"a": "b"}}])
async def test_empty_input_is_one_clear_line(run: Runner, given: Any) -> None:
    with pytest.raises(ValueError, match=r"^(text|sentences): .*(give|fill)") as caught:
        await run(Script(), given)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="not both"):
        sentences_of("a", ["b"], "English")


@pytest.mark.parametrize(
    "knobs", [{"candidates": 0}, {"confidence": 1.5}, {"target_language": " "}, {"signals": "none"}, {"judge": "no"}]
)
def test_a_knob_out_of_range_is_named(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(knobs))):
        Context(**knobs)


def test_terms_are_placed_longest_first_and_invented_ones_dropped() -> None:
    text = "The New York Times said that New York sued IT, but it did not."
    named = [("new york", "proper", None), ("New York Times", "proper", None), ("Times", "polysemy", None)]
    doubted = [("Times said", "low_conf", 0.1), ("sued", "low_conf", 0.2), ("new york", "low_conf", 0.3)]
    mentions, invented, nested = place(text, 3, [*named, ("IT", "acronym", None), ("Paris", "proper", None), *doubted])
    assert [(m["surface"], m["kind"], text[m["start"] : m["end"]]) for m in mentions] == [
        ("New York Times", "proper", "New York Times"),
        ("New York", "proper", "New York"),
        ("sued", "low_conf", "sued"),
        ("IT", "acronym", "IT"),
    ]
    assert mentions[1]["start"] == 29 and mentions[0]["sentence"] == 3 and mentions[2]["confidence"] == 0.2
    assert (invented, nested) == (["Paris"], ["Times", "Times said"])


def test_a_korean_term_is_found_before_its_particle() -> None:
    mentions, invented, _ = place(
        "스코샤은행은 금리를 올렸다.", 0, [("금리", "domain", None), ("은행", "domain", None)]
    )
    assert [(m["surface"], m["start"]) for m in mentions] == [("금리", 7)] and invented == ["은행"]


async def test_invented_terms_are_counted(run: Runner) -> None:
    result = await run(Script(terms=[("Atlantis", "proper"), ("bank", "polysemy")]))
    assert result["document"][0]["invented"] == ["Atlantis"] and len(result["decisions"]) == 1


def test_a_text_is_cut_into_sentences_and_put_together_again() -> None:
    found = sentences_of("Dr. Smith left. He came back!\n\nThen nothing.", None, "English")
    assert found == [("Dr. Smith left.", " "), ("He came back!", "\n\n"), ("Then nothing.", "")]
    gaps = [gap for _, gap in found]
    assert joined(["甲。", "乙！", "丙。"], gaps, "Chinese") == "甲。乙！\n\n丙。"
    assert joined(["A.", "B!", "C."], gaps, "German") == "A. B!\n\nC."
    chinese = sentences_of("你好。再见。\n完。", None, "Chinese")
    assert joined(["Hello.", "Bye.", "End."], [gap for _, gap in chinese], "English") == "Hello. Bye.\nEnd."


def test_terms_are_found_whatever_form_accents_and_spaces_have() -> None:
    text = "Das Cafe\u0301 in  New  York ist neu."
    for [(sentence, _)] in (sentences_of(text, None, "German"), sentences_of(None, [text], "German")):
        mentions, invented, _ = place(sentence, 0, [("Café", "proper", None), ("New York", "proper", None)])
        assert [sentence[m["start"] : m["end"]] for m in mentions] == ["Café", "New York"] and not invented


def test_an_acronym_and_a_word_of_its_letters_are_two_terms() -> None:
    terms: list[tuple[str, Any, None]] = [("aids", "domain", None), ("AIDS", "acronym", None)]
    mentions, _, nested = place("AIDS patients need hearing aids.", 0, terms)
    assert [(m["surface"], m["kind"]) for m in mentions] == [("AIDS", "acronym"), ("aids", "domain")] and not nested


@pytest.mark.parametrize("space", ["\u00a0", "\u3000"])
def test_spaces_of_every_kind_are_kept(space: str) -> None:
    text = f"He took plan B{space}. It\u2009was late."
    found = sentences_of(text, None, "English")
    assert "".join(part for pair in found for part in pair) == text and len(found) > 1


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_no_prompt_has_words_of_a_target_language(path: Path) -> None:
    assert {script_of(char) for char in path.read_text(encoding="utf-8")} <= {"", "LATIN"}


@pytest.mark.parametrize("name", ["glosser", "informant"])
def test_the_form_of_a_gloss_and_of_a_sense_names_the_languages_of_the_run(name: str) -> None:
    about = {"text": "Die Bank war steil.", "term": "Bank", "refused": []}
    asked = load_prompt(f"crat/{name}").render({**about, "source_language": "German", "target_language": "French"})
    said = "\n".join(str(message["content"]) for message in asked)
    assert [message["role"] for message in asked] == ["system", "user"], "no example that could be copied"
    assert said.count("French") > 1 and "Chinese" not in said and "English" not in said


# Low confidence


class Unsure(ScriptedChatModel):
    """Tokens are characters; `odds` tells how likely the characters of a gloss are, everything else is certain."""

    odds: dict[str, float]
    ids: bool = True

    async def token_ids(self, text: str) -> list[int] | None:
        return [ord(char) for char in text] if self.ids else None

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        reply = await super().complete(messages, **kwargs)
        if kwargs["role"] == "glosser":
            reply.logprobs = [math.log(self.odds.get(char, 1.0)) for char in reply.text]
            if self.ids:
                reply.prompt_ids, reply.ids = [0], [ord(char) for char in reply.text]
            else:
                reply.top_tokens = [[char] for char in reply.text]
                reply.top_logprobs = [[logprob] for logprob in reply.logprobs]
        return reply


@pytest.mark.parametrize("ids", [True, False])
async def test_words_that_the_translator_doubts_are_terms(
    run: Runner, monkeypatch: pytest.MonkeyPatch, ids: bool
) -> None:
    replies = "bank = 岸\nScotia=斯科\nsteep = 陡\nice = 冰\nnear = 近"
    monkeypatch.setattr(Script, "glosser", lambda self, request: replies)
    script = Script(terms=[("bank", "polysemy")], senses={"bank": [SHORE]})
    odds = {"岸": 0.1, "斯": 0.5, "科": 0.08, "陡": 0.3, "近": 0.9, "冰": 0.01}
    found = await run(script, model=Unsure(respond=script, odds=odds, ids=ids), signals="both")
    assert [(m["surface"], m["kind"], m.get("confidence")) for m in found["document"][0]["mentions"]] == [
        ("bank", "polysemy", None), ("Scotia", "low_conf", 0.2),
    ]  # fmt: skip
    alone = Script(terms=[("bank", "polysemy")], senses={"bank": [SHORE]})
    found = await run(alone, model=Unsure(respond=alone, odds=odds, ids=ids), signals="confidence", confidence=0.25)
    assert [(m["surface"], m["kind"]) for m in found["document"][0]["mentions"]] == [
        ("bank", "low_conf"), ("Scotia", "low_conf"),
    ]  # fmt: skip
    assert alone.keys("identifier") == []
    found = await run(alone, model=Unsure(respond=alone, odds=odds, ids=ids), signals="confidence", confidence=0.15)
    assert [m["surface"] for m in found["document"][0]["mentions"]] == ["bank"]


def test_articles_and_prepositions_are_no_terms() -> None:
    """A small glosser lists them although it is told not to."""
    found = doubtful([("by", 0.1), ("of", 0.2), ("UN", 0.3), ("岸", 0.4)], 0.5)
    assert [word for word, _, _ in found] == ["UN", "岸"]


async def test_without_log_probabilities_the_other_signal_is_left(run: Runner) -> None:
    result = await run(Script(), signals="both")
    assert len(result["document"][0]["mentions"]) == 2
    assert "glosser: the model tells no log-probabilities" in result["document"][0]["faults"]


async def test_a_gloss_counts_only_between_ends_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pairs(Unsure):
        async def token_ids(self, text: str) -> list[int] | None:
            return [crc32(text[i : i + 2].encode()) for i in range(0, len(text), 2)]

    text = "a = 岸xab = 陡x"
    model = Pairs(respond=lambda messages, call: text, odds={})
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **about: model)
    assert glosses("a =  岸 \nno gloss\nb c=d=e") == [("a", 5, 6), ("b c", 21, 24)]
    from types import SimpleNamespace as Plain

    reply = "a= 岸\nbb =陡坡"
    call: Any = Plain(text=reply, ids=await model.token_ids(reply), logprobs=[-1.0] * 6, top_tokens=None)
    call.top_logprobs = None
    assert await confidences(Context(), CRAT().glosser, call) == [("a", pytest.approx(math.exp(-1)))]


# Documents

DOCUMENT = [
    "Scotia lies by the sea.",
    "Nothing grows on the hill.",
    "The bank was steep.",
    "In Scotia the bank lends money.",
]


def side_by_side(**more: Any) -> Script:
    """Two sentences share Scotia, two the bank, which is another one in the last."""
    return Script(irrelevant={("steep", "银行"), ("lends", "河岸")}, **more)


async def test_a_term_stays_the_same_and_a_word_with_several_meanings_is_looked_at_again(run: Runner) -> None:
    script = side_by_side()
    result = await run(script, DOCUMENT)
    assert result["translations"] == ["译文斯科舍。", "译文。", "译文河岸。", "译文斯科舍银行。"]
    assert [r["status"] for r in result["rendered"]] == ["entries", "no term", "entries", "entries"]
    assert script.keys("informant") == ["inform/0/0", "inform/2/0"], "each term is looked up once"
    here = decision(result, "bank", 3)
    assert verdicts(here) == {"银行": "accepted", "河岸": "relevance"}
    known = TransKG.from_json(result["graph"]).accepted("bank")
    assert known is not None and known.target == "河岸", "the graph holds what was decided first"
    assert not [key for key in script.keys("relevance") if key.startswith("judge/3/0")], "a name is decided once"
    again = Script(irrelevant={("steep", "银行"), ("lends", "河岸"), ("lends", "银行")}, more={"bank": [SHORE]})
    tried = decision(await run(again, DOCUMENT), "bank", 3)
    assert verdicts(tried) == {"河岸": "relevance", "银行": "relevance"} and len(tried["candidates"]) == 2
    assert "- 河岸: here it is the word, in the entry 河岸" in again.request("inform/3/1/again"), (
        "what did not fit here is not asked for again"
    )
    same = Script(irrelevant={("steep", "银行")})
    reused = decision(await run(same, DOCUMENT), "bank", 3)
    assert reused["reused"] and verdicts(reused) == {"河岸": "accepted"}
    assert [key for key in same.keys("relevance") if key.startswith("judge/3")] == ["judge/3/1/shared/relevance"]


class Paced(ScriptedChatModel):
    """Each call takes its own time: the same work comes in another order for each `pace`."""

    pace: int

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        await asyncio.sleep((crc32(f"{kwargs['key']} {self.pace}".encode()) % 7) / 1000)
        return await super().complete(messages, **kwargs)


async def test_the_same_replies_give_the_same_result_at_any_speed(run: Runner) -> None:
    found = []
    for pace in range(4):
        script = side_by_side()
        result = await run(script, DOCUMENT, model=Paced(respond=script, pace=pace))
        found.append(json.dumps(strip_measured(result), ensure_ascii=False))
    assert len(set(found)) == 1


class Held(ScriptedChatModel):
    """Calls whose key begins with `held` wait until one with the key `until` has been answered, or for ever."""

    held: str
    until: str
    reached: Any
    for_ever: bool = False

    async def complete(self, messages: Any, **kwargs: Any) -> Reply:
        if kwargs["key"].startswith(self.held):
            await asyncio.wait_for((asyncio.Event() if self.for_ever else self.reached).wait(), 20)
        reply = await super().complete(messages, **kwargs)
        if kwargs["key"] == self.until:
            self.reached.set()
        return reply


async def test_a_sentence_does_not_wait_for_terms_that_it_has_not(run: Runner) -> None:
    for until in ("translate/1", "translate/2"):
        script = side_by_side()
        await run(script, DOCUMENT, model=Held(respond=script, held="judge/0", until=until, reached=asyncio.Event()))
    script, reached = side_by_side(), asyncio.Event()
    held = Held(respond=script, held="judge/0", until="translate/2", reached=reached, for_ever=True)
    work = asyncio.create_task(run(script, DOCUMENT, model=held))
    await asyncio.wait_for(reached.wait(), 20)
    await asyncio.sleep(0.05)
    assert script.keys("translator") == ["translate/1", "translate/2"], "the last sentence has a term of the first"
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_a_translator_that_fails_ends_the_record_and_an_endpoint_that_is_down_the_run(run: Runner) -> None:
    class Failing(ScriptedChatModel):
        error: Any
        at: str

        async def complete(self, messages: Any, **kwargs: Any) -> Reply:
            if kwargs["key"].startswith(self.at):
                raise self.error
            await asyncio.sleep(0.01)
            return await super().complete(messages, **kwargs)

    script = side_by_side()
    with pytest.raises(ModelError, match="too long"):
        await run(script, DOCUMENT, model=Failing(respond=script, error=ModelError("too long"), at="translate/1"))
    assert "translate/3" in script.keys("translator"), "the others are finished"
    for at in ("identify/1", "judge/2", "judge/3/1", "repair", "translate/3"):
        script = side_by_side(translations={DOCUMENT[0]: "无"})
        with pytest.raises(EndpointDown):
            await run(script, DOCUMENT, model=Failing(respond=script, error=EndpointDown("down"), at=at))
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left running"
    script = Script(terms=[("bank", "domain"), ("Scotia", "domain")], irrelevant=set())
    with pytest.raises(EndpointDown):
        failing = Failing(respond=script, error=EndpointDown("down"), at="judge/0/0")
        await run(script, [SENTENCE, "Nothing."], model=failing)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_thread_can_go_on_with_the_other_form_of_input(run: Runner) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    await run(Script())  # sets the model
    kept = CRAT().builder().compile(checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "one"}}
    context = Context(signals="identifier")
    given: list[Any] = [{"sentences": ["Scotia is cold.", "It is."]}, {"text": "Scotia is cold."}]
    found = [len((await kept.ainvoke(one, thread, context=context))["rendered"]) for one in given]
    assert found == [2, 1]


def test_the_graph_shows_its_steps() -> None:
    assert {"identify", "build", "judge", "translate", "check", "document"} <= set(graph.get_graph().nodes)
