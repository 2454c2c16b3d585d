"""Reasoning models: thinking on, off or within a budget, and thought and answer of a reply told apart.

In token mode the prompt decides whether the model thinks: by the template's variables, and by a thought that the prompt
opens or closes. In chat mode the server's template does, through `chat_template_kwargs`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentsys.models.tokens import RolesRefused, Tokenizer, merge_system, render, template_variables
from agentsys.models.wire import Reply, Request, chat_variables
from agentsys.text.thoughts import HARMONY, Tags, find_tags, may_begin_thought, split_thought

Send = Callable[[Request], Awaitable[Reply]]


def prompt_variables(template: str, thinking: str | int | None) -> dict[str, Any]:
    """The template's own variables that switch thinking; none for None, where the template's default holds."""
    if thinking is None:
        return {}
    names = template_variables(template)
    return {name: value for name, value in chat_variables(thinking).items() if name in names}


def end_prompt(text: str, tags: Tags | None, thinking: str | int | None) -> tuple[str, bool]:
    """The end of a rendered prompt with the thought opened or closed, and whether a thought is open.

    Where the template has no switch, an empty thought at the beginning of the answer switches thinking off.
    """
    if tags is None:
        return text, False
    end = text.rstrip()
    is_open = end.endswith(tags.open)
    is_closed = end.endswith((tags.close, tags.no_thought.rstrip()))
    if thinking == "off" and is_open:
        return end.removesuffix(tags.open) + tags.no_thought, False
    if thinking == "off" and not is_closed:
        return text + tags.no_thought, False
    if thinking not in (None, "off") and not is_open and not is_closed:
        return text + tags.open + ("" if tags is HARMONY else "\n"), True
    return text, is_open


async def render_prompt(tokenizer: Tokenizer, request: Request, *, answer_begins: bool = False) -> Request:
    """The request with the ids of its prompt, which may open or close a thought.

    A template without a system role gets system texts in the next user message. With `answer_begins` the model does not
    think. Raises TemplateRefused, NotPlain, ModelError.
    """
    tags = find_tags(tokenizer.template)
    setting = "off" if answer_begins else request.sampling.get("thinking")
    extra = (request.sampling.get("extra") or {}).get("chat_template_kwargs")
    variables = prompt_variables(tokenizer.template, setting) | (extra if isinstance(extra, dict) else {})
    opened = False

    def end(text: str) -> str:
        nonlocal opened
        text, opened = end_prompt(text, tags, setting)
        return text

    messages = request.messages
    try:
        ids = await render(tokenizer, messages, variables, end)
    except RolesRefused:
        if not any(message["role"] == "system" for message in messages):
            raise
        messages = merge_system(messages)
        ids = await render(tokenizer, messages, variables, end)
    is_merged = messages is not request.messages
    return replace(request, messages=messages, prompt_ids=ids, opened=tags if opened else None, is_merged=is_merged)


async def split_reply(
    reply: Reply,
    messages: Sequence[Mapping[str, Any]],
    opened: Tags | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Move the thought of a reply, with its ids and log-probabilities, into the fields for it."""

    def mentions(tag: str) -> bool:
        return any(tag in str(message["content"]) for message in messages)

    text = reply.text
    decoded: str | None = None
    tags = opened or (find_tags(tokenizer.template) if tokenizer else None)
    if tags is not None and tokenizer is not None and reply.ids:
        decoded = await tokenizer.decode(reply.ids[: len(reply.ids) - reply.stop_ids])
        if any(tag in decoded and tag not in text for tag in _marks(tags)):
            text = decoded  # the tags are special tokens, which the server leaves out of the text
    split = split_thought(text, opened, mentions)
    if split.thought is None and not reply.reasoning:
        reply.token_texts = None
        return
    reply.text = text[split.start : split.end]
    reply.reasoning = reply.reasoning or split.thought or None
    if reply.ids and tokenizer is not None:
        if decoded is None:
            decoded = await tokenizer.decode(reply.ids[: len(reply.ids) - reply.stop_ids])
        is_same = split.thought is not None and decoded.startswith(text[: split.start])
        start = split.start if is_same else decoded.rfind(reply.text)
        await _split_ids(reply, decoded, start, tokenizer)
    elif reply.ids or reply.logprobs:
        _split_by_texts(reply)
    reply.token_texts = None


class AnswerStream:
    """The answer's text from the pieces of a stream, without the thought before it.

    Where the tags are special tokens, which may be missing in the text, the answer comes as a whole at the end.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self._opened = request.opened
        self._is_held = request.opened is HARMONY or bool(tokenizer and find_tags(tokenizer.template) is HARMONY)
        self._text = ""
        self._answers = False

    def add(self, piece: str) -> str:
        """The text of the answer that a piece adds, as far as it is certain."""
        if self._is_held:
            return ""
        if self._answers:
            return piece
        self._text += piece
        if self._opened is None and not may_begin_thought(self._text):
            self._answers = True
            return self._text
        return ""

    def rest(self, answer: str) -> str:
        """The whole answer, if the stream has shown nothing of it."""
        return "" if self._answers else answer


def _marks(tags: Tags) -> tuple[str, ...]:
    return ("<|channel|>", "<|message|>") if tags is HARMONY else (tags.open, tags.close)


async def _split_ids(reply: Reply, decoded: str, start: int, tokenizer: Tokenizer) -> None:
    """Divide the ids where the answer starts; leave them out if a token spans both."""
    assert reply.ids is not None
    count = len(reply.ids) if not reply.text else await _count_tokens(reply.ids, start, tokenizer)
    if start >= 0 and reply.text and len(await tokenizer.decode(reply.ids[:count])) != start:
        count = -1
    _divide(reply, count if start >= 0 else -1)


async def _count_tokens(ids: Sequence[int], length: int, tokenizer: Tokenizer) -> int:
    """The smallest number of first tokens that decode to at least `length` characters."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(await tokenizer.decode(list(ids[:middle]))) < length:
            low = middle + 1
        else:
            high = middle
    return low


