"""Teachers that score rows: a model in this process, or a server that returns log-probabilities of a prompt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from agentsys.models.errors import ModelError
from agentsys.trainers.loading import DType, TrainerError, folder_of, load_causal_lm, load_tokenizer, tokenizer_digest
from agentsys.trainers.topk import TopK, from_alternatives, from_logits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from agentsys.models.chat import Engine, Served

WINDOW: Final = 4
"""Batches that are sorted by length together: more means less padding, and more lost work after a kill."""
HEAD_ELEMENTS: Final = 2**24
"""Logits in memory at a time: 64 MB in fp32, for any vocabulary."""
HEAD_TOLERANCE: Final = 0.05
"""Allowed difference between the head's logits and the model's (bfloat16 rounds a logit of 10 to within 0.03)."""
AHEAD: Final = 4
"""Requests prepared per request in flight: results are taken in order while the others continue."""
TOO_MANY: Final = "greater than max allowed"
"""Part of vLLM's error for more log-probabilities than it was started for."""


@dataclass(frozen=True, slots=True)
class Row:
    """The part of a row that a teacher reads: ids, and 1 where the token is learned."""

    ids: list[int]
    learned: list[int]

    @property
    def positions(self) -> list[int]:
        """The positions of the learned tokens."""
        return [t for t, flag in enumerate(self.learned) if flag]


class Scorer(Protocol):
    """A teacher. Creating it is cheap; `load` is not, and must be called before `score`."""

    width: int
    """Number of tokens; higher ids are padding rows of the head."""
    digest: str
    """Digest of its tokenizer (loading.tokenizer_digest)."""

    def identity(self) -> dict[str, Any]:
        """Name, revision and scoring method, which must be equal for two runs to give the same scores."""
        ...

    def context(self) -> int | None:
        """The teacher's context length in tokens, or None if unknown."""
        ...

    def load(self) -> None:
        """Load the weights or start the server. Raises TrainerError or EndpointDown."""
        ...

    def score(self, rows: Iterable[Row]) -> Iterator[list[TopK]]:
        """The scores of the rows in order, in groups to be written together. Raises TrainerError or ModelError."""
        ...

    def close(self) -> None:
        """Release the weights or stop the server."""
        ...


