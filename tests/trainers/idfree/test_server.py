"""The server over real HTTP, with a scripted model: batches, refusals, and nothing that links requests."""

from __future__ import annotations

import http.client
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentsys.trainers.idfree import device
from agentsys.trainers.idfree.device import DeviceError, Parameters, save_parameters, send
from agentsys.trainers.idfree.queries import Query, ServeOptions
from agentsys.trainers.loading import TrainerError

pytest.importorskip("fastapi")

from agentsys.trainers.idfree.server import compute_answers, make_app, open_socket
from tests.support.idfree import WIDTH, Info, ScriptedModel, make_device, serve


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel()


def test_64_devices_at_once_get_their_own_answers_in_few_batches() -> None:
    """The model waits in its first batch until all requests are sent: most share a forward pass."""
    model = ScriptedModel(open=False)
    sent = threading.Barrier(65, timeout=300)

    def ask(number: int) -> None:
        body = make_device(number).request(f"text {number}")
        connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=300)
        connection.request("POST", "/v1/classify", json.dumps(body), {"Content-Type": "application/json"})
        sent.wait()
        answer = json.loads(connection.getresponse().read())
        connection.close()
        mean = float(np.array(body["embedding"], np.float32).mean())
        assert answer["probabilities"]["good"] == pytest.approx(mean, abs=1e-6)
        assert answer["label"] == ("good" if mean > 0.5 else "bad") and answer.keys() == {"label", "probabilities"}

    with serve(model) as server, ThreadPoolExecutor(64) as devices:
        asked = [devices.submit(ask, number) for number in range(64)]
        sent.wait()
        model.gate.set()
        for one in asked:
            one.result(300)
    assert sum(model.sizes) == 64 and max(model.sizes) > 8


def test_completions_keep_their_length_and_their_draw() -> None:
    model = ScriptedModel(Info(task="generate"))
    with serve(model, new_tokens=20) as server:
        body = make_device(1).request("once upon")
        mean = float(np.array(body["embedding"], np.float32).mean())
        answer = send(server, "/v1/completions", {**body, "max_new_tokens": 7})
        assert answer == {"text": f"once upon {mean:.4f} 7"}
        assert send(server, "/v1/completions", {"text": "once"}) == {"text": "once 0.0000 15"}
        with pytest.raises(DeviceError, match=r"\(404\): this server answers POST /v1/completions"):
            send(server, "/v1/classify", make_device(2).request("hello"))


def test_a_device_asks_after_a_check_of_the_model(
    model: ScriptedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parameters(tmp_path / "user.npz", make_device(1).parameters)
    other = np.full((1, WIDTH), 2, np.float32)
    save_parameters(tmp_path / "other.npz", Parameters("beta", other, other, "b2" * 32))
    with serve(model) as server:
        assert device.main([str(tmp_path / "user.npz"), "--text", "hello", "--server", server]) == 0
        assert json.loads(capsys.readouterr().out).keys() == {"label", "probabilities"}
        assert device.main([str(tmp_path / "other.npz"), "--text", "hello", "--server", server]) == 1
        assert "fitted with another central model" in capsys.readouterr().err
    assert model.sizes == [1]


def post(server: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection(server.removeprefix("http://"), timeout=120)
    connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    result = (
        response.status,
        json.loads(response.read()),
        {name.lower(): value for name, value in response.getheaders()},
    )
    connection.close()
    return result


def test_refusals_over_http(model: ScriptedModel) -> None:
    with serve(model, characters=1_000) as server:
        request = make_device(1).request("hello")
        body = json.dumps(request).encode()
        assert post(server, body)[0] == 200
        assert post(server, body)[:2] == (
            409, {"error": "this embedding was used before: draw a fresh one for each request"}
        )  # fmt: skip
        status, answer, _ = post(server, body, {"Cookie": "session=1"})
        assert status == 400 and answer["error"].startswith("the header `cookie` can identify a user")
        assert post(server, body, {"Content-Type": "text/plain"})[0] == 415
        status, answer, _ = post(server, json.dumps({**request, "text": "a" * 10_000_000}).encode())
        assert status == 413 and answer["error"].startswith("the body has more than 7,192 bytes")
        with pytest.raises(DeviceError, match=r"refused the request \(400\): unknown field `mood`"):
            send(server, "/v1/classify", {**make_device(2).request("hello"), "mood": "good"})
    assert sum(model.sizes) == 1


def test_nothing_in_an_answer_links_requests_and_nothing_is_logged(
    model: ScriptedModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(model) as server, caplog.at_level(logging.DEBUG):
        body = json.dumps({"text": "a secret text"}).encode()
        answers = [post(server, body) for _ in range(2)]
    for _, _, headers in answers:
        assert headers.keys() <= {"date", "content-length", "content-type"}
    assert answers[0][1] == answers[1][1]
    assert "secret" not in caplog.text and "/v1/classify" not in caplog.text
    printed = capfd.readouterr()
    assert "127.0.0.1" not in printed.out + printed.err and "secret" not in printed.out + printed.err


def test_a_defect_of_the_model_fails_its_batch_alone(model: ScriptedModel) -> None:
    with serve(model) as server:
        with pytest.raises(DeviceError, match=r"refused the request \(500\)"):
            send(server, "/v1/classify", {"text": "break"})
        assert send(server, "/v1/classify", {"text": "hello"})["label"] == "bad"


def test_requests_with_and_without_an_embedding_share_a_batch_but_not_a_forward_pass(model: ScriptedModel) -> None:
    halves = np.full((1, WIDTH), 0.75, np.float32)
    queries = [Query("a", halves, 15), Query("b", None, 15), Query("c", halves, 3)]
    answers = compute_answers(model, queries)
    assert [answer["label"] for answer in answers] == ["good", "bad", "good"] and sorted(model.sizes) == [1, 2]


def test_the_central_model_answers_without_an_embedding(model: ScriptedModel) -> None:
    central = ScriptedModel()
    halves = np.full((1, WIDTH), 0.75, np.float32)
    compute_answers(model, [Query("a", halves, 15), Query("b", None, 15), Query("c", None, 15)], central)
    assert (model.sizes, central.sizes) == ([1], [2])
    with pytest.raises(TrainerError, match="--central: that model has another task or other classes"):
        make_app(model, ServeOptions(), ScriptedModel(Info(labels=("0", "1", "2"))))


def test_a_port_in_use_is_refused_in_one_line() -> None:
    listener = open_socket("127.0.0.1", 0)
    listener.listen()
    port = listener.getsockname()[1]
    with pytest.raises(TrainerError, match=rf"--host 127.0.0.1 --port {port}: .*; give another"):
        open_socket("127.0.0.1", port)
    listener.close()
