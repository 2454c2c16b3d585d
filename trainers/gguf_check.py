"""Compare a GGUF file in llama.cpp with the transformers folder that it was made from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agentsys.trainers.gguf_file import WeightType
from agentsys.trainers.loading import TrainerError, load_causal_lm, load_tokenizer

BOUNDS: Final[dict[WeightType, float]] = {"f32": 0.01, "f16": 0.01, "q8_0": 0.05}
"""The largest difference of a probability (0-1) that is allowed.

Even f32 files differ, because llama.cpp's attention computes in fp16: 0.003 with Qwen2.5-Coder-0.5B (f16 0.003, q8_0
0.015). Without attention in fp16, tiny models agree to 1e-6. A wrong head of a tiny model gave 0.6.
"""

TOP: Final = 20
"""Tokens compared at each position: the likeliest of each side."""

POSITIONS: Final = 24

CHECK_TEXT: Final = (  # begins with a letter: see _engine_probabilities
    "The lamplighter's 1,204 steps weren't counted;  nobody asks\ttwice.\n\n"
    "他把旧信折成一只船,放进了雨里。¿Y después? 12 años de silencio… 🌧️🚢\n"
    "def walk(n: int) -> str:\n    return 'n' * n  # naïve\n"
    "In the end the river kept what it had been given, and the town kept quiet about the river."
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Number of compared positions, and the largest difference of a probability (0-1)."""

    positions: int
    difference: float


def compare(folder: Path, gguf: Path) -> Agreement:
    """Compare tokens and next-token probabilities of the folder (transformers, fp32) and the file (llama.cpp).

    Raises TrainerError if llama.cpp cannot load the file, or splits the text into other tokens.
    """
    import torch

    ids = load_tokenizer(str(folder))(CHECK_TEXT, add_special_tokens=False).input_ids
    positions = sorted({round(1 + i * (len(ids) - 1) / (POSITIONS - 1)) for i in range(POSITIONS)})
    likeliest = asyncio.run(_engine_probabilities(gguf, ids, positions))
    with torch.no_grad():
        logits = load_causal_lm(str(folder))(torch.tensor([ids])).logits[0]
    expected = logits.float().softmax(-1)
    return Agreement(
        len(positions),
        max(_difference(expected[n - 1], likely) for n, likely in zip(positions, likeliest, strict=True)),
    )


def _difference(expected: Any, likely: dict[int, float]) -> float:
    """The largest difference over the likeliest tokens of both sides."""
    least = min(likely.values())  # the most that a token which llama.cpp leaves out can have
    differences = [abs(float(expected[token]) - value) for token, value in likely.items()]
    for value, token in zip(*(part.tolist() for part in expected.topk(min(TOP, len(expected)))), strict=True):
        if token not in likely:
            differences.append(max(0.0, value - least))
    return max(differences)


async def _engine_probabilities(gguf: Path, ids: list[int], positions: list[int]) -> list[dict[int, float]]:
    """For each position n: llama.cpp's likeliest tokens after the first n ids, with their probabilities."""
    from math import exp

    from agentsys.models.embedded import EmbeddedEngine

    engine = EmbeddedEngine(str(gguf), slots=1, context=1024)
    try:
        try:
            served = await engine.serve()
        except RuntimeError as err:
            raise TrainerError(f"llama.cpp cannot check the file: {' '.join(str(err).split())}") from None
        assert served.tokenizer is not None, "llama.cpp always gives its tokenizer"
        others = await served.tokenizer.encode(CHECK_TEXT, special=False)
        if others != ids:
            first = next((i for i, (a, b) in enumerate(zip(others, ids, strict=False)) if a != b), "the end")
            raise TrainerError(f"llama.cpp splits the test text into other tokens than the folder, from token {first}")
        rows = []
        for n in positions:
            # Force a plain token: llama.cpp returns no probabilities with a stop token or a partial character. The
            # returned probabilities are the model's, before any bias.
            forced = {"logit_bias": [[ids[0], 1000.0]], "temperature": 0}
            body = {"prompt": ids[:n], "n_predict": 1, "n_probs": TOP, "cache_prompt": True, **forced}
            answer = await served.endpoint.post("/completion", body)
            entries = answer["completion_probabilities"][0]["top_logprobs"]
            rows.append({entry["id"]: exp(entry["logprob"]) for entry in entries})
        return rows
    finally:
        await engine.aclose()
