"""The prompts of a run in its folder, and the differences that a refused resume shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunFolderError, Summary, collect
from agentsys.collect.resume import prompt_file
from agentsys.commands import command, run_app
from agentsys.graphs.drt.system import DRT
from agentsys.graphs.drt.system import Context as DrtContext
from agentsys.prompt import Prompt
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, knob, role_options, sequence_graph
from tests.support.greeter import UNCACHED
from tests.support.toys import RULES, Input, State, call_drt, one_error, read_manifest, write_lines

NOTE = "A note for readers.\n\n"
TEXT = "# system\nBe kind.\nBe brief.\n# user\nGreet {{ text }}"


def greeter(text: str) -> Role[str]:
    return Role(Prompt.parse(text, "greeter"))


@dataclass(frozen=True)
class Greetings(System):
    """One role."""

    greeter: Role[str] = greeter(TEXT)

    async def greet(self, state: Any, runtime: Any) -> dict[str, Any]:
        return {"reply": (await ask(runtime.context, self.greeter, key="greet", text=state["text"])).value}

    def compile(self) -> Any:
        return sequence_graph(self.greet, state=State, context=Context, input=Input, output=State).compile(name="toy")


@dataclass(frozen=True)
@role_options(Greetings)
class Context(BaseContext):
    """The model and the prompt."""

    mood: str = knob("fine", "mood")


@pytest.fixture
def run(tmp_path: Path, model: str) -> Callable[..., Summary]:
    """Runs a greeter with this prompt, and with this one in place of it, into the folder `run`."""

    def collect_names(text: str = TEXT, override: str = "", names: tuple[str, ...] = ("Ann",), **knobs: Any) -> Summary:
        context = replace(Context(model=model, **knobs), **{"greeter_prompt": override})
        return collect(Greetings(greeter(text)).compile(), names, tmp_path / "run", context=context, options=UNCACHED)

    return collect_names


def refusal(run: Callable[[], Summary]) -> RunFolderError:
    with pytest.raises(RunFolderError) as error:
        run()
    assert "\n" not in str(error.value)
    return error.value


def test_a_run_folder_has_the_prompts_that_its_roles_read(tmp_path: Path, run: Callable[..., Summary]) -> None:
    run(NOTE + TEXT)
    stored = tmp_path / "run" / "prompts" / "greeter.md"
    assert stored.read_text() == NOTE + TEXT
    run("Another note.\n" + TEXT)  # a note is not part of the prompt: the run resumes
    assert stored.read_text() == "Another note.\n" + TEXT
    assert [path.name for path in stored.parent.iterdir()] == ["greeter.md"]  # no temporary file


def test_the_stored_prompt_is_that_of_the_context(tmp_path: Path, run: Callable[..., Summary]) -> None:
    run(override="# user\nHey {{ text }}")
    assert (tmp_path / "run" / "prompts" / "greeter.md").read_text() == "# user\nHey {{ text }}"


def test_roles_that_share_a_prompt_file_have_a_file_each(tmp_path: Path, model: str) -> None:
    prompt = Prompt.parse(TEXT, "either")
    drt = DRT(advisor=Role(prompt), draft=Role(prompt, name="x"))
    collect(drt.builder().compile(name="drt"), [], tmp_path / "run", context=DrtContext(model=model), options=UNCACHED)
    names = {"keywords", "draft", "advisor", "evaluator", "comparer", "refiner", "narrator"}
    names |= {"candidate", "contrast", "rewriter", "short_narrator"}
    assert {path.stem for path in (tmp_path / "run" / "prompts").iterdir()} == names
    assert set(read_manifest(tmp_path / "run")["fingerprint"]["roles"]) == names


def test_prompts_of_an_earlier_run_without_records_are_replaced(tmp_path: Path, model: str) -> None:
    context = Context(model=model)
    other: Role[str] = Role(Prompt.parse(TEXT, "old"))

    async def node(state: Any) -> dict[str, Any]:
        return {"reply": other.name}

    graph = sequence_graph(node, state=State, context=Context, input=Input, output=State).compile(name="old")
    collect(graph, [], tmp_path / "run", context=context, options=UNCACHED)
    (tmp_path / "run" / "prompts" / "mine.txt").write_text("a file of the user's")
    collect(Greetings().compile(), [], tmp_path / "run", context=context, options=UNCACHED)
    assert sorted(path.name for path in (tmp_path / "run" / "prompts").iterdir()) == ["greeter.md", "mine.txt"]


@pytest.mark.parametrize("role", ["a/b", "../a", "", ".", "a (b)", "x" * 300, "né\x1b", "con:"])
def test_any_role_name_has_a_file_of_its_own(role: str) -> None:
    name = prompt_file(role)
    assert Path(name).parent == Path("prompts")
    assert len(name) < 120 and name.isprintable()
    assert name != prompt_file(role + "_")


def test_a_refusal_names_the_role_and_shows_the_difference(tmp_path: Path, run: Callable[..., Summary]) -> None:
    run(NOTE + TEXT)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    error = refusal(lambda: run(TEXT.replace("brief", "long")))
    assert "holds a run with other settings (the prompt of greeter); choose another --out" in str(error)
    assert error.detail.splitlines() == [
        f"--- {tmp_path / 'run' / 'prompts' / 'greeter.md'}",
        "+++ now",
        "@@ -1,5 +1,5 @@",
        " # system",
        " Be kind.",
        "-Be brief.",
        "+Be long.",
        " # user",
        " Greet {{ text }}",
    ]
    assert error.__notes__ == [error.detail]  # a traceback in a notebook shows it
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_an_override_and_a_setting_that_differ_are_both_named(run: Callable[..., Summary]) -> None:
    run(override="# user\nHey {{ text }}")
    error = refusal(lambda: run(mood="bad"))
    assert "(the prompt of greeter; knobs.mood: fine -> bad)" in str(error)
    assert "-Hey {{ text }}" in error.detail and "+Greet {{ text }}" in error.detail
    assert not refusal(lambda: run(override="# user\nHey {{ text }}", mood="bad")).detail


def test_a_folder_without_prompts_gets_only_the_line(tmp_path: Path, run: Callable[..., Summary]) -> None:
    run()
    (tmp_path / "run" / "prompts" / "greeter.md").unlink()
    error = refusal(lambda: run("# user\nHey {{ text }}"))
    assert "(the prompt of greeter)" in str(error)
    assert error.detail == ""
    assert not hasattr(error, "__notes__")


def test_the_difference_is_bounded_and_free_of_control_characters(tmp_path: Path, run: Callable[..., Summary]) -> None:
    run()
    lines = [f"line {i} \x1b]0;title\x07 \u202e" + "x" * 2000 for i in range(50)]
    (tmp_path / "run" / "prompts" / "greeter.md").write_bytes(b"# user\n\xff\x00\r\n" + "\n".join(lines).encode())
    detail = refusal(lambda: run("# user\nHey {{ text }}")).detail
    assert all(line.isprintable() and len(line) < 1100 for line in detail.split("\n"))
    shown = detail.split("\n")
    assert len(shown) == 41
    assert shown[-1] == "... 16 more lines"
    assert "\\x1b]0;title\\x07 \\u202e" in detail and " more characters" in detail


def test_the_command_prints_the_difference_below_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "replies.jsonl", RULES)
    write_lines(tmp_path / "in.jsonl", [{"text": "The lamp shone like a moon."}])
    (tmp_path / "mine.md").write_text("# user\nHow is {{ translation }} for {{ text }}?")
    model = f"scripted:{tmp_path / 'replies.jsonl'}"  # models are kept by their spec, whatever the working folder
    arguments = ["--model", model, "--input", "in.jsonl", "--out", "run", "--no-cache"]
    assert call_drt(capsys, *arguments)[0] == 0
    code, out, err = call_drt(capsys, *arguments, "--advisor-prompt", "mine.md")
    line, _, rest = err.partition("\n")
    assert (code, out) == (2, "")
    assert "(the prompt of advisor)" in one_error(line + "\n")
    assert rest.startswith("--- run/prompts/advisor.md\n+++ now\n@@ ")
    assert "\n+How is {{ translation }} for {{ text }}?\n" in rest


def test_an_error_without_detail_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise RunFolderError("first\nsecond")

    assert run_app(command(main), []) == 2
    assert capsys.readouterr().err == "error: first second\n"
