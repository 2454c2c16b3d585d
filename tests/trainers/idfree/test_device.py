"""The device: its parameter file, fresh draws, and one file that runs wherever numpy is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agentsys.trainers.idfree import device
from agentsys.trainers.idfree.device import (
    Design,
    Device,
    DeviceError,
    FloatArray,
    Parameters,
    load_parameters,
    save_parameters,
)

MODEL = "a1" * 32
OTHER = "b2" * 32


def make_parameters(design: Design = "beta", tokens: int = 1, width: int = 6, seed: int = 0) -> Parameters:
    random = np.random.default_rng(seed)
    first, second = (random.uniform(1, 3, (tokens, width)).astype(np.float32) for _ in range(2))
    return Parameters(design, first, second, MODEL)


@pytest.mark.parametrize("design", ["beta", "gauss"])
def test_a_parameter_file_is_read_back_as_it_was_written(design: Design, tmp_path: Path) -> None:
    parameters = make_parameters(design, tokens=5)
    save_parameters(tmp_path / "user.npz", parameters)
    loaded = load_parameters(tmp_path / "user.npz", MODEL, 6)
    assert (loaded.design, loaded.model, loaded.width) == (design, MODEL, 6)
    np.testing.assert_array_equal(loaded.first, parameters.first)
    np.testing.assert_array_equal(loaded.second, parameters.second)
    assert [file.name for file in tmp_path.iterdir()] == ["user.npz"]


def test_the_file_of_a_token_of_width_768_is_about_seven_kilobytes(tmp_path: Path) -> None:
    save_parameters(tmp_path / "user.npz", make_parameters(width=768))
    assert 6_144 < (tmp_path / "user.npz").stat().st_size < 8_000


def test_draws_follow_the_distribution_and_are_fresh() -> None:
    first, second = np.full((1, 4), 2, np.float32), np.full((1, 4), 5, np.float32)
    beta = Device(Parameters("beta", first, second, MODEL), seed=1)
    draws = np.array([beta.draw() for _ in range(5_000)])
    assert draws.dtype == np.float32 and draws.shape == (5_000, 1, 4)
    assert draws.min() > 0 and draws.max() < 1 and len(np.unique(draws)) > 19_900
    assert draws.mean() == pytest.approx(2 / 7, abs=0.005) and draws.std() == pytest.approx(0.1597, abs=0.005)
    gauss = Device(Parameters("gauss", first, second, MODEL), seed=1)
    draws = np.array([gauss.draw() for _ in range(5_000)])
    assert draws.mean() == pytest.approx(2, abs=0.15) and draws.std() == pytest.approx(5, abs=0.15)


def test_extreme_parameters_stay_inside_the_open_interval() -> None:
    tiny, large = np.full((1, 200), 1e-4, np.float32), np.full((1, 200), 1e6, np.float32)
    for first, second in ((tiny, large), (large, tiny), (tiny, tiny)):
        values = Device(Parameters("beta", first, second, MODEL), seed=0).draw()
        assert values.min() > 0 and values.max() < 1


def test_two_devices_with_one_file_draw_different_embeddings(tmp_path: Path) -> None:
    save_parameters(tmp_path / "user.npz", make_parameters())
    phone, laptop = (Device(load_parameters(tmp_path / "user.npz")) for _ in range(2))
    assert not np.intersect1d(phone.draw(), laptop.draw()).size


def test_a_request_has_the_text_and_an_embedding_and_nothing_else() -> None:
    parameters = make_parameters(tokens=2)
    body = json.loads(json.dumps(Device(parameters, seed=3).request("A good film")))
    assert body.keys() == {"text", "embedding"} and body["text"] == "A good film"
    np.testing.assert_array_equal(np.array(body["embedding"], np.float32), Device(parameters, seed=3).draw())
    with pytest.raises(DeviceError, match="the text is empty"):
        Device(parameters).request(" \n")


def damaged(tmp_path: Path, **changes: object) -> Path:
    parameters = make_parameters()
    first, second = parameters.first, parameters.second
    fields = {"version": 1, "design": "beta", "model": MODEL, "first": first, "second": second} | changes
    path = tmp_path / "user.npz"
    with path.open("wb") as file:
        np.savez(file, **{name: np.array(value) for name, value in fields.items() if value is not None})
    return path


def with_value(value: float) -> FloatArray:
    first = make_parameters().first.copy()
    first[0, 2] = value
    return first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "not a parameter file of version 1"),
        ({"version": None}, "not a parameter file of version 1"),
        ({"design": "cauchy"}, "unknown design 'cauchy': it is beta or gauss"),
        ({"second": None}, "the parameter file is incomplete"),
        ({"first": np.ones((1, 5), np.float32)}, r"shapes \(1, 5\) and \(1, 6\)"),
        ({"first": "text"}, "the parameter file is incomplete"),
        ({"first": with_value(np.nan)}, "contain NaN or infinite values"),
        ({"first": with_value(0)}, "must be positive"),
        ({"design": "gauss", "second": with_value(-1)}, "must be positive"),
        ({"model": "latest"}, "do not name their central model"),
        ({"first": np.array([[object()] * 6])}, "not a parameter file, or a damaged one"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=message) as raised:
        load_parameters(damaged(tmp_path, **changes))
    assert str(raised.value).startswith(f"{tmp_path / 'user.npz'}: ") and "\n" not in str(raised.value)


def test_a_file_that_is_no_parameter_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "user.npz"
    with pytest.raises(DeviceError, match="no such parameter file"):
        load_parameters(path)
    for content in (b"", b"hello", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(DeviceError, match="not a parameter file, or a damaged one"):
            load_parameters(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DeviceError, match="not a parameter file, or a damaged one"):
        load_parameters(path)


def test_a_file_of_another_model_or_width_is_refused(tmp_path: Path) -> None:
    save_parameters(tmp_path / "user.npz", make_parameters())
    with pytest.raises(DeviceError, match="fitted with another central model"):
        load_parameters(tmp_path / "user.npz", OTHER)
    with pytest.raises(DeviceError, match="its embeddings are 6 wide and the model's 384"):
        load_parameters(tmp_path / "user.npz", MODEL, 384)


RUNNER = """
import runpy, sys
allowed = sys.stdlib_module_names | {"numpy", "__main__"}
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    loaded = {name.partition(".")[0] for name, module in sys.modules.items() if hasattr(module, "__file__")}
    print(sorted(name for name in loaded - allowed if not name.startswith("_")), file=sys.stderr)
