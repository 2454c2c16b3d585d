"""What the server accepts and what it refuses, with the reason."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from agentsys.trainers.idfree.device import Device, Parameters
from agentsys.trainers.idfree.queries import Checks, RefusedError, ReplayWindow, ServeOptions
from agentsys.trainers.loading import TrainerError


@dataclass(frozen=True)
class Info:
    design: str = "beta"
    n_tokens: int = 2
    width: int = 3
    spread: float = 0.5
    prior_first: float = 2.0
    prior_second: float = 5.0


GOOD = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]


def read(body: Any, options: ServeOptions | None = None, info: Info | None = None) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Checks(info or Info(), options or ServeOptions()).read(raw)


def test_a_request_is_a_text_and_an_embedding() -> None:
    query = read({"text": "hello", "embedding": GOOD})
    assert query.text == "hello" and query.embedding.dtype == np.float32 and query.max_new_tokens == 15
    np.testing.assert_allclose(query.embedding, GOOD)
    assert read({"text": "hello"}).embedding is None and read({"text": "hello", "embedding": None}).embedding is None


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"hello", 400, "the body is not JSON"),
        (b'{"text": "a", "embedding": [[NaN, 1, 1], [1, 1, 1]]}', 400, "the body is not JSON"),
        (b"[1]", 400, "must be an object"),
        ({"embedding": GOOD}, 400, "`text` must be a text"),
        ({"text": " ", "embedding": GOOD}, 400, "`text` must be a text"),
        ({"text": 5, "embedding": GOOD}, 400, "`text` must be a text"),
        ({"text": "a" * 101, "embedding": GOOD}, 413, "`text` has more than 100 characters"),
        ({"text": "a", "embedding": GOOD[:1]}, 400, r"has shape \(1, 3\): the model needs \(2, 3\)"),
        ({"text": "a", "embedding": []}, 400, r"has shape \(0,\): the model needs \(2, 3\)"),
        ({"text": "a", "embedding": [[0.1], [0.1, 0.2]]}, 400, "must have 2 lists of 3 numbers"),
        ({"text": "a", "embedding": [["0.1"] * 3] * 2}, 400, "must have 2 lists of 3 numbers"),
        ({"text": "a", "embedding": [[None, 0.1, 0.1], [0.1] * 3]}, 400, "must have 2 lists of 3 numbers"),
        ({"text": "a", "embedding": [[1e300, 0.1, 0.1], [0.1] * 3]}, 400, "values that are not finite"),
        ({"text": "a", "embedding": [[1.01, 0.1, 0.1], [0.1] * 3]}, 400, "outside the beta design's range, 0 to 1"),
        ({"text": "a", "embedding": [[-0.01, 0.1, 0.1], [0.1] * 3]}, 400, "outside the beta design's range"),
        ({"text": "a", "embedding": GOOD, "user": "ann"}, 400, "the field `user` can identify a user"),
        ({"text": "a", "embedding": GOOD, "id": 7}, 400, "the field `id` can identify a user"),
        ({"text": "a", "embedding": GOOD, "User_ID": 7}, 400, "the field `user_id` can identify a user"),
        ({"text": "a", "embedding": GOOD, "mood": "good"}, 400, "unknown field `mood`: the fields are text, embedding"),
        ({"text": "a", "max_new_tokens": 65}, 400, "`max_new_tokens` must be from 1 to 64"),
        ({"text": "a", "max_new_tokens": True}, 400, "`max_new_tokens` must be from 1 to 64"),
    ],
)
def test_what_is_refused(body: Any, status: int, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as raised:
        read(body, ServeOptions(characters=100))
    assert raised.value.status == status and "\n" not in str(raised.value)


def test_an_allowed_field_is_accepted_and_ignored() -> None:
    options = ServeOptions(allow="user, X-Request-ID")
    assert read({"text": "a", "embedding": GOOD, "user": "ann"}, options).text == "a"
    Checks(Info(), options).check_headers(["x-request-id", "host"], "application/json", False)
    with pytest.raises(RefusedError, match="the field `id`"):
        read({"text": "a", "embedding": GOOD, "id": 1}, options)


@pytest.mark.parametrize(
    "name", ["Cookie", "Authorization", "X-User-Id", "X-Request-ID", "X-Forwarded-For", "X-Real-IP", "X-Session"]
)
def test_headers_that_identify_a_user_are_refused(name: str) -> None:
    checks = Checks(Info(), ServeOptions())
    with pytest.raises(RefusedError, match=f"the header `{name.lower()}` can identify a user"):
        checks.check_headers(["host", name], "application/json", False)


def test_ordinary_headers_pass_and_other_requests_do_not() -> None:
    checks = Checks(Info(), ServeOptions())
    usual = ["Host", "User-Agent", "Accept", "Accept-Encoding", "Content-Length", "Content-Type", "Connection"]
    checks.check_headers(usual, "application/json; charset=utf-8", False)
    with pytest.raises(RefusedError, match="Content-Type must be application/json") as raised:
        checks.check_headers(usual, "text/plain", False)
    assert raised.value.status == 415
    with pytest.raises(RefusedError, match="a query string is not accepted"):
        checks.check_headers(usual, "application/json", True)


def test_a_second_use_of_an_embedding_is_refused_within_the_window() -> None:
    checks = Checks(Info(), ServeOptions(replays=2))
    bodies = [json.dumps({"text": "a", "embedding": [[value] * 3] * 2}).encode() for value in (0.1, 0.2, 0.3)]
    checks.read(bodies[0])
    with pytest.raises(RefusedError, match="this embedding was used before") as raised:
        checks.read(bodies[0])
    assert raised.value.status == 409
    for body in (bodies[1], bodies[2], bodies[0]):
        checks.read(body)


def test_the_window_keeps_no_embedding() -> None:
    window = ReplayWindow(10)
    embedding = np.full((1, 4), 0.25, np.float32)
    assert window.add(embedding) and not window.add(embedding)
    assert embedding.tobytes() not in repr(vars(window)).encode() and len(window._digests) == 1
    assert next(iter(window._digests)) != next(iter(_filled(embedding)._digests))


def _filled(embedding: Any) -> ReplayWindow:
    window = ReplayWindow(10)
    window.add(embedding)
    return window


@pytest.mark.parametrize("design", ["beta", "gauss"])
def test_every_draw_of_a_device_is_in_range(design: Any) -> None:
    """Users at the bounds of the spread, 20,000 values."""
    prior = (2.0, 5.0) if design == "beta" else (0.1, 0.2)
    info = Info(design, 1, 20_000, 0.1, *prior)
    for sign in (-1, 1):
        first, second = (np.full((1, 20_000), one + sign * 0.1, np.float32) for one in prior)
        body = Device(Parameters(design, first, second, "a1" * 32), seed=0).request("hello")
        assert read(body, info=info).embedding.shape == (1, 20_000)
    low, high = Checks(info, ServeOptions()).range()
    assert (low, high) == ((0.0, 1.0) if design == "beta" else pytest.approx((-2.4, 2.6)))


def test_options_that_cannot_be_are_refused() -> None:
    for options in ({"batch": 0}, {"replays": 0}, {"port": 70_000}, {"wait": -1.0}):
        with pytest.raises(TrainerError, match=f"--{next(iter(options))}"):
            ServeOptions(**options)
