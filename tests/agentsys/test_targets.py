"""The rules of targets: one list, which the constructor, `collect` and rows.py use."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from agentsys.collect import RunOptions, collect
from agentsys.models.scripted import ScriptedChatModel
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.targets import (
    Segment,
    StepLabel,
    Target,
    TargetError,
    check_target,
    check_targets,
    masked,
    stored_target,
    target_from,
)
from agentsys.traces import dump, load, read_finished
from tests.support.calls import make_call, make_trace

USER = Segment("user", False, text="Say it.")
ANSWER = Segment("assistant", True, text="It.")
PAIR = {"margin": 1.0}


def prompt(key: str) -> Segment:
    return Segment("user", False, prompt=key)


def reply(key: str) -> Segment:
    return Segment("assistant", True, call=key)


def said(text: str, learned: bool = True) -> Segment:
    return Segment("assistant", learned, text=text)


SHAPES: dict[str, tuple[str, Any, Any, Any, str]] = {
    "kind": ("dpo", (USER, ANSWER), None, {}, "'dpo' is no kind of target; the kinds are sft, role, step, sft-plain"),
    "chat role": ("sft", (Segment("tool", False, text="x"), ANSWER), None, {}, "'tool' is no chat role"),  # type: ignore[arg-type]
    "score": ("sft", (USER, ANSWER), None, {"score": float("nan")}, "the score 'score' is nan; a score is a finite"),
    "no score": ("sft", (USER, ANSWER), None, {"score": None}, "the score 'score' is None"),
    "sft: prompt": ("sft", (prompt("a"), ANSWER), None, {}, "must not contain the prompt of a call; compose"),
    "sft: end": ("sft", (USER, ANSWER, USER), None, {}, "must end with an assistant message"),
    "sft: empty": ("sft", (), None, {}, "must end with an assistant message"),
    "sft: masked": ("sft", (USER, said("It.", False)), None, {}, "nothing to learn; set learned=True"),
    "sft: rejected": ("sft", (USER, ANSWER), (USER, said("No.")), {}, "a target of kind sft has no rejected side"),
    "role: text": ("role", (prompt("a"), ANSWER), None, {}, "must be the prompt and the reply of one call"),
    "role: one": ("role", (reply("a"),), None, {}, "must be the prompt and the reply of one call"),
    "role: three": ("role", (prompt("a"), reply("a"), reply("b")), None, {}, "must be the prompt and the reply"),
    "role: masked": ("role", (prompt("a"), replace(reply("a"), learned=False)), None, {}, "must be the prompt and"),
    "role: rejected": ("role", (prompt("a"), reply("a")), (prompt("a"), reply("b")), {}, "has no rejected side"),
    "step: alone": ("step", (prompt("a"), reply("a")), None, PAIR, "needs a rejected side"),
    "step: no prompt": ("step", (USER, reply("a")), (USER, reply("b")), PAIR, "must start with the prompt of a call"),
    "step: prompts": ("step", (prompt("a"), prompt("b")), (prompt("a"), reply("b")), PAIR, "have it only there"),
    "step: two": ("step", (prompt("a"), reply("a")), (prompt("b"), reply("b")), PAIR, "share no prefix"),
    "step: equal": ("step", (prompt("a"), reply("a")), (prompt("a"), reply("a")), PAIR, "or are equal"),
    "step: prefix": ("step", (prompt("a"), reply("a")), (prompt("a"), reply("a"), reply("b")), PAIR, "ends in the"),
    "step: masked": ("step", (prompt("a"), said("x", False)), (prompt("a"), reply("b")), PAIR, "set learned=True on"),
    "step: margin": ("step", (prompt("a"), reply("a")), (prompt("a"), reply("b")), {}, "needs scores={'margin': ...}"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_wrong_shape_is_refused_where_it_is_made(case: str) -> None:
    kind, segments, rejected, scores, complaint = SHAPES[case]
    with pytest.raises(TargetError) as refusal:
        Target(kind, segments, rejected, scores)  # type: ignore[arg-type]
    assert complaint in str(refusal.value)


WRONG_TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"text": 5}, "a segment's text is of type int; it must be a str"),
    "call": ({"call": b"say"}, "a segment's call is of type bytes"),
    "node": ({"node": 3}, "a segment's node is of type int"),
    "prompt": ({"prompt": ["say"]}, "a segment's prompt is of type list"),
    "path": ({"text": PurePosixPath("x")}, "a segment's text is of type pathlib"),
    "role": ({"role": None, "text": "x"}, "a segment's role is None; it must be a str"),
    "learned": ({"learned": 1, "text": "x"}, "a segment's learned is of type int; it must be True or False"),
    "nothing": ({}, "exactly one of text, call, node and prompt"),
    "request": ({"learned": True, "prompt": "say"}, "the request of a call cannot be learned"),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_a_segment_of_other_types_is_refused_where_it_is_made(case: str) -> None:
    values, complaint = WRONG_TYPES[case]
    raw: dict[str, Any] = {"role": "user", "learned": False} | values
    with pytest.raises(TargetError, match=complaint):
        Segment(**raw)
    with pytest.raises(TargetError, match=complaint):
        target_from({"kind": "sft", "segments": [raw, asdict(ANSWER)]})


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_a_segment_of_other_types_in_an_earlier_run_can_be_read(case: str) -> None:
    values, complaint = WRONG_TYPES[case]
    raw = {"kind": "sft", "segments": [{"role": "user", "learned": False} | values, asdict(ANSWER)]}
    target = stored_target(raw)
    with pytest.raises(TargetError, match=complaint):
        check_target(target, [])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"kind": ["sft"]}, r"\['sft'\] is no kind of target"),
        ({"kind": None}, "None is no kind of target"),
        ({"segments": None}, r"the segments of a target are None; give a tuple or list of Segment"),
        ({"segments": "It."}, "the segments of a target are of type str"),
        ({"segments": USER}, "the segments of a target are of type agentsys.targets.Segment"),
        ({"segments": {"role": "user"}}, "the segments of a target are of type dict"),
        (
            {"segments": (USER, asdict(ANSWER))},
            "one of the segments of a target is of type dict; make",
        ),
        ({"kind": "step", "rejected": 5}, "the rejected of a target are of type int"),
        ({"kind": "step", "rejected": [None]}, "one of the rejected of a target is None"),
        ({"scores": [1.0]}, "the scores of a target are of type list; give a dict"),
        ({"scores": {1: 1.0}}, "the name of a score is of type int"),
        ({"scores": {"score": "92"}}, "the score 'score' is '92'; a score is a finite number"),
        ({"scores": {"score": 10**400}}, "a score is a finite number"),
    ],
)
def test_a_target_of_other_types_is_refused_where_it_is_made(values: dict[str, Any], complaint: str) -> None:
    raw: dict[str, Any] = {"kind": "sft", "segments": (USER, ANSWER)} | values
    with pytest.raises(TargetError, match=complaint) as refusal:
        Target(**raw)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("values", [{"kind": ["sft"]}, {"segments": None}, {"segments": 5}, {"scores": [1]}])
def test_a_json_form_of_other_types_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TargetError):
        target_from({"kind": "sft", "segments": [asdict(USER), asdict(ANSWER)]} | values)


LABEL = StepLabel(1, 0.5, 4)
PRM_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no step": ({"segments": (prompt("a"),)}, "must be the prompt of a call, then the calls or nodes of the steps"),
    "no prompt": ({"segments": (reply("a"), reply("b"))}, "must be the prompt of a call, then the calls"),
    "a text": ({"segments": (prompt("a"), said("x"))}, "must be the prompt of a call, then the calls"),
    "no label": ({"labels": ()}, "has a label for each step with learned=True, in their order, and at least one"),
    "another step": ({"labels": (replace(LABEL, segment=2),)}, "has a label for each step with learned=True"),
    "twice": ({"labels": (LABEL, LABEL)}, "has a label for each step with learned=True"),
    "share": ({"labels": (replace(LABEL, share=1.5),)}, "has share 1.5 of 4 visits; a share is from 0 to 1"),
    "nan": ({"labels": (replace(LABEL, share=float("nan")),)}, "has share nan of 4 visits"),
    "visits": (
        {"labels": (replace(LABEL, visits=0),)},
        "has share 0.5 of 0 visits; a share is from 0 to 1, of at least",
    ),
    "dict": ({"labels": ({"segment": 1},)}, "the labels of a prm target must be StepLabel"),
    "rejected": ({"rejected": (prompt("a"), reply("b"))}, "a target of kind prm has no rejected side"),
    "kind": ({"kind": "role"}, "a target of kind role has no labels; steps with labels are a target of kind prm"),
}


@pytest.mark.parametrize("case", PRM_FAULTS)
def test_a_wrong_solution_with_labels_is_refused(case: str) -> None:
    values, complaint = PRM_FAULTS[case]
    right: dict[str, Any] = {"kind": "prm", "segments": (prompt("a"), reply("a")), "labels": (LABEL,)}
    assert Target(**right).labels == (LABEL,)
    with pytest.raises(TargetError) as refusal:
        Target(**right | values)
    assert complaint in str(refusal.value)


def test_lists_and_no_scores_are_taken() -> None:
    chosen: Any = [prompt("a"), reply("a")]
    rejected: Any = [prompt("a"), reply("b")]
    assert Target("step", chosen, rejected, PAIR) == STEP
    no_scores: Any = None
    target = Target("role", chosen, scores=no_scores)
    assert (target.segments, dict(target.scores)) == ((prompt("a"), reply("a")), {})


@pytest.mark.parametrize("case", SHAPES)
def test_a_wrong_shape_in_an_earlier_run_can_be_read(case: str) -> None:
    """rows.py then counts it as dropped; the run is not lost."""
    kind, segments, rejected, scores, _ = SHAPES[case]
    raw = {"kind": kind, "segments": [asdict(s) for s in segments], "scores": scores}
    raw["rejected"] = [asdict(s) for s in rejected] if rejected else None
    line = dump(make_trace(targets=[stored_target(raw)]))
    (target,) = load(line).targets
    assert target.kind == kind and len(target.segments) == len(segments)
    with pytest.raises(TargetError):
        check_target(target, [])


CALLS = [
    make_call("a", text="Good."),
    make_call("b", text="Bad."),
    make_call("b2", text="Bad."),
    make_call("ended", text="Bad.", stop_ids=1),
    make_call("empty", text=""),
    make_call("refused", text="{", error="not the JSON that was asked for"),
]
TREE = [{"id": "root", "call": "a"}, {"id": "root:0", "call": "b"}, {"id": "root:1"}]
STEP = Target("step", (prompt("a"), reply("a")), (prompt("a"), reply("b")), PAIR)


def step(chosen: Segment, rejected: Segment) -> Target:
    return Target("step", (prompt("a"), chosen), (prompt("a"), rejected), PAIR)


def node(name: str) -> Segment:
    return Segment("assistant", True, node=name)


@pytest.mark.parametrize(
    "target",
    [
        Target("sft", (*masked([{"role": "user", "content": "Say it."}]), said("x", False), ANSWER)),
        Target("sft", (USER, reply("a"), said("!", False))),
        Target("sft", (USER, replace(reply("empty"), learned=False), ANSWER)),
        Target("sft", (USER, replace(reply("refused"), learned=False), ANSWER)),
        Target("sft", (USER, node("root"))),
        Target("role", (prompt("a"), reply("b")), scores={"score": 5}),
        Target("role", (prompt("empty"), reply("a"))),
        STEP,
        step(reply("a"), reply("refused")),
        step(reply("ended"), reply("b")),
        step(node("root"), node("root:0")),
        step(said("yes"), said("no")),
        Target("step", (prompt("a"), reply("a"), said("x")), (prompt("a"), reply("a"), said("y")), {"margin": -1.0}),
    ],
)
def test_what_rows_can_be_made_of_is_accepted(target: Target) -> None:
    check_target(target, CALLS, TREE)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        (Target("sft", (USER, reply("gone"))), "refers to call gone, which the trace does not have"),
        (Target("role", (prompt("gone"), reply("a"))), "refers to call gone"),
        (Target("role", (prompt(""), reply("a"))), "refers to call , which the trace does not have"),
        (step(reply("a"), reply("gone")), "refers to call gone"),
        (Target("sft", (USER, node("x"))), "no tree node x"),
        (Target("sft", (USER, node("root:1"))), "the tree node root:1 has no call"),
        (Target("sft", (USER, said(""))), "the learned text of an sft target is empty"),
        (Target("sft", (USER, reply("empty"))), "call empty: the reply is empty"),
        (Target("role", (prompt("a"), reply("empty"))), "call empty: the reply is empty"),
        (step(reply("a"), reply("empty")), "call empty: the reply is empty"),
        (step(said(""), reply("a")), "a side of a step target is empty"),
        (step(reply("a"), said("")), "a side of a step target is empty"),
        (step(reply("b"), reply("b2")), "chosen and rejected are the same text"),
        (step(said("Bad."), reply("b")), "chosen and rejected are the same text"),
        (Target("sft", (USER, reply("refused"))), "was refused (not the JSON that was asked for); refer to the reply"),
        (Target("role", (prompt("a"), reply("refused"))), "whose key is answer.call.key"),
        (step(reply("refused"), reply("a")), "the reply of call refused was refused"),
    ],
)
def test_what_a_target_refers_to_must_exist_and_differ(target: Target, complaint: str) -> None:
    with pytest.raises(TargetError) as refusal:
        check_target(target, CALLS, TREE)
    assert complaint in str(refusal.value)
    with pytest.raises(TargetError) as refusal:
        check_targets([STEP, target], CALLS, TREE)
    assert str(refusal.value).startswith(f"targets[1] ({target.kind}): ")


def test_labels_and_their_json_form_are_the_same() -> None:
    segments = (prompt("a"), reply("a"), replace(reply("b"), learned=False))
    target = Target("prm", segments, labels=(LABEL,))
    raw = orjson.loads(orjson.dumps(target))
    assert target_from(raw) == target == stored_target(raw) and raw["labels"] == [
        {"segment": 1, "share": 0.5, "visits": 4}
    ]


def test_a_target_and_its_json_form_are_the_same() -> None:
    assert target_from(STEP) is STEP
    assert target_from(orjson.loads(orjson.dumps(STEP))) == STEP
    assert target_from({"kind": "sft", "segments": [asdict(USER), asdict(ANSWER)]}) == Target("sft", (USER, ANSWER))


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"segments": []}, "not a target: it has no 'kind'"),
        ({"kind": "sft", "segments": [{"role": "user"}]}, "not a target: .*learned"),
        ({"kind": "sft", "segments": [{"role": "user", "learned": False}]}, "exactly one of text, call, node"),
        ("sft", "not a target"),
        (None, "not a target: .*asdict"),
    ],
)
def test_something_else_is_no_target(raw: Any, complaint: str) -> None:
    with pytest.raises(TargetError, match=complaint):
        target_from(raw)


class State(TypedDict, total=False):
    text: str
    targets: list[Any]


SAY: Role[str] = Role(Prompt.parse("# user\n{{ text }}", "say"), name="say")


def run_with(targets: list[Any], out: Path) -> Any:
    """The trace of one record whose graph asks once and returns these targets."""
    model = ScriptedChatModel(respond=lambda messages, call: "It.")

    async def write(state: State) -> State:
        await SAY(model, key="say", text=state["text"])
        return {"targets": targets}

    builder = StateGraph(State)
    builder.add_node("write", write)
    builder.add_edge(START, "write")
    collect(builder.compile(name="says"), ["Say it."], out, options=RunOptions(no_cache=True))
    (trace,) = read_finished(out)
    return trace


def test_a_graph_may_return_targets_or_dictionaries(tmp_path: Path) -> None:
    target = Target("sft", (USER, reply("say")))
    trace = run_with([target, asdict(target)], tmp_path / "run")
    assert trace.outcome == "kept"
    assert [*map(orjson.dumps, trace.targets)] == [orjson.dumps(target)] * 2


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({"kind": "sft", "segments": [asdict(prompt("say")), asdict(reply("say"))]}, "must not contain the prompt"),
        (asdict(Target("sft", (USER, reply("sai")))), "targets[0] (sft): a target refers to call sai"),
        ("say", "not a target"),
        ({"kind": "sft", "segments": [{"role": "user", "learned": False, "text": 5}]}, "segment's text is of type int"),
    ],
)
def test_a_record_with_an_unusable_target_fails_with_the_reason(target: Any, complaint: str, tmp_path: Path) -> None:
    trace = run_with([target], tmp_path / "run")
    assert trace.outcome == "failed" and trace.targets == []
    assert trace.reason.startswith("TargetError: ") and complaint in trace.reason
    assert "\n" not in trace.reason
    assert [call.key for call in trace.calls] == ["say"]
