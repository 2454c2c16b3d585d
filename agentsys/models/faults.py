"""What a server's error means: a retry, the fault of one request, or of the whole run (docs/servers.md).

Servers say it by a status, by a code inside a reply with status 200, or only in words.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from agentsys.models.access import mask_key
from agentsys.models.errors import ModelError
from agentsys.models.reading import NotJSON, parse_json

Owner = Literal["retry", "request", "run"]

MAX_TEXT: Final = 300
"""Characters of a server's message in an error."""
MAX_MESSAGE: Final = 4000
"""Characters of a server's message that are searched for its meaning."""

RETRYABLE_STATUSES: Final = frozenset({*range(201, 300), 408, 425, 429, *range(500, 600)})
"""Responses without the reply (204), timeouts, rate limits and server errors."""
RUN_STATUSES: Final = frozenset({*range(300, 400), 401, 402, 403, 404, 405, 407, 410})
"""The key, the payment, the permission, the route or the model: every other request would be refused too."""
CERTAIN_STATUSES: Final = frozenset({401, 402, 407})
"""Those of RUN_STATUSES that never mean a single request."""

_CODE_STATUSES: Final = {
    "context_length": 400, "invalid_request": 400, "bad_request": 400, "badrequest": 400, "invalid_argument": 400,
    "invalid_parameter": 400, "failed_precondition": 400, "unsupported": 400, "validation": 422, "unprocessable": 422,
    "invalid_api_key": 401, "authentication": 401, "unauthorized": 401, "unauthenticated": 401,
    "insufficient_quota": 402, "insufficient_balance": 402, "insufficient_credit": 402,
    "payment": 402, "permission": 403, "forbidden": 403, "not_found": 404, "rate_limit": 429, "ratelimit": 429,
    "too_many": 429, "resource_exhausted": 429, "throttl": 429, "overloaded": 503, "unavailable": 503,
    "server_error": 500, "internal": 500, "timeout": 504, "deadline": 504,
}  # fmt: skip
"""Parts of error codes in words -> the status that they stand for."""

_QUOTA_CODE: Final = re.compile(
    r"insufficient_(quota|balance|credit|funds)|billing|arrear|quota_exhausted|credit_limit"
)
_QUOTA: Final = re.compile(
    r"insufficient (quota|balance|credit|fund)|credit balance|(out of|not enough|no) (credit|balance)|"
    r"exceeded your current quota|quota\b.{0,40}\b(exhausted|exceeded)|(hard|billing|spending) limit|"
    r"payment required|billing|in arrears|overdue|余额不足|欠费|额度"
)
_RATE: Final = re.compile(r"per (second|minute|hour)|rate.?limit|retry.?(in|after|info)|try again|too many requests")
_KEY: Final = re.compile(
    r"(invalid|incorrect|missing|expired|wrong|unknown|no)\W+(\w+\W+){0,2}(api|access|auth)[ _-]?(key|token)|"
    r"(api|access|auth)[ _-]?(key|token)\W+(\w+\W+){0,2}"
    r"(not valid|invalid|not found|expired|missing|required|incorrect)|"
    r"unauthenticated|authentication (failed|required|error)"
)
_MODEL: Final = re.compile(
    r"model[ _]not[ _](found|exist)|no such model|unknown model|invalid model|model not exist|"
    r"model(\W+[\w./:@-]+)?\W+(does not exist|doesn't exist|((is|was|could) )?not (be )?found|is not (a )?valid|"
    r"is not available|is unavailable)|"
    r"(not a valid|no access to|access to the|does not have access to) model"
)
_CONTENT: Final = re.compile(
    r"moderat|flagged|content[ _](policy|filter|management)|safety|inappropriate|data_inspection|sensitive|"
    r"violat|prohibited|responsible ai"
)
_CAN_ADAPT: Final = re.compile(
    r"context (length|size|window)|maximum context|max_(completion_|new_)?tokens|"
    r"system.{0,20}(role|message|instruction|prompt)|(role|message).{0,30}system|roles must alternate|"
    r"(unsupported|unknown|unrecognized|unexpected|invalid) (parameter|argument|field|keyword)|not supported|"
    r"does not support|response_format|json_schema|exceeds? the (available )?context"
)
"""Words of a refusal that another form of the request may avoid, whatever the status (models.adapt)."""


@dataclass(frozen=True, slots=True)
class ServerError:
    """A server's error. `status` is 0 if neither the status line nor the error's code tells it."""

    status: int
    message: str
    code: str = ""
    param: str = ""
    detail: Any = None
    """The error's JSON, if it has one."""

    @property
    def words(self) -> str:
        """Code and message in lower case."""
        return f"{self.code} {self.message}".lower()

    @property
    def text(self) -> str:
        """The error in one line."""
        return f"status {self.status}: {self.message[:MAX_TEXT]}" if self.status else self.message[:MAX_TEXT]

    def owner(self, *, has_retry_after: bool = False) -> Owner:
        """Whose fault it is."""
        words = self.words
        if self.is_certain(has_retry_after=has_retry_after):
            return "run"
        if self.status == 429:
            return "retry"
        if self.status >= 500:
            return "request" if _CAN_ADAPT.search(words) else "retry"
        if _CONTENT.search(words):
            return "request"
        if self.status in RUN_STATUSES:
            return "run"
        if self.status in RETRYABLE_STATUSES or _RATE.search(self.code.lower()):
            return "retry"
        return "request" if self.status or _CAN_ADAPT.search(words) else "retry"

    def is_certain(self, *, has_retry_after: bool = False) -> bool:
        """Whether every other request of the run must fail too: the key, the payment, the quota or the model."""
        if self.status in CERTAIN_STATUSES or _QUOTA_CODE.search(self.code.lower()):
            return True
        if self.status >= 500:
            return False
        words = self.words
        if _QUOTA.search(words) and not has_retry_after and not _RATE.search(words):
            return True
        return self.status != 429 and bool(_KEY.search(words) or _MODEL.search(words))

    def fix(self) -> str:
        """What to do about a fault of the run."""
        words = self.words
        if self.status == 402 or _QUOTA_CODE.search(words) or _QUOTA.search(words):
            return "the account has no credit or quota left"
        if _MODEL.search(words):
            return "correct the model's name: #NAME in the spec"
        if self.status in (401, 403, 407) or _KEY.search(words):
            return "set AGENTSYS_API_KEY, or the key that ?key= names, to the server's key"
        if 300 <= self.status < 400:
            return "it redirects: give the URL that it redirects to"
        return "check the URL, and the model's name after #"


