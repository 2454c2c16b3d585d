"""Embedding models, which do not block the event loop.

A spec names one: `http://host:8000/v1#MODEL` is an endpoint (several URLs separated by commas share the load), any
other spec a sentence-transformers model, by its folder, hub name or catalog name (`agentsys models`). In Python, any
object with `name` and `embed` is an embedding model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentsys.installation import install_command
from agentsys.knowledge.passages import KnowledgeError
from agentsys.paths import expand_user

if TYPE_CHECKING:
    import numpy as np

    Vectors = np.ndarray[Any, np.dtype[Any]]

TEXTS_PER_REQUEST: Final = 32
"""Texts per request to an endpoint; more texts are sent as parallel requests."""


class Embedder(Protocol):
    """A model that maps texts to vectors. `name` identifies its weights: an index has vectors of one name only."""

    @property
    def name(self) -> str:
        """Name of the model in the manifest of an index."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return floats (texts, dimension); vectors need not be normalized, as they are compared by cosine."""
        ...


def embedding_name(spec: str) -> str:
    """Return the name of a spec's model, which does not depend on its location.

    It is the endpoint's model, a folder's name with a digest of its weights, or the hub name. Raises KnowledgeError for
    an endpoint without #MODEL.
    """
    if spec.startswith(("http://", "https://")):
        model = spec.partition("#")[2]
        if not model:
            raise KnowledgeError(f"{spec}: the model is missing; write an endpoint as http://host:8000/v1#MODEL")
        return model
    folder = expand_user(spec)
    if folder.is_dir():
        from agentsys.models.engines import folder_revision

        return f"{folder.resolve().name}@{folder_revision(folder)}"
    return spec


def absolute_spec(spec: str) -> str:
    """Return the spec with the absolute path of a folder, so that it works in every working directory."""
    folder = expand_user(spec)
    return str(folder.resolve()) if spec and folder.is_dir() else spec


def make_embedder(spec: str) -> Embedder:
    """Return the embedding model of a spec; it is loaded at the first text. Raises KnowledgeError for a bad spec."""
    if not spec:
        raise KnowledgeError(
            "no embedding model: give a sentence-transformers folder or hub name, or http://host:8000/v1#MODEL"
        )
    name = embedding_name(spec)
    return EndpointEmbedder(spec, name) if spec.startswith(("http://", "https://")) else LocalEmbedder(spec, name)


class LocalEmbedder:
    """A sentence-transformers model in this process, on a GPU if there is one.

    It runs in one dedicated thread: torch uses all cores for a batch, and waiting threads would occupy the event loop's
    thread pool.
    """

    def __init__(self, spec: str, name: str) -> None:
        self.name = name
        self._spec = spec
        self._model: Any = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder. Raises KnowledgeError if the model cannot be loaded."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._encode, list(texts))

    def _encode(self, texts: list[str]) -> Vectors:
        if self._model is None:
            self._model = self._load()
        vectors: Vectors = self._model.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        return vectors

    def _load(self) -> Any:
        if find_spec("sentence_transformers") is None:
            raise KnowledgeError(
                f"embedding model '{self._spec}' needs sentence-transformers: {install_command('dense')}"
            )
        folder = _checked_folder(self._spec) or expand_user(self._spec)
        try:
            if not folder.is_dir():
                _check_hub(self._spec)
            from sentence_transformers import SentenceTransformer  # takes seconds, so a missing model fails before

            return SentenceTransformer(str(folder))
        except Exception as err:  # whatever the libraries raise for a missing or incompatible model
            reason = " ".join(str(err).split())[:200]
            raise KnowledgeError(
                f"embedding model '{self._spec}' cannot be loaded ({reason}); give its folder or its hub name"
            ) from None


def _checked_folder(spec: str) -> Path | None:
    """Return the model folder of an installed package of the catalog, checked against its digests (docs/models.md)."""
    from agentsys.models.embeddings import find_embedding
    from agentsys.models.weights import WeightsError

    try:
        return find_embedding(spec)
    except WeightsError as err:
        raise KnowledgeError(f"embedding model '{spec}' cannot be loaded ({err})") from None


def _check_hub(name: str) -> None:
    """Raise an error of the hub client if a model is not cached and the hub is not reachable.

    Loading the model would raise it too, but only after the retries for each of its files.
    """
    from huggingface_hub import try_to_load_from_cache

    from agentsys.models.weights import check_hub

    full_name = name if "/" in name else f"sentence-transformers/{name}"
    if any(isinstance(try_to_load_from_cache(one, "config.json"), str) for one in (name, full_name)):
        return
    check_hub(name)


class EndpointEmbedder:
    """The embeddings route of an OpenAI-compatible server; the API key is taken from AGENTSYS_API_KEY."""

    def __init__(self, spec: str, name: str) -> None:
        from agentsys.models.endpoint import Endpoint
        from agentsys.models.spec import address_of

        self.name = name
        self._endpoint = Endpoint([address_of(url) for url in spec.partition("#")[0].split(",")])

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder.

        Raises ModelError for a refused request or an invalid reply, EndpointDown if no server is reachable.
        """
        import numpy as np

        parts = [texts[i : i + TEXTS_PER_REQUEST] for i in range(0, len(texts), TEXTS_PER_REQUEST)]
        return np.concatenate(await asyncio.gather(*(self._request(part) for part in parts)))

    async def _request(self, texts: Sequence[str]) -> Vectors:
        import numpy as np

        from agentsys.models.errors import ModelError

        body = {"model": self.name, "input": list(texts), "encoding_format": "float"}
        reply = await self._endpoint.post("/v1/embeddings", body)
        try:
            entries = sorted(reply["data"], key=lambda entry: int(entry["index"]))
            vectors: Vectors = np.array([entry["embedding"] for entry in entries], dtype=np.float32)
        except (KeyError, TypeError, ValueError):
            vectors = np.empty(0)
        if vectors.ndim != 2 or len(vectors) != len(texts):
            address = self._endpoint.addresses[0]
            raise ModelError(
                f"{address}/v1/embeddings: the reply does not have one vector per text; is it an embedding model?"
            )
        return vectors

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        await self._endpoint.aclose()


async def close(embedder: Embedder) -> None:
    """Close an embedder if it has `aclose`."""
    if aclose := getattr(embedder, "aclose", None):
        await aclose()