def _split_by_texts(reply: Reply) -> None:
    """Divide log-probabilities by the texts of the tokens, where the server returns no ids."""
    texts = reply.token_texts or []
    count = next((i for i in range(len(texts), -1, -1) if "".join(texts[i:]).strip() == reply.text.strip()), -1)
    _divide(reply, -1 if reply.ids or not texts else count)


def _divide(reply: Reply, count: int) -> None:
    """Move the first `count` tokens to the thought; -1: the tokens cannot be divided, and are left out."""
    if count < 0:
        reply.ids = reply.logprobs = reply.top_logprobs = reply.top_ids = reply.top_tokens = None
        reply.stop_ids = 0
        reply.measured["left_out"] = "token ids and log-probabilities, which do not show where the thought ends"
        return
    if reply.ids is not None:
        reply.reasoning_ids, reply.ids = reply.ids[:count], reply.ids[count:]
        reply.stop_ids = min(reply.stop_ids, len(reply.ids))
    if reply.logprobs is not None:
        reply.reasoning_logprobs, reply.logprobs = reply.logprobs[:count], reply.logprobs[count:]
    for name in ("top_logprobs", "top_ids", "top_tokens"):
        if (rows := getattr(reply, name)) is not None:
            setattr(reply, name, rows[count:])


def needs_two_requests(request: Request) -> bool:
    """Whether the thought must be requested on its own: a schema or a stop string is for the answer only."""
    setting = request.sampling.get("thinking")
    return request.opened is not None and (
        request.schema is not None or bool(request.sampling.get("stop")) or isinstance(setting, int)
    )


async def think_then_answer(request: Request, dialect: str, tokenizer: Tokenizer, send: Send) -> Reply:
    """The thought, of at most the budget's tokens, and then the answer, in two requests of token mode.

    A thought that is cut off at its budget is ended. One that uses all of `max_tokens` is a truncated reply.
    """
    tags = request.opened
    assert tags is not None and request.prompt_ids is not None
    limit = int(request.sampling["max_tokens"])
    setting = request.sampling.get("thinking")
    budget = min(limit, setting) if isinstance(setting, int) else limit
    thought = await send(_thought_request(request, tags, budget, dialect, await _single_id(tags, tokenizer)))
    ids = thought.reasoning_ids or []
    decoded = await tokenizer.decode(ids)
    end = decoded.find(tags.close)
    is_cut_off = thought.finish == "length" and end < 0
    kept = ids[: await _count_tokens(ids, end, tokenizer)] if end >= 0 else ids[: len(ids) - _ended(ids, tokenizer)]
    ending = await tokenizer.encode(tags.end if end >= 0 else f"\n{tags.end}", special=True)
    if (is_cut_off and budget == limit) or limit <= len(kept):
        return replace(thought, finish="length")
    sampling = {**request.sampling, "max_tokens": limit - len(kept)}
    start = [*request.prompt_ids, *kept, *ending]
    answer = await send(replace(request, sampling=sampling, prompt_ids=start, opened=None))
    logprobs = (thought.reasoning_logprobs or [])[: len(kept)]
    return replace(
        answer,
        prompt_ids=request.prompt_ids,
        prompt_tokens=thought.prompt_tokens,
        completion_tokens=len(kept) + answer.completion_tokens,
        reasoning=thought.reasoning,
        reasoning_ids=kept + ending,
        reasoning_logprobs=[*logprobs, *[0.0] * len(ending)] if len(logprobs) == len(kept) else None,
        cached_tokens=thought.cached_tokens,
        measured=_sum_measured(thought.measured, answer.measured),
    )


def _thought_request(request: Request, tags: Tags, budget: int, dialect: str, close_id: int | None) -> Request:
    sampling = {**request.sampling, "max_tokens": budget, "stop": [tags.close]}
    if dialect == "vllm" and close_id is not None:  # a stop string does not match a token that the text leaves out
        sampling["extra"] = {**(request.sampling.get("extra") or {}), "stop_token_ids": [close_id]}
        del sampling["stop"]
    return replace(request, sampling=sampling, schema=None)


async def _single_id(tags: Tags, tokenizer: Tokenizer) -> int | None:
    ids = await tokenizer.encode(tags.close, special=True)
    return ids[0] if len(ids) == 1 else None


def _ended(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """1 if the model ended its turn inside the thought, else 0."""
    return int(bool(ids) and ids[-1] in tokenizer.stop_ids)


def _sum_measured(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    measured = {**second, **{name: value for name, value in first.items() if name not in second}}
    for name in ("seconds", "queued_seconds", "retries", "prompt_seconds", "generation_seconds"):
        if name in first and name in second:
            measured[name] = round(first[name] + second[name], 4)
    return measured