class ModelScorer:
    """A transformers model in this process, on the GPU if there is one."""

    def __init__(self, name: str, *, k: int, dtype: DType, batch_tokens: int) -> None:
        """`batch_tokens`: tokens per forward pass with padding. Raises TrainerError for a name without a tokenizer."""
        self._name, self._k, self._dtype, self._batch_tokens = name, k, dtype, batch_tokens
        tokenizer = load_tokenizer(name)
        self.width, self.digest = _width(tokenizer), tokenizer_digest(tokenizer)
        self._model: Any = None

    def identity(self) -> dict[str, Any]:
        """The folder's name and a digest of its files, or the commit of a hub name."""
        from agentsys.models.engines import folder_revision

        folder = Path(folder_of(self._name))
        revision = folder_revision(folder) or getattr(self._config(), "_commit_hash", None)
        return {"teacher": folder.name, "revision": revision, "scored_by": f"transformers, {self._dtype}"}

    def context(self) -> int | None:
        """The configuration's number of positions."""
        return getattr(self._config(), "max_position_embeddings", None)

    def _config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder_of(self._name))

    def load(self) -> None:
        """See Scorer.load. Raises TrainerError for an architecture that changes the logits after its head."""
        import torch

        model: Any = load_causal_lm(self._name, dtype=self._dtype)
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._check_head()

    def score(self, rows: Iterable[Row]) -> Iterator[list[TopK]]:
        """See Scorer.score. A group is a window of WINDOW batches, always the same for the same rows."""
        for window in _windows(rows, WINDOW * self._batch_tokens):
            yield self._score_window(window)

    def _score_window(self, window: Sequence[Row]) -> list[TopK]:
        """Score batches of similar length, the longest first, so that lack of memory shows early."""
        import torch

        order = sorted(range(len(window)), key=lambda i: -len(window[i].ids))
        scores: dict[int, TopK] = {}
        while order:
            size = max(1, self._batch_tokens // max(1, len(window[order[0]].ids)))
            batch, order = order[:size], order[size:]
            try:
                scored = self._score_batch([window[i] for i in batch])
            except torch.OutOfMemoryError:
                raise TrainerError(
                    f"out of memory with {len(batch)} rows of up to {len(window[batch[0]].ids)} tokens: "
                    f"lower --batch-tokens ({self._batch_tokens})"
                ) from None
            scores.update(zip(batch, scored, strict=True))
        return [scores[i] for i in range(len(window))]

    def _score_batch(self, rows: Sequence[Row]) -> list[TopK]:
        import torch

        model = self._model
        width = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        real, learned = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            real[i, : len(row.ids)] = 1
            learned[i, row.positions] = True
        ids, real, learned = (part.to(model.device) for part in (ids, real, learned))
        with torch.inference_mode():
            states = model.base_model(input_ids=ids, attention_mask=real, use_cache=False).last_hidden_state
            scored = self._apply_head(states[:, :-1][learned[:, 1:]], ids[:, 1:][learned[:, 1:]])
        return scored.split([sum(row.learned) for row in rows])

    def _apply_head(self, states: Tensor, tokens: Tensor) -> TopK:
        """Apply the head to the learned positions, a chunk at a time, without its padding rows."""
        import numpy as np

        head = self._model.get_output_embeddings()
        chunk = max(1, HEAD_ELEMENTS // head.weight.shape[0])
        parts = [
            from_logits(head(states[at : at + chunk])[:, : self.width].float(), tokens[at : at + chunk], self._k)
            for at in range(0, max(1, len(states)), chunk)
        ]
        if not all(np.isfinite(part.tail).all() for part in parts):
            raise TrainerError(f"{self._name} gives NaN; try --dtype float32")
        ids, logprobs, tail, own = zip(*((p.ids, p.logprobs, p.tail, p.token_logprob) for p in parts), strict=True)
        return TopK(np.concatenate(ids), np.concatenate(logprobs), np.concatenate(tail), np.concatenate(own))

    def _check_head(self) -> None:
        """Raises TrainerError for an architecture that changes its logits after the head, which scoring would miss."""
        import torch

        ids = torch.arange(4, device=self._model.device)[None]
        with torch.inference_mode():
            states = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            ours = self._model.get_output_embeddings()(states).float()
            theirs = self._model(input_ids=ids, use_cache=False).logits.float()
        if (ours - theirs).abs().max() > HEAD_TOLERANCE * max(1.0, float(theirs.abs().max())):
            name = type(self._model).__name__
            raise TrainerError(
                f"{name} scales or caps its logits after the head; score with a server: vllm:{self._name}"
            )

    def close(self) -> None:
        """Release the weights."""
        self._model = None


def _width(tokenizer: PreTrainedTokenizerBase) -> int:
    return 1 + max(int(i) for i in tokenizer.get_vocab().values())


def _windows(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Consecutive rows in windows of at least `tokens` tokens, except the last."""
    window: list[Row] = []
    count = 0
    for row in rows:
        window.append(row)
        count += len(row.ids)
        if count >= tokens:
            yield window
            window, count = [], 0
    if window:
        yield window


class ServerScorer:
    """A vLLM server that returns the log-probabilities of each row as a prompt."""

    def __init__(self, engine: Engine, tokenizer_name: str, *, k: int) -> None:
        """`tokenizer_name`: folder or name of the server's tokenizer. Raises TrainerError if there is none."""
        tokenizer = load_tokenizer(tokenizer_name)
        self.width, self.digest = _width(tokenizer), tokenizer_digest(tokenizer)
        self._engine, self._k = engine, k
        self._runner = asyncio.Runner()

    def identity(self) -> dict[str, Any]:
        """Start the server, and return its name, revision and kind."""
        served = self._served()
        return {"teacher": served.name, "revision": served.revision, "scored_by": f"server, {served.dialect}"}

    def context(self) -> int | None:
        """Unknown; the server refuses rows that are too long."""
        return None

    def load(self) -> None:
        """See Scorer.load."""
        self._served()

    def score(self, rows: Iterable[Row]) -> Iterator[list[TopK]]:
        """See Scorer.score. A group is one row; AHEAD rows per request in flight are prepared."""
        served = self._served()
        loop = self._runner.get_loop()
        pending: deque[asyncio.Task[TopK]] = deque()
        try:
            for row in rows:
                pending.append(loop.create_task(self._score_row(served, row)))
                if len(pending) >= AHEAD * self._engine.capacity:
                    yield [loop.run_until_complete(pending.popleft())]
            while pending:
                yield [loop.run_until_complete(pending.popleft())]
        finally:
            for task in pending:
                task.cancel()
            if pending:
                loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))

    def _served(self) -> Served:
        return self._runner.run(self._engine.serve())

    async def _score_row(self, served: Served, row: Row) -> TopK:
        """Score a row with one request, or none if no token is learned."""
        positions = row.positions
        if not positions:
            return from_alternatives([], [], self._k, self.width)
        sampling = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": self._k}
        body = {"model": served.model, "prompt": row.ids[: positions[-1] + 1], **sampling}
        try:
            reply = await served.endpoint.post("/v1/completions", body)
        except ModelError as err:
            if TOO_MANY not in str(err):
                raise
            address = served.endpoint.addresses[0]
            raise TrainerError(
                f"{address} returns fewer than {self._k} log-probabilities: start it with --max-logprobs {self._k}"
            ) from None
        try:
            logprobs = _prompt_logprobs(reply)
            alternatives = [{int(i): float(entry["logprob"]) for i, entry in logprobs[t].items()} for t in positions]
            return from_alternatives(alternatives, [row.ids[t] for t in positions], self._k, self.width)
        except (KeyError, IndexError, TypeError, AttributeError):
            address = served.endpoint.addresses[0]
            raise TrainerError(f"{address} returns no prompt_logprobs for token ids: use a vLLM server") from None

    def close(self) -> None:
        """Close the connections, and stop a server that was started here."""
        self._runner.run(self._engine.aclose())
        self._runner.close()


def _prompt_logprobs(reply: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """{id: {"logprob": ...}} for each position of the prompt; None for the first."""
    return cast(Sequence[Mapping[str, Any]], reply["choices"][0]["prompt_logprobs"])


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """How a teacher scores; the options of teacher.py have the same names."""

    top_k: int
    dtype: DType
    batch_tokens: int
    in_flight: int


def make_scorer(teacher: str, settings: ScorerSettings, *, tokenizer: str | None, longest: int) -> Scorer:
    """The scorer that --teacher names. A server that is started for it gets a context of `longest` + 1 tokens.

    Raises TrainerError or SpecError.
    """
    k = settings.top_k
    kind, _, rest = teacher.partition(":")
    if kind in ("http", "https"):
        from agentsys.models import load_model

        if tokenizer is None:
            raise TrainerError("an http teacher needs --teacher-tokenizer: name the folder of its tokenizer")
        engine: Any = cast(Any, load_model(teacher)).engine
    elif kind == "vllm":
        from agentsys.models.child import ChildEngine

        engine = ChildEngine("vllm", folder_of(rest), context=longest + 1, max_logprobs=k)
    else:
        name = rest if kind == "transformers" else teacher
        return ModelScorer(name, k=k, dtype=settings.dtype, batch_tokens=settings.batch_tokens)
    engine.set_in_flight(settings.in_flight)
    return ServerScorer(engine, tokenizer or folder_of(rest), k=k)
