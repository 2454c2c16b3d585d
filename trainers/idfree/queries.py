"""What the server of IDfree-PL accepts: a text and a fresh embedding, and nothing that names a user."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import orjson

from agentsys.commands import knob
from agentsys.knobs import split_names
from agentsys.trainers.idfree.device import FloatArray
from agentsys.trainers.loading import TrainerError

FIELDS: Final = ("text", "embedding", "max_new_tokens")
"""The fields of a request."""

DEVIATIONS: Final = 8.0
"""Standard deviations from its mean within which a value of the normal design must be: beyond are 1 in 10^15 draws."""

_USER_LIKE: Final = re.compile(
    r"(^|[-_])(user|uid|id|name|email|phone|account|client|device|session|token|ip|forwarded)s?($|[-_])"
    r"|^(cookie|authorization|from)$"
)
_HARMLESS: Final = frozenset({"user-agent"})


@dataclass(frozen=True)
class ServeOptions:
    """The server."""

    panel: ClassVar[str] = "Server"
    central: Path | None = knob(
        None, "folder `central`: answers requests without an embedding; default: the model with the prior's mean"
    )
    host: str = knob("127.0.0.1", "address to listen at; another than the default is reachable from other machines")
    port: int = knob(8020, "port to listen at; 0: any free one")
    batch: int = knob(64, "requests per forward pass at most")
    wait: float = knob(2.0, "milliseconds to wait for more requests of a batch")
    characters: int = knob(20_000, "characters of a text at most")
    new_tokens: int = knob(64, "new tokens of a completion at most")
    replays: int = knob(100_000, "last embeddings that are remembered, as keyed digests, to refuse a second use")
    allow: str = knob("", "names of user-like fields and headers that are accepted, and ignored: user,cookie")
    access_log: bool = knob(False, "log address and path of each request")

    def __post_init__(self) -> None:
        """Raises TrainerError for numbers that cannot be."""
        for name in ("batch", "characters", "new_tokens", "replays"):
            if getattr(self, name) < 1:
                raise TrainerError(f"--{name.replace('_', '-')} {getattr(self, name)}: give at least 1")
        if not 0 <= self.port < 2**16 or self.wait < 0:
            raise TrainerError("--port is from 0 to 65535, and --wait not negative")

    @property
    def allowed(self) -> frozenset[str]:
        """Names of `allow` in lower case."""
        return frozenset(name.lower() for name in split_names(self.allow))


class ModelInfo(Protocol):
    """What the checks need to know of a model (idfree.json)."""

    @property
    def design(self) -> str: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def spread(self) -> float: ...
    @property
    def prior_first(self) -> float: ...
    @property
    def prior_second(self) -> float: ...


class RefusedError(Exception):
    """A request that is refused: HTTP status, and one line that names the fix."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Query:
    """One accepted request."""

    text: str
    embedding: FloatArray | None
    """(n_tokens, width); None: the answer is not personal."""
    max_new_tokens: int


class ReplayWindow:
    """The last embeddings, as digests under a key of this process: what is kept cannot be compared with uploads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._key = secrets.token_bytes(32)
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, embedding: FloatArray) -> bool:
        """Whether the embedding is new among the last ones; it is remembered."""
        digest = blake2b(embedding.tobytes(), key=self._key, digest_size=16).digest()
        if digest in self._digests:
            return False
        self._digests[digest] = None
        if len(self._digests) > self._size:
            self._digests.popitem(last=False)
        return True


@dataclass
class Checks:
    """All checks of a request, in the order of their cost."""

    info: ModelInfo
    options: ServeOptions
    window: ReplayWindow = field(init=False)

    def __post_init__(self) -> None:
        """An empty window."""
        self.window = ReplayWindow(self.options.replays)

    @property
    def largest_body(self) -> int:
        """Bytes: four for each character of a text, six for each escape, 32 for each value of an embedding."""
        return 6 * self.options.characters + 32 * self.info.n_tokens * self.info.width + 1_000

    def check_headers(self, names: Iterable[str], content_type: str, has_query: bool) -> None:
        """Raises RefusedError for a header that names a user, a query string, or a body that is no JSON."""
        for name in names:
            self._refuse_user_like(name.lower(), "header")
        if has_query:
            raise RefusedError(400, "a query string is not accepted: send the text and the embedding as JSON")
        # A web page can send other types to a server of this machine without being asked for permission.
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise RefusedError(415, "the Content-Type must be application/json")

    def read(self, body: bytes) -> Query:
        """A request's body as a query. Raises RefusedError with the reason."""
        try:
            values = orjson.loads(body)
        except orjson.JSONDecodeError as err:
            raise RefusedError(400, f"the body is not JSON (NaN and Infinity are not): {err}") from None
        if not isinstance(values, dict):
            raise RefusedError(400, "the body must be an object with `text` and `embedding`")
        self._check_fields(values)
        text = values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise RefusedError(400, "`text` must be a text that is not empty")
        if len(text) > self.options.characters:
            raise RefusedError(413, f"`text` has more than {self.options.characters:,} characters: shorten it")
        words = values.get("max_new_tokens", min(15, self.options.new_tokens))
        if type(words) is not int or not 1 <= words <= self.options.new_tokens:
            raise RefusedError(400, f"`max_new_tokens` must be from 1 to {self.options.new_tokens}")
        embedding = None if values.get("embedding") is None else self._read_embedding(values["embedding"])
        if embedding is not None and not self.window.add(embedding):
            raise RefusedError(409, "this embedding was used before: draw a fresh one for each request")
        return Query(text, embedding, words)

    def _check_fields(self, values: Mapping[str, Any]) -> None:
        for name in values:
            if name not in FIELDS and name.lower() not in self.options.allowed:
                self._refuse_user_like(name.lower(), "field")
                raise RefusedError(400, f"unknown field `{name[:40]}`: the fields are {', '.join(FIELDS)}")

    def _refuse_user_like(self, name: str, kind: str) -> None:
        if _USER_LIKE.search(name) and name not in self.options.allowed | _HARMLESS:
            raise RefusedError(
                400, f"the {kind} `{name[:40]}` can identify a user: leave it out (the server's --allow accepts it)"
            )

    def _read_embedding(self, values: Any) -> FloatArray:
        """(n_tokens, width). Raises RefusedError for another shape, or for values that no device draws."""
        shape = (self.info.n_tokens, self.info.width)
        try:
            numbers = np.array(values)
        except ValueError:  # lists of different lengths
            numbers = np.array(None)
        if numbers.dtype.kind not in "fi":
            raise RefusedError(400, f"`embedding` must have {shape[0]} lists of {shape[1]} numbers")
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite
            embedding: FloatArray = numbers.astype(np.float32)
        if embedding.shape != shape:
            raise RefusedError(400, f"`embedding` has shape {embedding.shape}: the model needs {shape}")
        if not np.isfinite(embedding).all():
            raise RefusedError(400, "`embedding` has values that are not finite")
        low, high = self.range()
        if embedding.min() < low or embedding.max() > high:
            raise RefusedError(
                400, f"`embedding` has values outside the {self.info.design} design's range, {low:g} to {high:g}"
            )
        return embedding

    def range(self) -> tuple[float, float]:
        """The lowest and highest value that a device of this design can draw."""
        if self.info.design == "beta":
            return 0.0, 1.0
        # The mean and the deviation of a user are within the spread of the prior's.
        reach = self.info.spread + DEVIATIONS * (self.info.prior_second + self.info.spread)
        return self.info.prior_first - reach, self.info.prior_first + reach
