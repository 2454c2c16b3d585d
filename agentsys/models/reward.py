"""Process reward models (PRM): the probability that a solution is right so far, read at its last token.

A spec is `prm:FOLDER`, a folder that trainers/prm.py wrote, or `prm:http://HOST:8000`, a server that classifies tokens
with it at vLLM's route /pooling. Both read the token ids that the policy's engine wrote, so that the two models need
the same tokenizer.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from agentsys.models.errors import ModelError, SpecError
from agentsys.models.spec import load_model, served_to_browsers

PREFIX: Final = "prm:"
BATCH: Final = 16
"""Solutions per forward pass of a model in this process."""


class RewardModel(Protocol):
    """Scores solutions."""

    async def score(self, solutions: Sequence[Sequence[int]]) -> list[float]:
        """P(right so far), from 0 to 1, of each solution: ids of its prompt and its steps. Raises ModelError."""
        ...


def is_reward_spec(spec: str) -> bool:
    """Whether a spec names a process reward model."""
    return spec.startswith(PREFIX)


def load_reward_model(spec: str) -> RewardModel:
    """Return the model that a spec names; weights are loaded at its first use.

    Raises SpecError for a folder without such a model, an unusable address, and in Studio for every folder.
    """
    name = spec.removeprefix(PREFIX)
    if name.startswith(("http://", "https://")):
        return ServedRewardModel(load_model(name))
    if served_to_browsers():
        raise SpecError(f"in Studio, '{PREFIX}' with a folder is not allowed; use a server's URL that is allowed")
    return _load_folder(Path(name).expanduser().absolute())


@lru_cache(maxsize=4)
def _load_folder(folder: Path) -> RewardModel:
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind = str(config.get("architectures") or "")
    except (OSError, ValueError, AttributeError):
        raise SpecError(
            f"{PREFIX}{folder} has no model; `agentsys train prm` writes one, in its folder model"
        ) from None
    if "ForTokenClassification" not in kind:
        raise SpecError(f"{PREFIX}{folder} is another kind of model ({kind}); `agentsys train prm` makes one of it")
    return LocalRewardModel(folder)


class LocalRewardModel:
    """A model folder in this process, on the GPU if there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model: Any = None
        self._lock = threading.Lock()

    async def score(self, solutions: Sequence[Sequence[int]]) -> list[float]:
        """See RewardModel."""
        return await asyncio.to_thread(self._score, solutions)

    def _score(self, solutions: Sequence[Sequence[int]]) -> list[float]:
        with self._lock:
            self._model = self._model or self._load()
            batches = [solutions[i : i + BATCH] for i in range(0, len(solutions), BATCH)]
            return [score for batch in batches for score in self._forward(batch)]

    def _load(self) -> Any:
        import torch
        from transformers import AutoModelForTokenClassification

        try:
            model = AutoModelForTokenClassification.from_pretrained(self.folder)
        except (OSError, ValueError) as err:
            raise SpecError(f"{PREFIX}{self.folder} cannot be loaded: {' '.join(str(err).split())[:300]}") from None
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def _forward(self, solutions: Sequence[Sequence[int]]) -> list[float]:
        import torch

        width = self._model.get_input_embeddings().num_embeddings
        if (highest := max(map(max, solutions))) >= width:
            raise SpecError(
                f"{PREFIX}{self.folder} knows {width} token ids and got {highest}: it needs the policy's tokenizer"
            )
        lengths = [len(ids) for ids in solutions]
        ids = torch.zeros((len(solutions), max(lengths)), dtype=torch.long)
        for row, solution in zip(ids, solutions, strict=True):
            row[: len(solution)] = torch.tensor(solution)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        device = self._model.device
        with torch.inference_mode():
            logits = self._model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).logits
        last = logits[torch.arange(len(solutions)), torch.tensor(lengths) - 1, 0]
        return [float(score) for score in torch.sigmoid(last.float())]


class ServedRewardModel:
    """A server that classifies tokens: vLLM's /pooling with the task token_classify, one class."""

    def __init__(self, model: Any) -> None:
        """`model` is the chat model of the server's URL, whose connections, key and limits are used."""
        self.endpoint, self.name = model.engine.endpoint, model.engine.model

    async def score(self, solutions: Sequence[Sequence[int]]) -> list[float]:
        """See RewardModel."""
        return list(await asyncio.gather(*map(self._score, solutions)))

    async def _score(self, solution: Sequence[int]) -> float:
        body = {"input": list(solution), "task": "token_classify", **({"model": self.name} if self.name else {})}
        reply = await self.endpoint.post("/pooling", body)
        try:
            last = reply["data"][0]["data"][-1]
            probability = float(last[-1] if isinstance(last, list) else last)
        except (LookupError, TypeError, ValueError):
            raise ModelError("the server's /pooling reply has no number per token; serve a token classifier") from None
        if not 0 <= probability <= 1:
            raise ModelError(f"the server's /pooling reply has {probability} for a token; a probability is from 0 to 1")
        return probability
