"""Sample answers to prompts of token ids from a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from agentsys.commands import knob


@dataclass(frozen=True)
class SamplingOptions:
    """Sampling of answers."""

    panel: ClassVar[str] = "Sampling"
    temperature: float = knob(1.0, "sampling temperature; 0 is greedy")
    top_p: float = knob(1.0, "nucleus sampling: probability mass of the likeliest tokens that are sampled from")
    answer_tokens: int = knob(256, "maximum answer length, in tokens")
    sample_batch: int = knob(16, "prompts per batch")


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions, seed: int = 0
) -> list[list[int]]:
    """One answer per prompt, as ids, with the end token and without padding.

    Prompts of similar length are batched together. The same seed gives the same answers on the same machine.
    """
    import torch
    from rich.progress import track

    from agentsys.console import Console

    torch.manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[at : at + sampling.sample_batch] for at in range(0, len(order), sampling.sample_batch)]
    answers: dict[int, list[int]] = {}
    console = Console(stderr=True)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    for batch in track(batches, "generating", console=console, disable=not console.is_terminal):
        answers |= zip(batch, _answer_batch(model, tokenizer, [prompts[i] for i in batch], sampling), strict=True)
    return [answers[i] for i in range(len(prompts))]


def _answer_batch(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: SamplingOptions
) -> list[list[int]]:
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    real = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # padded on the left, so that all answers begin at the same position
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        real[i, longest - len(prompt) :] = 1
    settings: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        settings = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    padding = range(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    with torch.inference_mode():
        full = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=real.to(model.device),
            max_new_tokens=sampling.answer_tokens,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=list(padding) or None,  # padding rows of the head have no token
            repetition_penalty=1.0,  # the model's default would change the distribution that is scored
            **settings,
        )
    end_ids = _end_ids(model, tokenizer)
    return [_truncate_after_end(answer, end_ids) for answer in full[:, longest:].tolist()]


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    configured = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}


def _truncate_after_end(answer: list[int], end_ids: set[int]) -> list[int]:
    for place, token in enumerate(answer):
        if token in end_ids:
            return answer[: place + 1]
    return answer