"""


def run_copy(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of the file alone, isolated from this repository; the last line of stderr lists other packages."""
    copy = tmp_path / "phone.py"
    shutil.copy(device.__file__, copy)
    command = [sys.executable, "-I", "-c", RUNNER, str(copy), *arguments]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)


def test_a_copy_of_the_file_alone_makes_a_request(tmp_path: Path) -> None:
    save_parameters(tmp_path / "user.npz", make_parameters())
    run = run_copy(tmp_path, "user.npz", "--text", "Grüße")
    body = json.loads(run.stdout)
    assert body["text"] == "Grüße" and np.array(body["embedding"]).shape == (1, 6)
    others = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 0 and "agentsys" not in others and "torch" not in others, run.stderr


def test_a_copy_reports_an_error_in_one_line(tmp_path: Path) -> None:
    run = run_copy(tmp_path, "nobody.npz", "--text", "hello")
    assert run.returncode == 1 and run.stderr.splitlines()[0] == "error: nobody.npz: no such parameter file"


def test_the_command_reads_standard_input_and_checks_the_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_parameters(tmp_path / "user.npz", make_parameters())
    path = str(tmp_path / "user.npz")
    assert device.main([path, "--text", "hi", "--server", "localhost:1"]) == 1
    assert "the address must begin with http:// or https://" in capsys.readouterr().err
    assert device.main([path, "--text", "hi", "--server", "http://127.0.0.1:9"]) == 1
    assert "is the server running?" in capsys.readouterr().err
