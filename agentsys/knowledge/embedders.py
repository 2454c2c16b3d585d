"""Embedding models: texts in, vectors out, without holding up the event loop.

A spec names one: `http://host:8000/v1#MODEL` an endpoint's embeddings (several URLs separated by commas share the
load), anything else a sentence-transformers model by its folder or hub name. In Python any object with `name` and
`embed` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentsys.knowledge.passages import KnowledgeError

if TYPE_CHECKING:
    import numpy as np

    Vectors = np.ndarray[Any, np.dtype[Any]]

TEXTS_A_REQUEST: Final = 32
"""Texts in one request to an endpoint; an embedding of several thousand is several requests in flight."""


class Embedder(Protocol):
    """A model that turns texts into vectors. `name` stands for its weights: vectors of two names never mix."""

    @property
    def name(self) -> str:
        """What the manifest of an index calls the model."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Floats (texts, dimension); length does not matter, as passages are compared by their cosine."""
        ...


def embedding_name(spec: str) -> str:
    """The name of the model that a spec stands for: the endpoint's model wherever it is served, a folder's name with a
    digest of its weights wherever it lies, a hub name as it is. Raises KnowledgeError for an endpoint without #MODEL.
    """
    if spec.startswith(("http://", "https://")):
        model = spec.partition("#")[2]
        if not model:
            raise KnowledgeError(f"{spec}: an embedding endpoint is given with its model, as http://host:8000/v1#MODEL")
        return model
    folder = Path(spec).expanduser()
    if folder.is_dir():
        from agentsys.models.engines import folder_revision

        return f"{folder.resolve().name}@{folder_revision(folder)}"
    return spec


def lasting(spec: str) -> str:
    """The spec with a folder's whole path, so that it can be found from elsewhere."""
    folder = Path(spec).expanduser()
    return str(folder.resolve()) if spec and folder.is_dir() else spec


def make_embedder(spec: str) -> Embedder:
    """The embedding model that a spec names; it is loaded at the first text. Raises KnowledgeError for a bad spec."""
    if not spec:
        raise KnowledgeError(
            "no embedding model: give a sentence-transformers folder or hub name, or http://host:8000/v1#MODEL"
        )
    name = embedding_name(spec)
    return EndpointEmbedder(spec, name) if spec.startswith(("http://", "https://")) else LocalEmbedder(spec, name)


class LocalEmbedder:
    """A sentence-transformers model in this process, on a GPU if there is one.

    One thread of its own does the work: torch uses all cores for one batch, and threads that wait their turn would
    hold up other work.
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
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise KnowledgeError(
                f"embedding model '{self._spec}' needs sentence-transformers: pip install 'agentsys[dense]'"
            ) from None
        try:
            return SentenceTransformer(str(Path(self._spec).expanduser()))
        except Exception as err:  # whatever the library raises for a missing or foreign model
            reason = " ".join(str(err).split())[:200]
            raise KnowledgeError(
                f"embedding model '{self._spec}' cannot be loaded ({reason}); give its folder or its hub name"
            ) from None


class EndpointEmbedder:
    """The embeddings route of an OpenAI-compatible server; the key comes from AGENTSYS_API_KEY."""

    def __init__(self, spec: str, name: str) -> None:
        from agentsys.models.endpoint import Endpoint
        from agentsys.models.spec import address_of

        self.name = name
        self._endpoint = Endpoint([address_of(url) for url in spec.partition("#")[0].split(",")])

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See Embedder. Raises ModelError for a refusal or a foreign reply, EndpointDown if nobody answers."""
        import numpy as np

        parts = [texts[i : i + TEXTS_A_REQUEST] for i in range(0, len(texts), TEXTS_A_REQUEST)]
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
            where = self._endpoint.addresses[0]
            raise ModelError(
                f"{where}/v1/embeddings: the reply holds no vector for each text; is it an embedding model?"
            )
        return vectors

    async def aclose(self) -> None:
        """Close the connections of the running loop."""
        await self._endpoint.aclose()


async def close(embedder: Embedder) -> None:
    """Close an embedder that can be closed."""
    if aclose := getattr(embedder, "aclose", None):
        await aclose()
