"""From a target to token ids: exact where an engine wrote them, rendered once with the student's template elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentsys.models.tokens import TemplateRefused, template_pieces
from agentsys.traces import Call, Segment, Target, Trace
from agentsys.trainers.loading import TrainerError

IdsSource = Literal["engine", "rendered", "re-tokenized"]


class OtherTokenizer(TrainerError):
    """The ids of a call are not of the student's tokenizer, or the server told none."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a row's text; `learned` marks (1) those that carry loss."""

    ids: list[int]
    learned: list[int]
    source: IdsSource

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.ids + other.ids, self.learned + other.learned, self.source)


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The common prefix of a preference pair and its two continuations."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    source: IdsSource


class RowTokenizer:
    """Cuts the rows of one student: its tokenizer, its template, its end of a turn."""

    def __init__(self, tokenizer: Any, retokenize: bool = False) -> None:
        """`retokenize`: render the texts of calls whose ids the student cannot use. Raises TrainerError."""
        if not tokenizer.chat_template:
            raise TrainerError("the student's tokenizer has no chat template; take an instruct model's tokenizer")
        self.tokenizer = tokenizer
        self.retokenize = retokenize
        self.special = {name: getattr(tokenizer, name) or "" for name in ("bos_token", "eos_token")}
        self.end_of_turn = self._end_of_turn_id()
        self._turn_ends = {self.end_of_turn, tokenizer.eos_token_id}

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of data: "<|im_end|>" in it stays the plain text that it is."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def composed(self, target: Target, trace: Trace) -> Tokens:
        """A composed target, tokenized once. The end-of-turn token after a learned answer is learned too."""
        messages = _messages(target.segments, trace)
        roles = tuple(role for role, _ in messages)
        if roles[-1] != "assistant":
            raise TrainerError(f"record {trace.id}: an sft target ends with the assistant's message")
        between = self._pieces(roles[:-1])
        row = Tokens([], [], "rendered")
        for piece, (_, segments) in zip(between, messages, strict=True):
            row = row + self._template(piece, after=row) + self._content(segments)
        return row + Tokens([self.end_of_turn], [int(messages[-1][1][-1].learned)], "rendered")

    def role(self, target: Target, trace: Trace) -> Tokens:
        """One call of a role: what the engine was sent, masked, and what it wrote."""
        if len(target.segments) != 2:
            raise TrainerError(f"record {trace.id}: a role target is what a call was sent and what it wrote")
        prompt, reply = target.segments
        sent, before = self._sent(_call(trace, prompt.prompt), trace)
        written, after = self._written(_call(trace, reply.call), trace, last=True)
        return Tokens(sent + written, [0] * len(sent) + [1] * len(written), _one_source(before, after))

    def step(self, target: Target, trace: Trace) -> StepTokens:
        """A preference pair: segments that both sides share are the prefix.

        Literal text, which no engine wrote, is encoded on its own. No end-of-turn token follows a step unless the
        engine itself wrote one there.
        """
        if not target.rejected:
            raise TrainerError(f"record {trace.id}: a step target without a rejected side")
        pairs = zip(target.segments, target.rejected, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
        if shared == 0:
            raise TrainerError(f"record {trace.id}: the two sides of a step target share no prefix, or all of it")
        prompt, *sources = self._exact(target.segments[:shared], trace, last=False)
        chosen, *more = self._exact(target.segments[shared:], trace, last=True)
        rejected, *rest = self._exact(target.rejected[shared:], trace, last=True)
        if not chosen or not rejected:
            raise TrainerError(f"record {trace.id}: a side of a step target is empty")
        return StepTokens(prompt, chosen, rejected, _one_source(*sources, *more, *rest))

    def _exact(self, segments: Sequence[Segment], trace: Trace, *, last: bool) -> tuple[list[int], IdsSource]:
        ids: list[int] = []
        sources: list[IdsSource] = []
        for i, segment in enumerate(segments):
            piece, source = self._piece(segment, trace, last=last and i == len(segments) - 1)
            ids += piece
            sources.append(source)
        return ids, _one_source(*sources)

    def _piece(self, segment: Segment, trace: Trace, *, last: bool) -> tuple[list[int], IdsSource]:
        if segment.text is not None:
            return self.encode(segment.text), "rendered"
        if segment.prompt is not None:
            return self._sent(_call(trace, segment.prompt), trace)
        return self._written(_call(trace, _call_key(segment, trace)), trace, last=last)

    def _sent(self, call: Call, trace: Trace) -> tuple[list[int], IdsSource]:
        if call.prompt_ids is not None and (self._spelt(call) or self._kept(call, trace) is not None):
            return call.prompt_ids, "engine"
        *told, last = call.messages
        begun = str(last["content"]) if last["role"] == "assistant" else ""  # an answer that the prompt had begun
        told = told if last["role"] == "assistant" else call.messages
        pieces = self._pieces(tuple(message["role"] for message in told))
        ids = self._special(pieces[0])
        for message, piece in zip(told, pieces[1:], strict=True):
            ids = ids + self.encode(str(message["content"])) + self._special(piece)
        return ids + self.encode(begun), "re-tokenized"

    def _written(self, call: Call, trace: Trace, *, last: bool) -> tuple[list[int], IdsSource]:
        """What a call wrote, without a stop string; with the end of the turn only where the turn ended and `last`."""
        kept = self._kept(call, trace)
        if kept is not None and call.ids is not None:
            ended = call.ids[kept:] if last and set(call.ids[kept:]) <= self._turn_ends else []
            return call.ids[:kept] + ended, "engine"
        stopped = call.finish == "stop" and not call.sampling.get("stop")  # a stop string does not end the turn
        return self.encode(call.text) + ([self.end_of_turn] if last and stopped else []), "re-tokenized"

    def _kept(self, call: Call, trace: Trace) -> int | None:
        """How many of the call's ids are its text; None to re-tokenize. Raises OtherTokenizer, TrainerError."""
        where = f"record {trace.id}, call {call.key}"
        if not call.text:
            raise TrainerError(f"{where}: an empty reply")
        if call.ids is None or call.prompt_ids is None:
            reason = f"{where}: the server told no token ids"
        elif (kept := self._text_ids(call.ids, call.stop_ids, call.text)) is not None:
            return kept
        else:
            reason = f"{where}: its ids, written by {call.model}, are another tokenizer's"
        if not self.retokenize:
            raise OtherTokenizer(f"{reason}; --retokenize makes rows from the texts, or name a student of that family")
        return None

    def _spelt(self, call: Call) -> bool:
        """Whether the ids begin with the text: a stop string may be cut off the text in the middle of a token."""
        return bool(call.text and call.ids) and self.tokenizer.decode(call.ids).startswith(call.text.rstrip("\ufffd"))

    def _text_ids(self, ids: list[int], stop_ids: int, text: str) -> int | None:
        """How many ids decode to the text: all but the stop ids, or fewer where a stop string was cut off the text."""
        wanted = text.rstrip("\ufffd")  # a limit may cut a character in two
        for kept in range(len(ids) - stop_ids, 0, -1):
            found = self.tokenizer.decode(ids[:kept]).rstrip("\ufffd")
            if found == wanted:
                return kept
            if not found.startswith(wanted):
                return None
        return None

    def _pieces(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return template_pieces(self.tokenizer.chat_template, roles, **self.special)
        except TemplateRefused as err:
            raise TrainerError(f"the student's chat template cannot be used: {err}") from None

    def _special(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _template(self, piece: str, after: Tokens) -> Tokens:
        """The template's own text; the end of an earlier learned message is learned."""
        ids = self._special(piece)
        learned = [0] * len(ids)
        if after.learned and after.learned[-1] and ids and ids[0] in self._turn_ends:
            learned[0] = 1
        return Tokens(ids, learned, "rendered")

    def _content(self, segments: Sequence[_Piece]) -> Tokens:
        """One message, tokenized in one go; a token is learned if it begins in a learned segment."""
        text = "".join(segment.text for segment in segments)
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        starts, flags = 0, []
        for segment in segments:
            flags.append((starts, starts := starts + len(segment.text), segment.learned))
        learned = [
            int(next((learn for begin, end, learn in flags if begin <= at < end), False))
            for at, _ in encoded.offset_mapping
        ]
        return Tokens(list(encoded.input_ids), learned, "rendered")

    def _end_of_turn_id(self) -> int:
        """The first special token that the template writes after an assistant's message, else the tokenizer's own."""
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        after = self._special(self._pieces(("user", "assistant"))[-1])
        return next((i for i in after if i in special), self.tokenizer.eos_token_id)


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    learned: bool


def _one_source(*sources: IdsSource) -> IdsSource:
    """`engine` only if all pieces are."""
    return next((source for source in sources if source != "engine"), "engine")


def _messages(segments: Sequence[Segment], trace: Trace) -> list[tuple[str, list[_Piece]]]:
    """Neighbouring segments of one role as one message."""
    messages: list[tuple[str, list[_Piece]]] = []
    for segment in segments:
        if segment.prompt is not None:
            raise TrainerError(f"record {trace.id}: an sft target is composed of texts, not of what a call was sent")
        text = segment.text if segment.text is not None else _call(trace, _call_key(segment, trace)).text
        if not messages or messages[-1][0] != segment.role:
            messages.append((segment.role, []))
        messages[-1][1].append(_Piece(text, segment.learned))
    return messages


def _call_key(segment: Segment, trace: Trace) -> str | None:
    """The key of the call that a segment points at, directly or through its tree node."""
    if segment.node is None:
        return segment.call
    node = next((node for node in trace.tree or () if node.get("id") == segment.node), None)
    if node is None:
        raise TrainerError(f"record {trace.id}: no tree node {segment.node}")
    return str(node.get("call"))


def _call(trace: Trace, key: str | None) -> Call:
    call = next((call for call in trace.calls if call.key == key), None)
    if call is None:
        raise TrainerError(f"record {trace.id}: a target points at call {key}, which the trace does not have")
    return call


def lineage(target: Target, trace: Trace) -> dict[str, Any]:
    """Where a row came from: trace, run, and for each call that it points at the role, model, prompt and sampling."""
    keys = {
        segment.prompt or _call_key(segment, trace)
        for segment in (*target.segments, *(target.rejected or ()))
        if segment.text is None
    }
    calls = [call for call in trace.calls if call.key in keys]
    return {
        "trace": trace.id,
        "run": trace.run,
        "system": trace.system,
        "source": trace.source,
        "nodes": [s.node for s in (*target.segments, *(target.rejected or ())) if s.node is not None],
        "calls": [_written_by(call) for call in calls],
    }


def _written_by(call: Call) -> Mapping[str, Any]:
    names = ("key", "role", "model", "revision", "prompt_sha256", "sampling", "seed")
    return {name: getattr(call, name) for name in names}
