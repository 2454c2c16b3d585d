"""Options from a YAML file, and the run.yaml that a command writes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from agentsys.commands import command, run_app
from agentsys.config import ConfigError, config_text, current, read_config, save_config, without_config
from agentsys.knobs import knob
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, role_options

PROMPT = "# user\n{{ text }}"
MIXED = {"critic_model": "c", "writer_model": "w"}


@dataclass(frozen=True)
class Duet(System):
    writer: Role[str] = Role("drt/narrator")
    critic: Role[str] = Role("drt/advisor")
    editor: Role[str] = Role("drt/refiner")


@dataclass(frozen=True)
@role_options(Duet, shared_models={"editor": "writer"})
class Context(BaseContext):
    rounds: int = knob(2, "number of rounds")
    rate: float = knob(0.5, "a share")
    strict: bool = knob(True, "a switch")
    loud: bool = knob(False, "another switch")
    again: bool = knob(False, "an option of one start", once=True)
    target_language: str = knob("Chinese", "a language", old_name="language")
    source: list[str] = knob((), "sources")
    file: Path | None = knob(None, "a file")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.md").write_text(PROMPT)
    return tmp_path


def test_a_command_without_roles_has_no_role_options(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Options:
        rounds: int = knob(2, "number of rounds")

    def main(options: Options) -> None:
        raise AssertionError

    main.__annotations__ = {"options": Options}
    Path("run.yaml").write_text("role-model: {critic: a}")
    assert run_app(command(main), ["--config", "run.yaml"]) == 2
    assert "error: --role-model critic=a: the command has no roles" in capsys.readouterr().err


def run(text: str, *arguments: str) -> tuple[int, Context | None, str]:
    """The exit code of a command with --config, its options, and the run.yaml that it would write."""
    results: list[tuple[Context, str]] = []

    def main(context: Context) -> None:
        results.append((context, current.get() or ""))

    main.__annotations__ = {"context": Context}
    Path("run.yaml").write_text(text, encoding="utf-8")
    code = run_app(command(main, name="collect duet"), ["--config", "run.yaml", *arguments])
    context, saved = results[0] if results else (None, "")
    return code, context, saved


def make(**values: Any) -> Context:
    return Context(**{"source": [], **values})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("rounds: 3", {"rounds": 3}),
        ("rate: 0.25\nstrict: false", {"rate": 0.25, "strict": False}),
        ("strict: no", {"strict": False}),
        ("target-language: no", {"target_language": "no"}),
        ("target_language: 007", {"target_language": "007"}),
        ("--target-language: Deutsch", {"target_language": "Deutsch"}),
        ("language: Thai", {"target_language": "Thai"}),
        ("source: [a, b]", {"source": ["a", "b"]}),
        ("source: ab", {"source": ["ab"]}),
        ("file: x/y.txt", {"file": Path("x/y.txt")}),
        ("role-model: {critic: 'scripted:c'}", {"critic_model": "scripted:c"}),
        ("role_model: ['critic=a?temperature=0', writer=b]", {"critic_model": "a?temperature=0", "writer_model": "b"}),
        ("role_model: critic=c", {"critic_model": "c"}),
        ("critic-model: c", {"critic_model": "c"}),
        ("role-prompt: {advisor: own.md}", {"advisor_prompt": PROMPT}),
        ("command: collect duet\nrounds: 3", {"rounds": 3}),
    ],
)
def test_a_file_sets_options(text: str, values: dict[str, Any]) -> None:
    code, context, _ = run(text)
    assert (code, context) == (0, make(**values))


@pytest.mark.parametrize(
    ("text", "arguments", "values"),
    [
        ("rounds: 3", ["--rounds", "4"], {"rounds": 4}),
        ("rounds: 3", ["--rounds", "2"], {"rounds": 2}),
        ("strict: false", ["--strict"], {"strict": True}),
        ("source: [a, b]", ["--source", "c"], {"source": ["c"]}),
        ("language: Thai", ["--target-language", "Chinese"], {"target_language": "Chinese"}),
        ("target-language: Thai", ["--language", "Lao"], {"target_language": "Lao"}),
        ("target-language: Thai\nlanguage: Lao", [], {"target_language": "Thai"}),
        ("loud: true", ["--no-loud"], {}),
        ("model: x<key removed>", ["--model", "y"], {"model": "y"}),
        (
            "role-model: {critic: a, writer: b}",
            ["--role-model", "critic=c"],
            {"critic_model": "c", "writer_model": "b"},
        ),
        ("role-model: {critic: a}", ["--critic-model", "c"], {"critic_model": "c"}),
        ("role-prompt: {advisor: nowhere.md}", ["--role-prompt", "advisor=own.md"], {"advisor_prompt": PROMPT}),
    ],
)
def test_the_command_line_wins(text: str, arguments: list[str], values: dict[str, Any]) -> None:
    code, context, _ = run(text, *arguments)
    assert (code, context) == (0, make(**values))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("rouns: 3", "--config run.yaml: no option rouns; did you mean rounds?"),
        ("config: other.yaml", "no option config"),
        ("zebra: 1", "--config run.yaml: no option zebra; --help lists the options"),
        ("rounds: three", "Invalid value for '--rounds'"),
        ("rounds: [3]", "run.yaml: rounds: give one value, not a list"),
        ("rounds: {a: 3}", "run.yaml: rounds: give one value, or a list of values"),
        ("source: [[a]]", "run.yaml: source: give one value, or a list"),
        ("- rounds", "write option names and values, such as `limit: 100`"),
        ("rounds", "write option names and values"),
        ("rounds: 3\n--rounds: 4", "--rounds: given twice"),
        ("rounds: [3", "run.yaml: not YAML:"),
        ("command: train sft", "options of `agentsys train sft`, not of collect duet"),
        (
            "model: x<key removed>",
            "--model x<key removed>: the file does not have the key; give --model on the command",
        ),
        ("role-model: {critic: a}\ncritic-model: b", "role-model and critic-model both set one role: give one of them"),
        ("file: ''", "run.yaml: file: it is empty; give a path"),
        ("file:", "run.yaml: file: it is empty; give a path"),
        ("role-model: {critc: c}", "--role-model critc=c: no role critc; roles: writer, critic"),
        ("role-model: {editor: c}", "the role editor uses --writer-model; roles: writer, critic"),
        ("role-model: {critic: }", "--role-model critic=: give a role and its setting"),
        ("role-prompt: {advisor: nowhere.md}", "prompt file nowhere.md: No such file"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(text) == (2, None, "")
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and error in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--role-model", "critic"], "--role-model critic: give a role and its setting, as --role-model writer=..."),
        (["--role-model", "critic=a", "--role-model", "critic=b"], "the role critic is named twice"),
        (["--role-model", "critic=a", "--critic-model", "b"], "--role-model and --critic-model both set one role"),
        (["--role-prompt", "critic=own.md"], "no role critic; roles: narrator, advisor, refiner"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: No such file or directory"),
        (["--config", "."], "--config .: Is a directory"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("", *arguments) == (2, None, "")
    assert error in capsys.readouterr().err


def test_bytes_are_not_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml: not UTF-8 text"):
        read_config("bytes.yaml")


def test_what_is_set_is_written_and_read_again() -> None:
    arguments = ["--rounds", "2", "--no-strict", "--source", "ä: b", "--role-model", "critic=x?temperature=0"]
    code, context, saved = run("rate: 0.25\nfile: a b.txt\nlanguage: no", *arguments)
    assert code == 0
    assert yaml.safe_load(saved) == {
        "command": "collect duet",
        "rounds": 2,
        "rate": 0.25,
        "strict": False,
        "target-language": "no",
        "source": ["ä: b"],
        "file": "a b.txt",
        "role-model": {"critic": "x?temperature=0"},
    }
    assert run(saved) == (0, context, saved)


def test_nothing_set_is_nothing_written() -> None:
    assert yaml.safe_load(run("")[2]) == {"command": "collect duet"}


def test_what_holds_for_one_start_is_not_written() -> None:
    code, context, saved = run("", "--again", "--loud")
    assert (code, context) == (0, make(again=True, loud=True))
    assert yaml.safe_load(saved) == {"command": "collect duet", "loud": True}


@pytest.mark.parametrize("number", [float("inf"), float("-inf")])
def test_an_infinite_number_is_read_again(number: float) -> None:
    Path("run.yaml").write_text(config_text("x", {"rate": number}))
    assert float(read_config("run.yaml")["rate"]) == number


def test_the_roles_options_are_two_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("", "--help")[0] == 0
    text = capsys.readouterr().out
    assert "--role-model" in text and "--role-prompt" in text and "--config" in text
    for hidden in ("--critic-model", "--advisor-prompt", "--language"):
        assert hidden not in text


def test_a_key_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSYS_API_KEY", "sk-very-secret")
    text = config_text("collect duet", {"model": "http://host/v1?x=sk-very-secret", "source": ["sk-very-secret"]})
    assert "very" not in text and text.count("<key removed>") == 2


@pytest.mark.parametrize(
    ("variable", "value", "is_key"),
    [
        ("HF_TOKEN", "hf_abcdefgh", True),
        ("GITHUB_PAT", "ghp_abcdefgh", True),
        ("DB_PASSWORD", "abcdefgh", True),
        ("TOKENIZERS_CACHE", "abcdefgh", False),
        ("MONKEY", "abcdefgh", False),
        ("SOME_KEY", "short", False),
        ("SSH_KEY", "~/.ssh/id_ed25519", False),
    ],
)
def test_what_is_taken_for_a_key(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, is_key: bool) -> None:
    monkeypatch.setenv(variable, value)
    assert (value not in config_text("x", {"model": f"http://host?x={value}"})) == is_key


def test_a_part_of_a_command_has_no_run_yaml(folder: Path) -> None:
    token = current.set("command: x\n")
    try:
        with without_config():
            save_config(folder / "part")
        save_config(folder)
    finally:
        current.reset(token)
    assert not (folder / "part").exists() and (folder / "run.yaml").exists()


def test_processes_that_share_a_folder_do_not_disturb_each_other(folder: Path) -> None:
    code = (
        "from agentsys.config import current, save_config\n"
        f"current.set('command: x')\nfor _ in range(300): save_config({str(folder / 'shared')!r})"
    )
    children = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    assert [child.communicate()[1] for child in children] == [b"", b""]


def test_only_a_command_writes_its_options(folder: Path) -> None:
    save_config(folder / "library")
    assert not (folder / "library").exists()
    token = current.set("command: x\n")
    try:
        save_config(str(folder / "run"))
    finally:
        current.reset(token)
    assert [path.name for path in (folder / "run").iterdir()] == ["run.yaml"]
    assert (folder / "run" / "run.yaml").read_text() == "command: x\n"
