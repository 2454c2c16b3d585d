"""Teachers that score rows: a model in this process, or a server that gives log-probabilities of a prompt."""

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
"""Batches' worth of tokens that are sorted by length together: more means less padding, and more lost by a kill."""
HEAD_ELEMENTS: Final = 2**24
"""Logits at once: 64 MB in fp32, whatever the vocabulary."""
HEAD_TOLERANCE: Final = 0.05
"""How far the head's logits may be from the model's own (bfloat16 rounds a logit of 10 to within 0.03)."""
AHEAD: Final = 4
"""Requests made ready for each one in flight: the oldest is waited for, the others go on meanwhile."""
TOO_MANY: Final = "greater than max allowed"
"""What vLLM says to more log-probabilities than it was started for."""


@dataclass(frozen=True, slots=True)
class Row:
    """The part of a row that a teacher reads: ids, and 1 where the token at that position is learned."""

    ids: list[int]
    learned: list[int]

    @property
    def positions(self) -> list[int]:
        """Where the learned tokens stand."""
        return [t for t, flag in enumerate(self.learned) if flag]


class Scorer(Protocol):
    """A teacher. It is cheap to make; `load` is not, and comes before `score`."""

    width: int
    """Number of tokens: ids at and above it are padding."""
    digest: str
    """Of its tokenizer (students.tokenizer_digest)."""

    def identity(self) -> dict[str, Any]:
        """Name, revision and way of scoring: what must be the same for two runs to give the same scores."""
        ...

    def context(self) -> int | None:
        """Tokens that fit into the teacher, if it says so."""
        ...

    def load(self) -> None:
        """Read the weights, or bring the server up. Raises TrainerError or EndpointDown."""
        ...

    def score(self, rows: Iterable[Row]) -> Iterator[list[TopK]]:
        """The rows' scores in order, in groups that are best written together. Raises TrainerError or ModelError."""
        ...

    def close(self) -> None:
        """Stop what was started."""
        ...


