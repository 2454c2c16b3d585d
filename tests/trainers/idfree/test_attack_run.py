"""The attacks as a command: on a run's folder and on simulated users."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentsys.commands import run_app
from agentsys.trainers import idfree_attack
from agentsys.trainers.idfree.attack_run import AttackOptions, attack_run, main_result, read_target
from agentsys.trainers.idfree.attacks import ATTACKS, simulate_users
from agentsys.trainers.loading import TrainerError

USERS, WIDTH = 8, 48


def write_run(run: Path, new_users: tuple[int, ...] = (), users: int = USERS) -> Path:
    """A run whose users have clear embeddings, and texts of which half name their writer."""
    for folder in ("devices", "cloud", "split"):
        (run / folder).mkdir(parents=True)
    parameters = simulate_users("beta", users, WIDTH, 0.4)
    shape = (users, 1, WIDTH)
    np.savez(
        run / "devices" / "parameters.npz",
        first=np.clip(parameters.first, 1.5, 2.5).reshape(shape),
        second=np.clip(parameters.second, 4.5, 5.5).reshape(shape),
    )
    settings = {"design": "beta", "spread": 0.5, "prior_first": 2.0, "prior_second": 5.0}
    (run / "cloud" / "idfree.json").write_text(json.dumps(settings))
    (run / "split" / "data.json").write_text(json.dumps({"labels": ["0", "1"], "users": users, "new_users": new_users}))
    for part, count in (("train", 12), ("validation", 4), ("test", 10)):
        rows = [
            (user, f"{'a plain text' if number % 2 else 'user-' * 3 + chr(97 + user) * 9} no. {number}")
            for user in range(users)
            for number in range(count)
        ]
        columns = {"user": [user for user, _ in rows], "text": [text for _, text in rows], "label": [0] * len(rows)}
        pq.write_table(pa.table(columns), run / "split" / f"{part}.parquet")
    return run


def test_all_attacks_on_a_run(tmp_path: Path) -> None:
    report = attack_run(write_run(tmp_path), AttackOptions(linked="1,10,30"))
    assert list(report.curves) == [0.5, 0.125, 0.03125] and report.text_users == {1: 8, 10: 8}
    spread, curves = report.main
    assert spread == 0.5 and list(curves) == [*ATTACKS, "text", "text and embedding", "embedding adds"]
    assert list(curves["attribution"]) == [1, 10, 30] and list(curves["text"]) == [1, 10]
    assert curves["attribution"][30].value == 1.0
    assert 0.3 < curves["text"][1].value < 0.8 < curves["text and embedding"][10].value
    for size in (1, 10):
        added = curves["text and embedding"][size].value - curves["text"][size].value
        assert curves["embedding adds"][size].value == pytest.approx(added)
    assert curves["embedding adds"][1].value > report.curves[0.03125]["embedding adds"][1].value
    assert main_result(report)[0].startswith("What embeddings of spread 0.5 add to the texts (attack 5 minus attack 4)")


def test_users_without_a_device_are_left_out(tmp_path: Path) -> None:
    target = read_target(write_run(tmp_path, new_users=(1, 6)), 4)
    assert len(target.users) == 4
    stored = np.load(tmp_path / "devices" / "parameters.npz")["first"][[0, 2, 3, 4], 0]
    np.testing.assert_array_equal(target.users.first, stored.astype(np.float32))
    assert np.unique(target.test.users).tolist() == [0, 1, 2, 3]
    assert any("ccccccccc" in target.test.texts[row] for row in np.flatnonzero(target.test.users == 1))


def test_the_command_writes_the_curves_and_prints_the_main_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    row = {"system": "own embedding", "gain": 0.043, "gain_low": 0.031, "gain_high": 0.055}
    (run / "report.json").write_text(json.dumps({"table": [{"system": "central", "gain": 0.0}, row]}))
    assert run_app(idfree_attack.app, [str(run), "--linked", "1,3", "--spreads", "0.5,0.1"]) == 0
    printed = capsys.readouterr().out
    assert "gains in accuracy over the central model: 4.3 points (3.1 to 5.5)" in printed
    assert "What embeddings of spread 0.5 add to the texts" in printed and "linkage (known)" in printed
    report = json.loads((run / "attacks.json").read_text())
    assert list(report["curves"]) == ["0.1", "0.5"] and report["chance"] == {"attribution": 1 / 8, "linkage": 0.5}
    value, low, high = report["curves"]["0.5"]["embedding adds"]["3"]
    assert low <= value <= high
    assert (run / "attacks.png").read_bytes().startswith(b"\x89PNG")


def test_simulated_users_have_no_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--design", "gauss", "--width", "32", "--attacked", "20", "--linked", "1,10", "--out", str(tmp_path)]
    assert run_app(idfree_attack.app, options) == 0
    report = json.loads((tmp_path / "attacks.json").read_text())
    assert list(report["curves"]) == ["0.005", "0.05", "0.2"] and set(report["curves"]["0.2"]) == set(ATTACKS)
    assert "attack 5" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--linked", "0"], "--linked 0: give numbers above 0"),
        (["--linked", "1,x"], "--linked 1,x: give numbers separated by commas"),
        (["--spreads", "-1"], "--spreads -1: give numbers above 0"),
        (["--attacked", "1"], "--attacked 1: an attack needs at least 2 users"),
        (["--width", "0"], "--width 0: give at least 1"),
        (["nowhere"], "has no devices/parameters.npz: give the output folder of `train idfree-pl`"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_app(idfree_attack.app, options) == 2
    assert message in capsys.readouterr().err


def test_a_run_with_one_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="the attacks need at least two users with a device"):
        read_target(write_run(tmp_path, new_users=tuple(range(1, USERS))), 100)