class RequestRefused(ModelError):
    """A server refuses one request. `error` is what it said."""

    def __init__(self, message: str, error: ServerError) -> None:
        super().__init__(message)
        self.error = error


def error_of_status(status: int, raw: bytes) -> ServerError:
    """The error that a response with an error status carries: JSON of some form, or a text."""
    try:
        body = parse_json(raw)
    except NotJSON:
        body = None
    error = _read_error(body) if body is not None else None
    if error is None:
        return ServerError(status, _one_line(raw[:MAX_MESSAGE].decode(errors="replace")), detail=body)
    return ServerError(status, error.message, error.code, error.param, error.detail)


def error_in_reply(body: Any) -> ServerError | None:
    """The error inside a response with status 200, or None. `"error": null` and an empty error are none."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, Mapping):
        return None
    if body.get("error") or not ("choices" in body or "content" in body or "data" in body or "object" in body):
        return _read_error(body)
    if body.get("object") == "error":
        return _read_error(body)
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) and choices[0].get("error"):
        return _read_error(choices[0])
    return None


def has_tokens(body: Any) -> bool:
    """Whether a reply names its tokens, by their ids or with log-probabilities."""
    if isinstance(body, list):
        return any(map(has_tokens, body))
    if not isinstance(body, Mapping):
        return False
    return any((value and name in _TOKEN_FIELDS) or has_tokens(value) for name, value in body.items())


_TOKEN_FIELDS: Final = frozenset({"logprobs", "token_ids", "tokens", "completion_probabilities", "probs"})


def _read_error(body: Any) -> ServerError | None:
    """The error of `{"error": {...}}`, `{"error": "..."}`, `{"detail": ...}`, `{"message": ...}` and their kin."""
    if isinstance(body, list) and body:
        body = body[0]
    if not isinstance(body, Mapping):
        return None
    error = body.get("error") or body.get("base_resp") or body.get("detail") or body
    if isinstance(error, list) and error and isinstance(error[0], Mapping):  # pydantic: one entry for each fault
        location = error[0].get("loc")
        param = ".".join(map(str, location[1:])) if isinstance(location, list) else ""
        text = "; ".join(f"{'.'.join(map(str, e.get('loc') or ()))}: {e.get('msg', '')}" for e in error[:5])
        return ServerError(0, _one_line(text), str(error[0].get("type") or ""), param, error)
    if isinstance(error, str):
        code = str(body.get("code") or body.get("error_code") or "")
        message = str(body.get("message") or body.get("error_description") or "")
        text = f"{error}: {message}" if message and message != error else error
        return ServerError(_status_of(body, code, error), _one_line(text), code, detail=body)
    if not isinstance(error, Mapping):
        return None
    return _read_fields(error)


def _read_fields(error: Mapping[str, Any]) -> ServerError | None:
    """The error of an object with a message, a code and a type, by their several names."""
    message = _first(error, "message", "msg", "status_msg", "error_msg", "errorMessage", "reason", "detail")
    code = _first(error, "code", "status_code", "error_code", "errorCode", "status")
    kind = _first(error, "type", "status", "error_type")
    if not message and (code in ("", "0", "200", "None") or not code):
        return None
    words = f"{code} {kind}".strip()
    status = _status_of(error, code, kind, message)
    text = _one_line(message or words)
    return ServerError(status, text, words if not code.isdecimal() else kind, str(error.get("param") or ""), error)


def _first(values: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = values.get(name)
        if value is not None and value != "" and not isinstance(value, dict | list):
            return str(value)
    return ""


def _status_of(error: Mapping[str, Any], *words: str) -> int:
    """The HTTP status that an error names as a number or by a word of its code; 0 if it does not."""
    for name in ("code", "status", "status_code", "http_code"):
        number = str(error.get(name) or "")
        if number.isdecimal() and 300 <= int(number) < 600:
            return int(number)
    for word in words[:2]:
        text = word.lower().replace(" ", "_").replace("-", "_")
        for part, status in _CODE_STATUSES.items():
            if part in text:
                return status
    return 429 if len(words) > 2 and _RATE.search(words[2].lower()) else 0


def _one_line(text: str) -> str:
    return mask_key(" ".join(text[:MAX_MESSAGE].split()))


def is_out_of_files(err: BaseException) -> bool:
    """Whether this process, not a server, has no file descriptor left."""
    cause: Any = getattr(err, "os_error", None) or err
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)