class ModelScorer:
    """A transformers model in this process, on the GPU if there is one."""

    def __init__(self, name: str, *, k: int, dtype: DType, batch_tokens: int) -> None:
        """`batch_tokens`: padded tokens of one forward pass. Raises TrainerError for a name without a tokenizer."""
        self._name, self._k, self._dtype, self._batch_tokens = name, k, dtype, batch_tokens
        tokenizer = load_tokenizer(name)
        self.width, self.digest = _width(tokenizer), tokenizer_digest(tokenizer)
        self._model: Any = None

    def identity(self) -> dict[str, Any]:
        """The folder's name and a digest of its files; a hub name has its commit in the library's cache instead."""
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
        """See Scorer.load; refuses an architecture that does more after its head."""
        import torch

        model: Any = load_causal_lm(self._name, dtype=self._dtype)
        self._model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._check_head()

    def score(self, rows: Iterable[Row]) -> Iterator[list[TopK]]:
        """See Scorer.score; a group is a window of WINDOW batches, and always the same for the same rows."""
        for window in _windows(rows, WINDOW * self._batch_tokens):
            yield self._score_window(window)

    def _score_window(self, window: Sequence[Row]) -> list[TopK]:
        """Batches of like length, the longest first: what does not fit into memory is found at once."""
        import torch

        order = sorted(range(len(window)), key=lambda i: -len(window[i].ids))
        scores: dict[int, TopK] = {}
        while order:
            size = max(1, self._batch_tokens // max(1, len(window[order[0]].ids)))
            batch, order = order[:size], order[size:]
            try:
                scored = self._score_batch([window[i] for i in batch])
            except torch.OutOfMemoryError:
                now = f"{len(batch)} rows of up to {len(window[batch[0]].ids)} tokens"
                raise TrainerError(f"out of memory on {now}: lower --batch-tokens ({self._batch_tokens})") from None
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
            scored = self._through_head(states[:, :-1][learned[:, 1:]], ids[:, 1:][learned[:, 1:]])
        return scored.split([sum(row.learned) for row in rows])

    def _through_head(self, states: Tensor, tokens: Tensor) -> TopK:
        """The head at the learned positions only, a few at a time; padding rows of the head are left out."""
        import numpy as np

        head = self._model.get_output_embeddings()
        chunk = max(1, HEAD_ELEMENTS // head.weight.shape[0])
        parts = [
            from_logits(head(states[at : at + chunk])[:, : self.width].float(), tokens[at : at + chunk], self._k)
            for at in range(0, max(1, len(states)), chunk)
        ]
        if not all(np.isfinite(part.tail).all() for part in parts):
            raise TrainerError(f"{self._name} gives no numbers here (NaN); try --dtype float32")
        ids, logprobs, tail, own = zip(*((p.ids, p.logprobs, p.tail, p.token_logprob) for p in parts), strict=True)
        return TopK(np.concatenate(ids), np.concatenate(logprobs), np.concatenate(tail), np.concatenate(own))

    def _check_head(self) -> None:
        """Raises TrainerError for an architecture that changes its logits after the head: we would not see it."""
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
        """Let go of the weights."""
        self._model = None


def _width(tokenizer: PreTrainedTokenizerBase) -> int:
    return 1 + max(int(i) for i in tokenizer.get_vocab().values())


def _windows(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    """Runs of rows with at least so many tokens, the last one aside."""
    window: list[Row] = []
    held = 0
    for row in rows:
        window.append(row)
        held += len(row.ids)
        if held >= tokens:
            yield window
            window, held = [], 0
    if window:
        yield window


class ServerScorer:
    """A vLLM server, asked for the log-probabilities of each row as a prompt."""

    def __init__(self, engine: Engine, tokenizer_name: str, *, k: int) -> None:
        """`tokenizer_name`: where the server's tokenizer is found. Raises TrainerError if it is not."""
        tokenizer = load_tokenizer(tokenizer_name)
        self.width, self.digest = _width(tokenizer), tokenizer_digest(tokenizer)
        self._engine, self._k = engine, k
        self._runner = asyncio.Runner()

    def identity(self) -> dict[str, Any]:
        """What the server says of itself; brings it up."""
        served = self._served()
        return {"teacher": served.name, "revision": served.revision, "scored_by": f"server, {served.dialect}"}

    def context(self) -> int | None:
        """Unknown: the server itself refuses a row that is too long."""
        return None

    def load(self) -> None:
        """See Scorer.load."""
        self._served()

    def score(self, rows: Iterable[Row]) -> Iterator[list[TopK]]:
        """See Scorer.score; one row a group, while AHEAD rows for each request in flight are on their way."""
        served = self._served()
        loop = self._runner.get_loop()
        pending: deque[asyncio.Task[TopK]] = deque()
        try:
            for row in rows:
                pending.append(loop.create_task(self._one(served, row)))
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

    async def _one(self, served: Served, row: Row) -> TopK:
        """One request; a row that learns nothing needs none."""
        positions = row.positions
        if not positions:
            return from_alternatives([], [], self._k, self.width)
        asked = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": self._k}
        body = {"model": served.model, "prompt": row.ids[: positions[-1] + 1], **asked}
        try:
            reply = await served.endpoint.post("/v1/completions", body)
        except ModelError as err:
            if TOO_MANY not in str(err):
                raise
            where = served.endpoint.addresses[0]
            raise TrainerError(f"{where} gives fewer than {self._k}: start it with --max-logprobs {self._k}") from None
        try:
            told = _prompt_logprobs(reply)
            alternatives = [{int(i): float(entry["logprob"]) for i, entry in told[t].items()} for t in positions]
            return from_alternatives(alternatives, [row.ids[t] for t in positions], self._k, self.width)
        except (KeyError, IndexError, TypeError, AttributeError):
            where = served.endpoint.addresses[0]
            raise TrainerError(f"{where} gives no prompt_logprobs for token ids: a vLLM server is needed") from None

    def close(self) -> None:
        """Close the connections, and stop the server if it was started here."""
        self._runner.run(self._engine.aclose())
        self._runner.close()


def _prompt_logprobs(reply: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """For each position of the prompt {id: {"logprob": ...}}, the first one None."""
    return cast(Sequence[Mapping[str, Any]], reply["choices"][0]["prompt_logprobs"])


@dataclass(frozen=True, slots=True)
class Settings:
    """How a teacher scores; see the options of teacher.py, which have the same names."""

    top_k: int
    dtype: DType
    batch_tokens: int
    in_flight: int


def make_scorer(teacher: str, settings: Settings, *, tokenizer: str | None, longest: int) -> Scorer:
    """The scorer that --teacher names; a server started for it gets room for `longest` tokens and one more.

    Raises TrainerError or SpecError.
    """
    k = settings.top_k
    kind, _, rest = teacher.partition(":")
    if kind in ("http", "https"):
        from agentsys.models import load_model

        if tokenizer is None:
            raise TrainerError("a server's ids mean what its tokenizer says: name its folder with --teacher-tokenizer")
        engine: Any = cast(Any, load_model(teacher)).engine
    elif kind == "vllm":
        from agentsys.models.engines import ChildEngine

        engine = ChildEngine("vllm", folder_of(rest), context=longest + 1, max_logprobs=k)
    else:
        name = rest if kind == "transformers" else teacher
        return ModelScorer(name, k=k, dtype=settings.dtype, batch_tokens=settings.batch_tokens)
    engine.set_in_flight(settings.in_flight)
    return ServerScorer(engine, tokenizer or folder_of(rest), k=k)
