"""Targets: what to learn from a trace, and the rules that a target must meet to become a row.

The constructor of `Target` checks its shape, and `collect` checks what it refers to, so that a graph's mistake shows
at its first record. trainers/rows.py uses the same rules. docs/collect.md lists them by kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from numbers import Real
from typing import Any, Final, Literal, Protocol, TypeVar, get_args

Kind = Literal["sft", "role", "step", "sft-plain", "prm"]
COMPOSED: Final = ("sft", "sft-plain")
"""The kinds whose segments are composed, not taken from one request."""
ChatRole = Literal["system", "user", "assistant"]

T = TypeVar("T", "Segment", "StepLabel", "Target")

_SOURCES: Final = ("text", "call", "node", "prompt")


class TargetError(ValueError):
    """A target that no row can be made of. The message names the rule and the fix."""


class Reply(Protocol):
    """What the rules read of a call."""

    key: str
    text: str
    stop_ids: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a target: literal `text`, the reply of a call (`call` is its key), the text of a tree node (`node` is
    its id), or the whole request of a call (`prompt` is its key).

    `role` is the piece's chat role; adjacent pieces with one role form one message. `learned` pieces have loss, the
    others are masked. Targets of the kinds `role` and `step` start with a `prompt` piece, so that a row's prefix has
    exactly the ids that the engine got. Raises TargetError for other combinations, and for values of other types.
    """

    role: ChatRole
    learned: bool
    text: str | None = None
    call: str | None = None
    node: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        _check_segment(self)


def masked(messages: Iterable[Mapping[str, Any]]) -> list[Segment]:
    """The segments of a rendered prompt: context without loss. Raises TargetError for a prompt that shows a picture."""
    messages = list(messages)
    if any(not isinstance(message["content"], str) for message in messages):
        raise TargetError("the prompt shows a picture, which an sft target cannot have; make it a target of kind role")
    return [Segment(message["role"], False, text=str(message["content"])) for message in messages]


@dataclass(frozen=True, slots=True)
class StepLabel:
    """What a search found out about a step: `share` of its `visits` finished solutions are right.

    `segment` is the number of the step among its target's segments, whose prompt is 0.
    """

    segment: int
    share: float
    visits: int


