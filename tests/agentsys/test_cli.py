"""The command `agentsys`: its names, a user's own folder, and a run that is run again."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agentsys.cli import COLLECT, EVALUATE, ORDER, TOOLS, TRAIN, app, main
from agentsys.config import read_config
from tests.support.drt import script_rules
from tests.support.modules import modules
from tests.support.shards import shard_lines
from tests.support.toys import write_lines

COMMANDS = {
    f"{group} {name}".strip(): module
    for group, table in (("collect", COLLECT), ("evaluate", EVALUATE), ("train", TRAIN), ("", TOOLS))
    for name, (module, _) in table.items()
}
"""The module of each command."""

OWN_COMMAND = '''
from dataclasses import dataclass
from agentsys.commands import command, knob
from words import WORD

@dataclass(frozen=True)
class Options:
    name: str = knob("you", "whom to greet")
    out: str = knob("", "folder")

def main(options: Options) -> None:
    """Greet somebody."""
    from agentsys.config import save_config
    print(WORD, options.name)
    if options.out:
        save_config(options.out)

app = command(main)
'''


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_that_of_its_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The name that the module gives itself, which run.yaml stores, is the one that starts it."""
    module, _, function = COMMANDS[name].partition(":")
    assert function or importlib.import_module(module).app.info.name == name
    assert main([*name.split(), "--help"]) == 0
    assert f"agentsys {name}" in capsys.readouterr().out


def test_every_script_is_a_command() -> None:
    scripts = {
        module
        for module, path in modules().items()
        if module.startswith(("agentsys.graphs.", "agentsys.trainers."))
        and "\napp = command(" in path.read_text("utf-8")
    }
    assert scripts == {
        module for module in COMMANDS.values() if module.startswith(("agentsys.graphs", "agentsys.trainers"))
    }
    assert len(scripts) > 15


def test_the_help_lists_all_commands_without_importing_them() -> None:
    code = (
        "import sys; from agentsys.cli import main; main(['--help']); main(['collect', '--help'])\n"
        "print([name for name in sys.modules if name.startswith(('agentsys.graphs', 'langgraph', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in (*ORDER, *COLLECT):
        assert re.search(rf"^\W+{name} ", done.stdout, re.MULTILINE), name
    assert done.stdout.endswith("[]\n")
    registered = {item.name or item.callback.__name__ for item in app.registered_commands}
    groups = {group.name for group in app.registered_groups}
    assert registered | groups | {*TOOLS} == {*ORDER}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["colect"], "agentsys has no 'colect': use collect, evaluate"),
        (["collect", "drtt"], "collect has no 'drtt': use drt, drt-mine"),
        (["collect", "./drtt"], "drtt: no such folder; `agentsys new NAME` writes one"),
        (["collect", "."], ".: no collect.py there; `agentsys new NAME` writes a folder with one"),
        (["train", "export"], "has no 'export': use sft"),
        (["collect", "drt", "--modle", "x"], "--modle"),
        (["rerun", "nowhere"], "nowhere: no run.yaml there; give the output folder of a command of this version"),
        (["rerun", "--limit", "5", "run"], "the folder comes first, as agentsys rerun FOLDER --limit"),
        (["cache", "--path", "nowhere"], "--path nowhere: no such file"),
        (["export", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and error in text and text.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["collect"]])
def test_without_arguments_the_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert "Usage: agentsys" in printed.out + printed.err and "error" not in printed.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"agentsys \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder whose collect.py imports another module of the folder."""
    folder = tmp_path / "greeting"
    folder.mkdir()
    (folder / "collect.py").write_text(OWN_COMMAND)
    (folder / "words.py").write_text("WORD = 'Good evening,'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("words", "greeting_collect"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.mark.parametrize("written", ["greeting", "./greeting", "greeting/collect.py", "{absolute}"])
def test_a_folder_of_the_users_own(own_folder: Path, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", written.format(absolute=own_folder), "--name", "Ada"]) == 0
    assert capsys.readouterr().out == "Good evening, Ada\n"


def test_a_syntax_error_in_the_users_file_is_one_line(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_folder / "collect.py").write_text("x = 1\ndef broken(:\n")
    assert main(["collect", "greeting"]) == 2
    assert f"{own_folder / 'collect.py'}:2: invalid syntax" in capsys.readouterr().err


def test_a_run_of_a_folder_runs_again(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", "greeting", "--name", "Ada", "--out", "run"]) == 0
    assert read_config("run/run.yaml") == {"command": f"collect {own_folder}", "name": "Ada", "out": "run"}
    assert main(["rerun", "run"]) == 0
    assert main(["rerun", "run", "--name", "Emmy", "--out", "other"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"Good evening, {name}" for name in ("Ada", "Ada", "Emmy")]
    assert read_config("other/run.yaml") == {"command": f"collect {own_folder}", "name": "Emmy", "out": "other"}


@pytest.mark.parametrize(
    "name",
    [
        *(
            name
            for name in COMMANDS
            if name
            not in (
                "collect ragtrans",
                "evaluate translate-human",
                "evaluate punchbench-annotate",
                "train miniplm",
                "train idfree-serve",
                *TOOLS,
            )
        ),
        *(
            "collect ragtrans tasks",
            "evaluate translate-human export",
            "train miniplm chunk",
            "train miniplm train",
            "index build",
            "rows",
        ),
    ],
)
def test_every_command_that_a_run_yaml_names_is_started(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(f"command: {name}\n")
    assert main(["rerun", str(tmp_path), "--nope"]) == 2
    assert re.match(r"error: No such option:? '?--nope\b", capsys.readouterr().err)  # typer 0.20 quotes it


def test_a_folder_whose_file_has_no_command(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_folder / "collect.py").write_text("WORD = 1")
    assert main(["collect", "greeting"]) == 2
    assert "end the file with `app = command(main)`" in capsys.readouterr().err


def test_a_mistake_in_the_users_code_keeps_its_traceback(own_folder: Path) -> None:
    (own_folder / "words.py").write_text("WORD = undefined")
    with pytest.raises(NameError):
        main(["collect", "greeting"])


def test_a_drt_run_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It resumes: nothing is paid twice. With --out it is made elsewhere, with other options where they are given."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rules.jsonl", script_rules((60, 75, 92)))
    write_lines(tmp_path / "texts.jsonl", [{"text": "A sun like a coin."}, {"text": "A coin like a sun."}])
    options = [
        "--model",
        "scripted:rules.jsonl",
        "--limit",
        "1",
        "--no-cache",
        "--role-model",
        "advisor=?temperature=0",
    ]
    assert main(["collect", "drt", "--input", "texts.jsonl", "--out", "run", *options]) == 0
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text()) == {
        "command": "collect drt",
        "input": "texts.jsonl",
        "out": "run",
        "model": "scripted:rules.jsonl",
        "limit": 1,
        "no-cache": True,
        "role-model": {"advisor": "?temperature=0"},
    }
    capsys.readouterr()
    assert main(["rerun", "run"]) == 0
    assert "nothing to do: all records of texts.jsonl" in capsys.readouterr().out
    assert main(["rerun", "run", "--out", "two", "--limit", "2"]) == 0
    assert read_config("two/run.yaml")["limit"] == "2"
    assert len(shard_lines(tmp_path / "two")) == 2
