"""Options of a command line from the fields of a dataclass."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentsys.collect.command import CollectOptions
from agentsys.commands import command, run_app
from agentsys.config import save_config
from agentsys.display import say
from agentsys.knobs import knob

PROMPT = "# user\n{{ text }}"


@dataclass(frozen=True)
class Context:
    judge: bool = knob(True, "on by default")
    verbose: bool = knob(False, "off by default")


@dataclass(frozen=True)
class Renamed:
    """Fields of every kind that once had other names."""

    parallel: int = knob(4, "simulations at once", old_name="at_once")
    exhaustive: bool = knob(False, "search the whole tree", old_name="whole_tree")
    source: list[str] = knob((), "sources", old_name="origin")
    critic_model: str = knob("", "model spec", old_name="judge_model")
    critic_prompt: str = knob("", "prompt text", old_name="judge_prompt")


def parse(kind: type, *arguments: object) -> tuple[int, list[object]]:
    """The exit code of a command with the options of a dataclass, and the instances that it got."""
    instances: list[object] = []

    def main(options: object) -> None:
        instances.append(options)

    main.__annotations__ = {"options": kind}
    return run_app(command(main), [str(argument) for argument in arguments]), instances


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Context()),
        (["--no-judge"], Context(judge=False)),
        (["--judge", "--verbose"], Context(verbose=True)),
    ],
)
def test_switches(arguments: list[str], expected: Context) -> None:
    assert parse(Context, *arguments) == (0, [expected])


@dataclass(frozen=True)
class Options:
    out: Path = knob(Path("out"), "output folder")


def test_verbose_prints_messages_for_debugging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Notices are printed as without it, once; run.yaml does not have it."""
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-very-secret-12345")

    def main(options: Options) -> None:
        logging.getLogger("agentsys.part").debug("detail\x1b[2J of sk-very-secret-12345")
        say("notice")
        save_config(options.out)
        raise ValueError("wrong")

    main.__annotations__ = {"options": Options}
    lines = {}
    for arguments in (["--out", str(tmp_path)], ["--verbose", "--out", str(tmp_path)]):
        assert run_app(command(main), arguments) == 2
        lines[len(arguments)] = capsys.readouterr().err.splitlines()
        assert "\nverbose" not in (tmp_path / "run.yaml").read_text()
    assert lines[2] == ["notice", "error: wrong"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d agentsys\.part: detail\\x1b\[2J of \*\*\*", lines[3].pop(0))
    assert lines[3] == lines[2]
    logger = logging.getLogger("agentsys")
    assert (logger.level, logger.handlers) == (logging.NOTSET, [])


def test_a_switch_can_be_turned_off() -> None:
    """What --config turns on, the command line turns off."""
    assert parse(Context, "--verbose", "--no-verbose") == (0, [Context()])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--at-once", 9], {"parallel": 9}),
        (["--whole-tree"], {"exhaustive": True}),
        (["--origin", "a", "--origin", "b"], {"source": ["a", "b"]}),
        (["--judge-model", "scripted:x"], {"critic_model": "scripted:x"}),
        (["--judge-prompt", "critic.md"], {"critic_prompt": PROMPT}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_old_option_name_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], expected: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("critic.md").write_text(PROMPT)
    code, [options] = parse(Renamed, *arguments)
    assert code == 0
    assert options == Renamed(**{"source": [], **expected})  # type: ignore[arg-type]


@pytest.mark.parametrize("new_first", [True, False])
def test_the_new_option_name_wins_if_both_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_first: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("critic.md").write_text(PROMPT)
    Path("old.md").write_text("# user\nold")
    old: list[object] = ["--at-once", 9, "--origin", "old", "--judge-model", "old", "--judge-prompt", "old.md"]
    new: list[object] = ["--parallel", 2, "--source", "new", "--critic-model", "new", "--critic-prompt", "critic.md"]
    code, [options] = parse(Renamed, *([*new, *old] if new_first else [*old, *new]))
    assert code == 0
    assert options == Renamed(parallel=2, source=["new"], critic_model="new", critic_prompt=PROMPT)


def test_an_old_option_name_is_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Renamed, "--help") == (0, [])
    text = capsys.readouterr().out
    for name in ("--parallel", "--exhaustive", "--source", "--critic-model", "--critic-prompt"):
        assert name in text
    for name in ("at-once", "whole-tree", "origin", "judge"):
        assert name not in text


def test_a_wrong_value_of_an_old_option_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Renamed, "--at-once", "many") == (2, [])
    assert "--at-once" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["--retry-failed", "--retry-rejected"])
def test_failed_records_are_retried_under_both_names(name: str) -> None:
    assert parse(CollectOptions, name) == (0, [CollectOptions(retry_failed=True, field=[])])


def test_a_collect_command_lists_input_and_output_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(CollectOptions, "--help") == (0, [])
    text = capsys.readouterr().out
    names = ["--input", "--out", "--field", "--id-field", "--limit", "--shuffle", "--seed", "--in-flight"]
    places = [text.index(name) for name in names]
    assert places == sorted(places)
    assert "--retry-failed" in text and "rejected" not in text


def test_ctrl_c_ends_the_process_of_a_command_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's threads are not waited for, but a program that runs a command with arguments goes on."""
    codes: list[int] = []
    monkeypatch.setitem(sys.modules, "agentsys.models.embedded", SimpleNamespace(leave_at_once=codes.append))
    monkeypatch.setattr(sys, "argv", ["command"])

    def main() -> None:
        raise KeyboardInterrupt

    app = command(main)
    assert run_app(app, []) == 130 and not codes
    assert run_app(app) == 130 and codes == [130]


def test_a_profile_sets_what_neither_the_command_line_nor_the_file_sets(tmp_path: Path) -> None:
    seen: list[tuple[Renamed, str]] = []

    def main(options: Renamed) -> None:
        save_config(tmp_path)
        seen.append((options, (tmp_path / "run.yaml").read_text()))

    main.__annotations__ = {"options": Renamed}
    app = command(main, profiles={"paper": {"parallel": 7, "exhaustive": True, "critic_model": "large"}})
    file = tmp_path / "options.yaml"
    file.write_text("critic-model: mine\n")
    orders = (["--profile", "paper", "--config", str(file)], ["--config", str(file), "--profile", "paper"])
    for arguments in ([], *orders, ["--profile", "paper", "--at-once", "2", "--no-exhaustive"]):
        assert run_app(app, arguments) == 0
    default, first, second, last = (options for options, _ in seen)
    assert default == Renamed(source=[])
    assert first == second == Renamed(parallel=7, exhaustive=True, source=[], critic_model="mine")
    assert last == Renamed(parallel=2, source=[], critic_model="large")
    text = seen[1][1]
    assert "parallel: 7" in text and "profile" not in text, "run.yaml has the options themselves"


def test_a_profile_may_be_named_in_a_file(tmp_path: Path) -> None:
    seen: list[Renamed] = []

    def main(options: Renamed) -> None:
        seen.append(options)

    main.__annotations__ = {"options": Renamed}
    file = tmp_path / "options.yaml"
    file.write_text("profile: paper\n")
    assert run_app(command(main, profiles={"paper": {"parallel": 7}}), ["--config", str(file)]) == 0
    assert seen == [Renamed(parallel=7, source=[])]


def test_an_unknown_profile_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main(options: Renamed) -> None: ...

    main.__annotations__ = {"options": Renamed}
    assert run_app(command(main, profiles={"paper": {"parallel": 7}}), ["--profile", "papre"]) == 2
    assert capsys.readouterr().err == "error: --profile papre: no such profile; there is paper\n"