@dataclass(frozen=True, slots=True)
class Target:
    """A training example of a trace: `sft` (composed), `role` (one call), `step` (chosen against rejected) or `prm`.

    `prm` is a solution step by step, each step a call that continues the one before, with the `labels` of some steps:
    a process reward model learns them at the ends of these steps, and nothing at the others, which are not `learned`.

    `sft-plain` is composed too: the answer of an `sft` target without its thought, for a baseline in rows of their own.
    `scores` holds the system's measures of it, for filters: {"score": 92.0, "rounds": 3}. A step target needs
    `margin`, by how much the chosen side is better. A list of segments becomes a tuple, and `scores=None` an empty
    mapping. Raises TargetError for a shape that no row can be made of.
    """

    kind: Kind
    segments: tuple[Segment, ...]
    rejected: tuple[Segment, ...] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[StepLabel, ...] = ()

    def __post_init__(self) -> None:
        for name in ("segments", "rejected", "labels"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.scores is None:
            object.__setattr__(self, "scores", {})
        check_shape(self)


def target_from(raw: Target | Mapping[str, Any]) -> Target:
    """A target of a graph's output, which may be a Target or its JSON form. Raises TargetError."""
    if isinstance(raw, Target):
        return raw
    try:
        return Target(**_fields_of(raw, Segment, StepLabel))
    except TargetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        missing = f"it has no {err}" if isinstance(err, KeyError) else str(err)
        raise TargetError(f"not a target: {missing}; make a Target and return asdict(target)") from None


def stored_target(raw: Mapping[str, Any]) -> Target:
    """A target of a stored trace, whatever its shape: earlier versions wrote targets that rows.py then drops.

    Raises KeyError, TypeError or ValueError if it is not one.
    """
    make_segment, make_label = partial(_make_unchecked, Segment), partial(_make_unchecked, StepLabel)
    return _make_unchecked(Target, **_fields_of(raw, make_segment, make_label))


def _fields_of(
    raw: Mapping[str, Any], make_segment: Callable[..., Segment], make_label: Callable[..., StepLabel]
) -> dict[str, Any]:
    return {
        "kind": raw["kind"],
        "segments": tuple(make_segment(**segment) for segment in raw["segments"]),
        "rejected": tuple(make_segment(**segment) for segment in raw["rejected"]) if raw.get("rejected") else None,
        "scores": raw.get("scores") or {},
        "labels": tuple(make_label(**label) for label in raw.get("labels") or ()),
    }


def _make_unchecked(kind: type[T], /, **values: Any) -> T:
    """A Target or Segment with these fields, whose shape is not checked. Raises TypeError for other fields."""
    defaults = {one.name: None if one.default is MISSING else one.default for one in fields(kind)}
    if unknown := values.keys() - defaults.keys():
        raise TypeError(f"a {kind.__name__} has no {min(unknown)}")
    made = object.__new__(kind)
    for name, value in (defaults | values).items():
        object.__setattr__(made, name, value)
    return made


def check_shape(target: Target) -> None:
    """Check what can be seen without the calls: the kind, its segments, the scores. Raises TargetError."""
    if not isinstance(target.kind, str) or target.kind not in get_args(Kind):
        raise TargetError(f"{target.kind!r} is no kind of target; the kinds are {', '.join(get_args(Kind))}")
    _check_side("segments", target.segments)
    if target.rejected is not None:
        _check_side("rejected", target.rejected)
    _check_scores(target.scores)
    if target.rejected and target.kind != "step":
        raise TargetError(f"a target of kind {target.kind} has no rejected side; make a pair a target of kind step")
    if target.labels and target.kind != "prm":
        raise TargetError(f"a target of kind {target.kind} has no labels; steps with labels are a target of kind prm")
    {"role": _check_role, "step": _check_step, "prm": _check_prm}.get(target.kind, _check_sft)(target)


def _check_segment(segment: Segment) -> None:
    if not isinstance(segment.role, str):
        raise TargetError(f"a segment's role is {_describe(segment.role)}; it must be a str")
    if not isinstance(segment.learned, bool):
        raise TargetError(f"a segment's learned is {_describe(segment.learned)}; it must be True or False")
    sources = {name: getattr(segment, name) for name in _SOURCES if getattr(segment, name) is not None}
    for name, value in sources.items():
        if not isinstance(value, str):
            raise TargetError(f"a segment's {name} is {_describe(value)}; it must be a str")
    if len(sources) != 1:
        raise TargetError("a segment has exactly one of text, call, node and prompt")
    if segment.prompt is not None and segment.learned:
        raise TargetError("the request of a call cannot be learned")


def _describe(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return "None" if value is None else f"of type {name}"


def _check_side(name: str, segments: Any) -> None:
    if not isinstance(segments, tuple):
        raise TargetError(f"the {name} of a target are {_describe(segments)}; give a tuple or list of Segment(...)")
    for segment in segments:
        if not isinstance(segment, Segment):
            raise TargetError(f"one of the {name} of a target is {_describe(segment)}; make it with Segment(...)")
        _check_segment(segment)
        if segment.role not in get_args(ChatRole):
            raise TargetError(f"{segment.role!r} is no chat role; a segment's role is {', '.join(get_args(ChatRole))}")


def _check_scores(scores: Any) -> None:
    if not isinstance(scores, Mapping):
        raise TargetError(f"the scores of a target are {_describe(scores)}; give a dict such as {{'score': 92.0}}")
    for name, score in scores.items():
        if not isinstance(name, str):
            raise TargetError(f"the name of a score is {_describe(name)}; it must be a str")
        if not _is_finite(score):
            value = " ".join(repr(score).split())[:80]
            raise TargetError(f"the score {name!r} is {value}; a score is a finite number")


def _is_finite(score: Any) -> bool:
    try:
        return isinstance(score, Real) and math.isfinite(score)
    except OverflowError:  # an int beyond all floats
        return False


def _check_sft(target: Target) -> None:
    if any(segment.prompt is not None for segment in target.segments):
        raise TargetError(
            "an sft target must not contain the prompt of a call; compose the context from texts, such as "
            "masked(PROMPT.render(...)), or make it a target of kind role"
        )
    if not target.segments or target.segments[-1].role != "assistant":
        raise TargetError("an sft target must end with an assistant message")
    if not any(segment.learned for segment in target.segments):
        raise TargetError("an sft target has nothing to learn; set learned=True on the segments of the answer")


def _check_role(target: Target) -> None:
    if [_source(segment) for segment in target.segments] != ["prompt", "call"] or not target.segments[1].learned:
        raise TargetError(
            "a role target must be the prompt and the reply of one call: Segment('user', False, prompt=key), "
            "Segment('assistant', True, call=key)"
        )


def _check_step(target: Target) -> None:
    chosen, rejected = target.segments, target.rejected
    if not rejected:
        raise TargetError("a step target needs a rejected side")
    for side in (chosen, rejected):
        if [i for i, segment in enumerate(side) if segment.prompt is not None] != [0]:
            raise TargetError(
                "each side of a step target must start with the prompt of a call, and have it only there: "
                "Segment('user', False, prompt=key)"
            )
    shared = count_shared(target)
    if not shared or shared == min(len(chosen), len(rejected)):
        raise TargetError("the two sides of a step target share no prefix, or are equal, or one ends in the other")
    if not all(segment.learned for segment in (*chosen[shared:], *rejected[shared:])):
        raise TargetError("a step target learns all that follows the shared prefix; set learned=True on it")
    if "margin" not in target.scores:
        raise TargetError("a step target needs scores={'margin': ...}, by how much the chosen side is better")


def _check_prm(target: Target) -> None:
    sources = [_source(segment) for segment in target.segments]
    if sources[:1] != ["prompt"] or len(sources) < 2 or not {*sources[1:]} <= {"call", "node"}:
        raise TargetError("a prm target must be the prompt of a call, then the calls or nodes of the steps")
    if not isinstance(target.labels, tuple) or not all(isinstance(label, StepLabel) for label in target.labels):
        raise TargetError("the labels of a prm target must be StepLabel(segment, share, visits)")
    numbers = [label.segment for label in target.labels]
    if not numbers or numbers != [i for i, segment in enumerate(target.segments) if segment.learned]:
        raise TargetError("a prm target has a label for each step with learned=True, in their order, and at least one")
    for label in target.labels:
        if not (_is_finite(label.share) and 0 <= label.share <= 1 and _is_finite(label.visits) and label.visits >= 1):
            raise TargetError(
                f"the label of segment {label.segment} has share {label.share} of {label.visits} visits; a share is "
                "from 0 to 1, of at least one visit"
            )


def count_shared(target: Target) -> int:
    """The number of segments at the start of a step target that both sides share."""
    pairs = zip(target.segments, target.rejected or (), strict=False)
    shared = 0
    for one, other in pairs:
        if one != other:
            break
        shared += 1
    return shared


def _source(segment: Segment) -> str:
    return next(name for name in _SOURCES if getattr(segment, name) is not None)


def check_targets(targets: Sequence[Target], calls: Iterable[Reply], tree: Any = None) -> None:
    """Check all targets of a record. Raises TargetError, which names the target by its number and kind."""
    replies = {call.key: call for call in calls}
    for number, target in enumerate(targets):
        try:
            _check_references(target, replies, tree)
        except TargetError as err:
            raise TargetError(f"targets[{number}] ({target.kind}): {err}") from None


def check_target(target: Target, calls: Iterable[Reply], tree: Any = None) -> None:
    """Check the shape of one target, and the calls and tree nodes that it refers to. Raises TargetError."""
    check_shape(target)
    _check_references(target, {call.key: call for call in calls}, tree)


def call_key(segment: Segment, tree: Any) -> str | None:
    """The key of the call whose reply a segment is, directly or through its tree node; None for other segments.

    Raises TargetError for a node that does not exist or has no call.
    """
    if segment.node is None:
        return segment.call
    node = next((node for node in tree or () if node.get("id") == segment.node), None)
    if node is None:
        raise TargetError(f"the trace has no tree node {segment.node}")
    if not node.get("call"):
        raise TargetError(f"the tree node {segment.node} has no call")
    return str(node["call"])


def _check_references(target: Target, replies: Mapping[str, Reply], tree: Any) -> None:
    for segment in (*target.segments, *(target.rejected or ())):
        reply = _reply_of(segment, replies, tree)
        if reply and not reply.text and (segment.learned or target.kind not in COMPOSED):
            raise TargetError(f"call {reply.key}: the reply is empty")
        if reply and reply.error and segment.learned and segment in target.segments:
            raise TargetError(
                f"the reply of call {reply.key} was refused ({reply.error}); refer to the reply that was used, whose "
                "key is answer.call.key"
            )
    if target.kind in COMPOSED and not any(_content(s, replies, tree) for s in target.segments if s.learned):
        raise TargetError("the learned text of an sft target is empty")
    if target.kind == "step" and target.rejected:
        _check_sides(target, target.rejected, replies, tree)


def _check_sides(target: Target, rejected: Sequence[Segment], replies: Mapping[str, Reply], tree: Any) -> None:
    """Both sides of a pair have content, and not the same."""
    shared = count_shared(target)
    sides = []
    for segments in (target.segments[shared:], rejected[shared:]):
        last = _reply_of(segments[-1], replies, tree)
        sides.append(("".join(_content(s, replies, tree) for s in segments), last.stop_ids if last else 0))
    if not sides[0][0] or not sides[1][0]:
        raise TargetError("a side of a step target is empty")
    if sides[0] == sides[1]:
        raise TargetError("chosen and rejected are the same text; make no pair of them")


def _content(segment: Segment, replies: Mapping[str, Reply], tree: Any) -> str:
    reply = _reply_of(segment, replies, tree)
    return reply.text if reply else segment.text or ""


def _reply_of(segment: Segment, replies: Mapping[str, Reply], tree: Any) -> Reply | None:
    """The call that a segment refers to; None for a literal text, and for a prompt, whose call must exist."""
    key = call_key(segment, tree) if segment.prompt is None else segment.prompt
    if key is None:
        return None
    if key not in replies:
        raise TargetError(f"a target refers to call {key}, which the trace does not have")
    return None if segment.prompt is not None else replies[key]
