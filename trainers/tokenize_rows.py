"""Targets to token ids: the engine's own ids where there are any, else rendered once with the student's template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentsys.models.plain import NotPlain, PlainEncoder
from agentsys.models.thinking import end_prompt
from agentsys.models.tokens import RolesRefused, TemplateRefused, group_system, template_pieces
from agentsys.targets import call_key, count_shared
from agentsys.text.thoughts import find_tags
from agentsys.traces import Call, Segment, Target, Trace
from agentsys.trainers.loading import TrainerError

IdsSource = Literal["engine", "rendered", "re-tokenized"]


class TokenizerMismatch(TrainerError):
    """The ids of a call are missing, or of another tokenizer than the student's."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a row; `learned` is 1 for tokens with loss, else 0."""

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


@dataclass(frozen=True, slots=True)
class SolutionTokens:
    """A solution in steps: ids of its prompt and all of its steps, and the position of the last id of each step.

    `begin` is the position of the first id of the first step.
    """

    ids: list[int]
    ends: list[int]
    begin: int


class RowTokenizer:
    """Tokenizes targets for one student: its tokenizer, its template, its end-of-turn token."""

    def __init__(self, tokenizer: Any, retokenize: bool = False) -> None:
        """`retokenize`: render the texts of calls whose ids the student cannot use.

        Raises TrainerError for a tokenizer without a usable chat template.
        """
        if not tokenizer.chat_template:
            raise TrainerError("the student's tokenizer has no chat template; take an instruct model's tokenizer")
        self.tokenizer = tokenizer
        self.retokenize = retokenize
        self.special = {name: getattr(tokenizer, name) or "" for name in ("bos_token", "eos_token")}
        self._plain = PlainEncoder(tokenizer.backend_tokenizer.to_str())
        self.end_of_turn = self._end_of_turn_id()
        self._turn_ends = {self.end_of_turn, tokenizer.eos_token_id}

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, in which "<|im_end|>" is not a special token. Raises TrainerError."""
        return self._encode_plain(text)[0]

    def _encode_plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        try:
            return self._plain.encode(text)
        except NotPlain as err:
            raise TrainerError(str(err)) from None

    @property
    def closes_thoughts(self) -> bool:
        """Whether the student's template opens a thought before each answer, which rows close at once."""
        pieces = self._template_pieces(("user",), end=False)
        return end_prompt(pieces[-1], find_tags(self.tokenizer.chat_template), None)[1]

    def tokenize_composed(self, target: Target, trace: Trace) -> Tokens:
        """Tokens of a composed target, tokenized once. The end-of-turn token after a learned answer is learned too."""
        messages = _messages(target.segments, trace)
        messages, pieces = self._with_template(messages)
        row = Tokens([], [], "rendered")
        for piece, (_, segments) in zip(pieces, messages, strict=True):
            row = row + self._template_tokens(piece, after=row) + self._content_tokens(segments)
        return row + Tokens([self.end_of_turn], [int(messages[-1][1][-1].learned)], "rendered")

    def tokenize_role(self, target: Target, trace: Trace) -> Tokens:
        """Tokens of one call of a role: its prompt, masked, and its reply."""
        prompt, reply = target.segments
        prompt_ids, prompt_source = self._prompt_ids(_call(trace, prompt.prompt), trace)
        reply_ids, reply_source = self._reply_ids(_call(trace, reply.call), trace, last=True)
        learned = [0] * len(prompt_ids) + [1] * len(reply_ids)
        return Tokens(prompt_ids + reply_ids, learned, _join_sources(prompt_source, reply_source))

    def tokenize_step(self, target: Target, trace: Trace) -> StepTokens:
        """Tokens of a preference pair, whose prefix is the segments that both sides share.

        Literal text, which no engine wrote, is encoded on its own. A step is followed by an end-of-turn token only
        where the engine wrote one.
        """
        shared = count_shared(target)
        first = target.segments[shared]
        prompt, *sources = self._join_pieces(target.segments[:shared], trace, last=False, following=first)
        chosen, *more = self._join_pieces(target.segments[shared:], trace, last=True)
        rejected, *rest = self._join_pieces((target.rejected or ())[shared:], trace, last=True)
        if not chosen or not rejected:
            raise TrainerError(f"record {trace.id}: a side of a step target is empty")
        return StepTokens(prompt, chosen, rejected, _join_sources(*sources, *more, *rest))

    def tokenize_prm(self, target: Target, trace: Trace) -> SolutionTokens:
        """Tokens of a solution whose steps are calls, each of which continues the exact ids of the one before.

        The last id of a step is the last one that the engine wrote, also where that is the string that ended the step
        ("Step 2"), which the next step continues. An end-of-turn token is no part of a step. Raises TrainerError if the
        calls do not continue each other, TokenizerMismatch without the ids of this tokenizer.
        """
        ids: list[int] = []
        ends: list[int] = []
        begin = 0
        for segment in target.segments[1:]:
            call = _call(trace, call_key(segment, trace.tree))
            if self._count_text_ids(call, trace) is None or call.prompt_ids is None or call.ids is None:
                raise TrainerError(
                    f"record {trace.id}: prm rows need the engine's ids, which cannot be made from texts"
                )
            if ids and call.prompt_ids != ids:
                raise TrainerError(f"record {trace.id}: call {call.key} does not continue the step before it")
            begin = begin or len(call.prompt_ids)
            ids = [*call.prompt_ids, *_continued_ids(call)]
            ends.append(len(ids) - 1)
        return SolutionTokens(ids, ends, begin)

    def _join_pieces(
        self, segments: Sequence[Segment], trace: Trace, *, last: bool, following: Segment | None = None
    ) -> tuple[list[int], IdsSource]:
        ids: list[int] = []
        sources: list[IdsSource] = []
        for segment, after in zip(segments, [*segments[1:], following], strict=True):
            piece, source = self._piece_ids(segment, trace, after, last=last and after is None)
            ids += piece
            sources.append(source)
        return ids, _join_sources(*sources)

    def _piece_ids(
        self, segment: Segment, trace: Trace, after: Segment | None, *, last: bool
    ) -> tuple[list[int], IdsSource]:
        if segment.text is not None:
            return self.encode(segment.text), "rendered"
        if segment.prompt is not None:
            return self._prompt_ids(_call(trace, segment.prompt), trace)
        call = _call(trace, call_key(segment, trace.tree))
        ids, source = self._reply_ids(call, trace, last=last)
        if after is not None and (key := call_key(after, trace.tree)) and source == "engine":
            # The next step continues this one, also the ids of the string that ended it ("Step 2").
            continued = _continued_ids(call)
            if _call(trace, key).prompt_ids == [*(call.prompt_ids or ()), *continued]:
                return continued, source
        return ids, source

    def _prompt_ids(self, call: Call, trace: Trace) -> tuple[list[int], IdsSource]:
        if call.prompt_ids is not None and (self._ids_match(call) or self._count_text_ids(call, trace) is not None):
            return call.prompt_ids, "engine"
        prefix = ""
        messages = [(message["role"], [_Piece(str(message["content"]), False)]) for message in call.messages]
        if messages[-1][0] == "assistant":  # the beginning of the answer, given by the prompt
            prefix = messages.pop()[1][0].text
        messages, pieces = self._with_template([*messages, ("assistant", [])])
        ids = self._encode_template(pieces[0])
        for (_, contents), piece in zip(messages[:-1], pieces[1:], strict=True):
            ids = ids + self.encode("".join(part.text for part in contents)) + self._encode_template(piece)
        return ids + self.encode(prefix), "re-tokenized"

    def _reply_ids(self, call: Call, trace: Trace, *, last: bool) -> tuple[list[int], IdsSource]:
        """The reply of a call without a stop string; with its end-of-turn token, if there is one and it is `last`.

        The engine's own ids begin with the thought, if the model thought.
        """
        count = self._count_text_ids(call, trace)
        if count is not None and call.ids is not None:
            end = call.ids[count:] if last and set(call.ids[count:]) <= self._turn_ends else []
            return [*(call.reasoning_ids or ()), *call.ids[:count], *end], "engine"
        stopped = call.finish == "stop" and not call.sampling.get("stop")  # a stop string does not end the turn
        return self.encode(call.text) + ([self.end_of_turn] if last and stopped else []), "re-tokenized"

    def _count_text_ids(self, call: Call, trace: Trace) -> int | None:
        """How many ids of a call are its text; None to re-tokenize. Raises TokenizerMismatch, TrainerError."""
        where = f"record {trace.id}, call {call.key}"
        if not call.text:
            raise TrainerError(f"{where}: the reply is empty")
        if call.ids is None or call.prompt_ids is None:
            reason = f"{where}: the server returned no token ids"
        elif (count := self._match_text(call.ids, call.stop_ids, call.text)) is not None:
            return count
        else:
            reason = f"{where}: its ids, from {call.model}, are another tokenizer's"
        if not self.retokenize:
            raise TokenizerMismatch(
                f"{reason}; --retokenize makes rows from the texts, or name a student of that family"
            )
        return None

    def _ids_match(self, call: Call) -> bool:
        """Whether the decoded ids begin with the text, which may end at a stop string inside a token."""
        return bool(call.text and call.ids) and self.tokenizer.decode(call.ids).startswith(call.text.rstrip("\ufffd"))

    def _match_text(self, ids: list[int], stop_ids: int, text: str) -> int | None:
        """How many ids decode to the text: all but the stop ids, or fewer if a stop string was removed."""
        text = text.rstrip("\ufffd")  # the token limit may split a character
        for count in range(len(ids) - stop_ids, 0, -1):
            decoded = self.tokenizer.decode(ids[:count]).rstrip("\ufffd")
            if decoded == text:
                return count
            if not decoded.startswith(text):
                return None
        return None

    def _with_template(self, messages: list[_Message]) -> tuple[list[_Message], tuple[str, ...]]:
        """The messages and the template's text before each; the last one is the answer.

        A template without a system role gets system texts in the next user message.
        """
        roles = tuple(role for role, _ in messages[:-1])
        try:
            return messages, self._template_pieces(roles)
        except RolesRefused as err:
            if "system" not in roles:
                raise TrainerError(f"the student's chat template cannot be used: {err}") from None
            merged = [(role, _join_pieces(messages, numbers)) for role, numbers in group_system(roles)]
            return [*merged, messages[-1]], self._template_pieces(tuple(role for role, _ in merged))

    def _template_pieces(self, roles: tuple[str, ...], *, end: bool = True) -> tuple[str, ...]:
        """The template's text around messages; with `end`, a thought that it opens is closed: rows have the answer.

        Raises TrainerError, RolesRefused.
        """
        template = self.tokenizer.chat_template
        try:
            pieces = template_pieces(template, roles, **self.special)
        except RolesRefused:
            raise
        except TemplateRefused as err:
            raise TrainerError(f"the student's chat template cannot be used: {err}") from None
        tags = find_tags(template)
        if end and end_prompt(pieces[-1], tags, None)[1]:
            pieces = (*pieces[:-1], end_prompt(pieces[-1], tags, "off")[0])
        return pieces

    def _encode_template(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _template_tokens(self, piece: str, after: Tokens) -> Tokens:
        """Tokens of the template's text; the end-of-turn token of an earlier learned message is learned."""
        ids = self._encode_template(piece)
        learned = [0] * len(ids)
        if after.learned and after.learned[-1] and ids and ids[0] in self._turn_ends:
            learned[0] = 1
        return Tokens(ids, learned, "rendered")

    def _content_tokens(self, segments: Sequence[_Piece]) -> Tokens:
        """Tokens of one message, tokenized as a whole; a token is learned if it begins in a learned segment."""
        text = "".join(segment.text for segment in segments)
        ids, offsets = self._encode_plain(text)
        start, spans = 0, []
        for segment in segments:
            spans.append((start, start := start + len(segment.text), segment.learned))
        learned = [int(next((learn for begin, end, learn in spans if begin <= at < end), False)) for at, _ in offsets]
        return Tokens(ids, learned, "rendered")

    def _end_of_turn_id(self) -> int:
        """The first special token of the template after an assistant message, else the end-of-sequence token."""
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        after = self._encode_template(self._template_pieces(("user", "assistant"), end=False)[-1])
        return next((i for i in after if i in special), self.tokenizer.eos_token_id)


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    learned: bool


_Message = tuple[str, list[_Piece]]


def _join_pieces(messages: Sequence[_Message], numbers: Sequence[int]) -> list[_Piece]:
    """The pieces of several messages, with a blank line between two."""
    first, *others = (messages[number][1] for number in numbers)
    return [*first, *(piece for pieces in others for piece in (_Piece("\n\n", False), *pieces))]


def _join_sources(*sources: IdsSource) -> IdsSource:
    """`engine` if all pieces are the engine's, else the first other source."""
    return next((source for source in sources if source != "engine"), "engine")


def _messages(segments: Sequence[Segment], trace: Trace) -> list[_Message]:
    """Messages of (role, pieces): adjacent segments of one role are one message."""
    messages: list[_Message] = []
    for segment in segments:
        text = segment.text if segment.text is not None else _call(trace, call_key(segment, trace.tree)).text
        if not messages or messages[-1][0] != segment.role:
            messages.append((segment.role, []))
        messages[-1][1].append(_Piece(text, segment.learned))
    return messages


def _call(trace: Trace, key: str | None) -> Call:
    call = next((call for call in trace.calls if call.key == key), None)
    if call is None:
        raise TrainerError(f"record {trace.id}: a target refers to call {key}, which the trace does not have")
    return call


def lineage(target: Target, trace: Trace) -> dict[str, Any]:
    """The origin of a row: trace, run, and the role, model, prompt and sampling of each call that it refers to."""
    keys = {
        segment.prompt or call_key(segment, trace.tree)
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
        "calls": [_call_lineage(call) for call in calls],
    }


def _call_lineage(call: Call) -> Mapping[str, Any]:
    names = ("key", "role", "model", "revision", "prompt_sha256", "sampling", "seed")
    return {name: getattr(call, name) for name in names}


def _continued_ids(call: Call) -> list[int]:
    """The ids of a reply that another call can continue: all but the end of the turn."""
    ids = call.ids or []
    return ids[: len(ids) - call.stop_ids]
