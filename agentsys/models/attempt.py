"""One request in the form that its server accepts."""

from __future__ import annotations

from typing import Any

from agentsys.models import wire
from agentsys.models.adapt import MAX_CHANGES, Adaptation, NoChange, refuse_extra, settings_sent
from agentsys.models.endpoint import Endpoint
from agentsys.models.errors import ModelError
from agentsys.models.faults import RequestRefused
from agentsys.models.room import PromptTooLong

_SCHEMA_LEVELS = ("schema", "json", "prompt")


class Attempt:
    """The body of a request, changed after each refusal that another form of it may avoid."""

    def __init__(self, endpoint: Endpoint, model: str, request: wire.Request, body: dict[str, Any]) -> None:
        self._endpoint, self._request, self._full = endpoint, request, body
        adaptation = endpoint.adaptations.get(model)
        if adaptation is None:
            adaptation = endpoint.adaptations[model] = Adaptation()
        self._adaptation = adaptation
        self._room: int | None = None
        self._changes = 0
        self.body = body if adaptation.is_empty else adaptation.apply(body)

    def change(self, refusal: RequestRefused) -> None:
        """Change the body after a refusal. Raises the refusal if nothing is left to change."""
        error = refusal.error
        self._changes += 1
        url = str(refusal).removesuffix(error.text).rstrip(": ")
        try:
            refuse_extra(error, self._request.sampling.get("extra") or {}, url)
            room = self._adaptation.learn(error, self.body, self._endpoint.say)
        except NoChange:
            raise refusal from None
        except PromptTooLong as err:
            raise ModelError(f"{url}: {err}") from None
        self._room = self._room if room is None else room
        body = self._adaptation.apply(self._full, self._room)
        if body == self.body or self._changes > MAX_CHANGES:
            raise refusal
        self.body = body

    def sent(self) -> dict[str, Any] | None:
        """What was sent where it is not what the request asks for: see wire.Reply.sent."""
        if self.body is self._full and "generation_config" not in self.body:
            return None
        settings = settings_sent(self._request.sampling, self.body)
        sent: dict[str, Any] = {} if settings == self._request.sampling else {"sampling": settings}
        if "messages" in self.body and self.body["messages"] != self._request.messages:
            sent["messages"] = self.body["messages"]
        if self._request.schema is not None and self._adaptation.schema_level:
            sent["schema"] = _SCHEMA_LEVELS[self._adaptation.schema_level]
        return sent or None
