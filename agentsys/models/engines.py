"""Engines that run elsewhere: OpenAI-compatible servers, whose model and dialect are detected."""

from __future__ import annotations

import asyncio
import hashlib
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from agentsys.models import tokens, wire
from agentsys.models.endpoint import Endpoint
from agentsys.models.errors import EndpointDown, ModelError, Refused
from agentsys.models.pictures import folder_takes_pictures
from agentsys.models.tokenizers import LlamaCppTokenizer, find_tokenizer


class LoopLock:
    """One asyncio.Lock per event loop: a program may call asyncio.run more than once."""

    def __init__(self) -> None:
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()

    def __call__(self) -> asyncio.Lock:
        """Return the lock of the running loop."""
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


@dataclass
class ServedModel:
    """A running engine; see chat.Served."""

    endpoint: Endpoint
    dialect: wire.Dialect
    model: str
    name: str
    revision: str | None
    tokenizer: tokens.Tokenizer | None
    sees_pictures: bool | None = None


def read_models(listing: Any) -> list[dict[str, Any]]:
    """The models of a server's list, each with its name as "id". The list may be bare or under another key."""
    if isinstance(listing, dict):
        listing = next((listing[key] for key in _LISTING_KEYS if isinstance(listing.get(key), list)), [])
    models: list[dict[str, Any]] = []
    for entry in listing if isinstance(listing, list) else []:
        fields = entry if isinstance(entry, dict) else {"id": entry}
        name = next((fields[key] for key in _NAME_KEYS if isinstance(fields.get(key), str) and fields[key]), None)
        if name is not None:
            models.append({**fields, "id": name})
    return models


_LISTING_KEYS: Final = ("data", "models", "model_list", "items", "results", "result")
_NAME_KEYS: Final = ("id", "name", "model", "model_name", "model_id", "key")


@dataclass
class RemoteEngine:
    """Servers that were started elsewhere. Their model and dialect are detected at the first request."""

    records_per_request: ClassVar[float] = 1.5
    endpoint: Endpoint
    model: str | None = None
    name: str | None = None
    revision: str | None = None
    _served: ServedModel | None = None
    _lock: LoopLock = field(default_factory=LoopLock)

    async def serve(self) -> ServedModel:
        """Ask the server for its model, once. Raises EndpointDown, or ModelError for an unknown model."""
        if self._served is None:
            async with self._lock():
                if self._served is None:
                    self._served = await self._detect()
        return self._served

    @property
    def capacity(self) -> int:
        """Maximum number of requests in flight, over all addresses."""
        return self.endpoint.in_flight * len(self.endpoint.addresses)

    def set_in_flight(self, in_flight: int) -> None:
        """Set the maximum number of requests in flight per address."""
        self.endpoint.set_in_flight(in_flight)

    async def _detect(self) -> ServedModel:
        entries = await self._list_models()
        names = [entry["id"] for entry in entries]
        if self.model is None and len(names) != 1:
            address, listed = self.endpoint.addresses[0], ", ".join(names[:20])
            raise Refused(f"{address} serves {len(names)} models ({listed}): add #NAME to the URL")
        model = self.model or names[0]
        if names and not any(name == model or name.endswith(f"/{model}") for name in names):
            raise Refused(f"{self.endpoint.addresses[0]} has no model '{model}'; it has {', '.join(names[:20])}")
        entry: dict[str, Any] = next((e for e in entries if e["id"] == model), {})
        owner = entry.get("owned_by")
        dialect: wire.Dialect = "llamacpp" if owner == "llamacpp" else "vllm" if owner == "vllm" else "openai"
        tokenizer: tokens.Tokenizer | None = None
        revision = self.revision
        root = str(entry.get("root") or model)
        sees_pictures: bool | None = None
        if dialect == "llamacpp":
            props = await self.endpoint.get("/props")
            tokenizer = await self._make_llamacpp_tokenizer(props)
            sees_pictures = _has_vision(props)
        elif dialect == "vllm":
            tokenizer = await asyncio.to_thread(find_tokenizer, root)
            revision = revision or await asyncio.to_thread(folder_revision, Path(root))
            sees_pictures = await asyncio.to_thread(folder_takes_pictures, Path(root))
        return ServedModel(
            self.endpoint,
            dialect,
            model,
            self.name or (Path(model).name if Path(root).is_dir() else model),
            revision,
            tokenizer,
            sees_pictures,
        )

    async def _list_models(self) -> list[dict[str, Any]]:
        """The server's models. If the spec names one, a server without a usable list is believed to have it."""
        try:
            return read_models(await self.endpoint.get("/v1/models"))
        except EndpointDown as err:
            if self.model is None or not isinstance(err, Refused):
                raise
        except ModelError:
            if self.model is None:
                raise
        return []

    async def _make_llamacpp_tokenizer(self, props: Any) -> LlamaCppTokenizer | None:
        if not isinstance(props, dict) or not isinstance(props.get("chat_template"), str):
            self.endpoint.say("/props has no chat template; using the chat route")
            return None
        special = {name: str(props.get(name) or "") for name in ("bos_token", "eos_token")}
        tokenizer = LlamaCppTokenizer(self.endpoint, props["chat_template"], special)
        tokenizer.stop_ids = frozenset(await tokenizer.encode(special["eos_token"], special=True))
        return tokenizer

    async def aclose(self) -> None:
        """Close the connections."""
        await self.endpoint.aclose()


def _has_vision(props: Any) -> bool | None:
    """Whether llama.cpp's server has a projector for pictures; None for one that does not say."""
    modalities = props.get("modalities") if isinstance(props, dict) else None
    vision = modalities.get("vision") if isinstance(modalities, dict) else None
    return vision if isinstance(vision, bool) else None


def folder_revision(folder: Path) -> str | None:
    """Return a digest of a model folder: sizes, first and last MiB of weights, configuration and tokenizer.

    None if there is no such folder.
    """
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    files = [path for pattern in ("*.safetensors", "*.bin", "*.json", "*.jinja") for path in folder.glob(pattern)]
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read(2**20))
    return digest.hexdigest()[:16]
