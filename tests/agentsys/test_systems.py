"""Contexts: the options of a system's roles, models and prompts; graphs of one node."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import NotRequired

import pytest
from typing_extensions import TypedDict

from agentsys.models import SpecError
from agentsys.roles import Role
from agentsys.systems import BaseContext, System, ask, knob, model_of, role_options, sequence_graph

PROMPT = "# user\n{{ text }}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt files of three roles, two of which share one."""
    folder = tmp_path_factory.mktemp("prompts")
    for name in ("writer", "critic"):
        (folder / f"{name}.md").write_text(PROMPT)
    return folder


@pytest.fixture(scope="module")
def system(folder: Path) -> type[System]:
    @dataclass(frozen=True)
    class Part(System):
        critic: Role[str] = Role(folder / "critic.md")

    @dataclass(frozen=True)
    class Draft(System):
        writer: Role[str] = Role(folder / "writer.md")
        reviser: Role[str] = Role(folder / "writer.md")
        part: Part = Part()

    return Draft


def test_a_context_gets_the_options_of_its_roles(system: type[System]) -> None:
    @dataclass(frozen=True)
    @role_options(system, shared_models={"reviser": "writer"}, old_names={"critic": "judge"})
    class Context(BaseContext):
        rounds: int = knob(2, "rounds")

    assert [item.name for item in fields(Context)] == [
        "model", "writer_model", "critic_model", "rounds", "writer_prompt", "critic_prompt",
    ]  # fmt: skip
    assert all(item.metadata["description"] for item in fields(Context))
    assert {item.name: item.metadata["old_name"] for item in fields(Context) if item.metadata["old_name"]} == {
        "critic_model": "judge_model",
        "critic_prompt": "judge_prompt",
    }
    with pytest.raises(ValueError, match="critic_model: 1"):
        Context(**{"critic_model": 1})


async def test_models_and_prompts_reach_their_roles(system: type[System], tmp_path: Path) -> None:
    @dataclass(frozen=True)
    @role_options(system, shared_models={"reviser": "writer"})
    class Context(BaseContext):
        """No knobs."""

    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"replies": ["{name}"]}}')
    one, two = (f"scripted:{tmp_path / name}.jsonl" for name in ("one", "two"))
    context, draft = Context(**{"model": one, "writer_model": two, "critic_prompt": "# user\nseverely"}), system()
    roles = {"writer": draft.writer, "reviser": draft.reviser, "critic": draft.part.critic}  # type: ignore[attr-defined]
    answers = {name: await ask(context, role, key=name, text="x") for name, role in roles.items()}
    assert {name: answer.value for name, answer in answers.items()} == {
        "writer": "two",
        "reviser": "two",
        "critic": "one",
    }
    assert answers["critic"].call.messages[0]["content"] == "severely"


@pytest.mark.parametrize("wrong", ["writr_model", "critik_prompt"])
def test_an_option_of_no_role_is_an_error_where_the_class_is_made(system: type[System], wrong: str) -> None:
    annotations = {"__annotations__": {wrong: "str"}, wrong: knob("", "misspelt")}
    with pytest.raises(TypeError, match=f"{wrong}: no role has this option; the options are writer_model"):
        role_options(system)(type("Context", (BaseContext,), annotations))


def test_sharing_names_existing_roles(system: type[System]) -> None:
    with pytest.raises(TypeError, match="editor: no such role; the roles are writer, reviser, critic"):
        role_options(system, shared_models={"editor": "writer"})


def test_a_role_without_an_option_is_not_asked_with_the_default_model(system: type[System], folder: Path) -> None:
    """A context without `role_options` shows a misspelt field only when the role is asked."""

    @dataclass(frozen=True)
    class Misspelt(BaseContext):
        model: str = knob("embedded", "model")
        writr_model: str = knob("", "misspelt")

    with pytest.raises(SpecError, match="Misspelt has no option writer_model"):
        model_of(Misspelt(), Role(folder / "writer.md"))


def test_a_subclass_adds_the_model_of_its_own_role(system: type[System], folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    @role_options(system)
    class Context(BaseContext):
        """The roles of the system."""

    @dataclass(frozen=True)
    class Mine(Context):
        editor_model: str = knob("", "the model of a role that only this context has")

    (tmp_path / "one.jsonl").write_text('{"replies": ["one"]}')
    spec = f"scripted:{tmp_path / 'one.jsonl'}"
    editor = Role(folder / "writer.md", name="editor")
    assert model_of(Mine(editor_model=spec), editor) is model_of(Mine(spec), Role(folder / "critic.md"))


def test_a_field_of_the_class_itself_is_kept(system: type[System]) -> None:
    @dataclass(frozen=True)
    @role_options(system)
    class Context(BaseContext):
        critic_model: str = knob("scripted:strict.jsonl", "a strong model")

    assert Context().critic_model == "scripted:strict.jsonl"
    names = [item.name for item in fields(Context)]
    assert names == ["model", "writer_model", "reviser_model", "critic_model", "writer_prompt", "critic_prompt"]


def test_a_role_can_share_the_general_model(system: type[System], tmp_path: Path) -> None:
    @dataclass(frozen=True)
    @role_options(system, shared_models={"critic": ""})
    class Context(BaseContext):
        """No knobs."""

    assert "critic_model" not in {item.name for item in fields(Context)}
    assert Context.role_fields == {"writer": "writer_model", "reviser": "reviser_model", "critic": "model"}


async def test_the_nodes_of_a_sequence_are_named_after_their_functions() -> None:
    class State(TypedDict):
        text: str
        length: NotRequired[int]

    async def measure(state: State) -> dict[str, int]:
        return {"length": len(state["text"])}

    graph = sequence_graph(measure, state=State, context=BaseContext, input=State, output=State).compile()
    assert set(graph.nodes) == {"__start__", "measure"}
    assert await graph.ainvoke({"text": "four"}, context=BaseContext()) == {"text": "four", "length": 4}

    async def double(state: State) -> dict[str, int]:
        return {"length": 2 * state["length"]}

    graph = sequence_graph(measure, double, state=State, context=BaseContext, input=State, output=State).compile()
    assert graph.builder.edges == {("__start__", "measure"), ("measure", "double"), ("double", "__end__")}
    assert (await graph.ainvoke({"text": "four"}, context=BaseContext()))["length"] == 8


def test_a_context_with_one_model_serves_every_role(folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Simple(BaseContext):
        model: str = knob("embedded", "model")

    (tmp_path / "one.jsonl").write_text('{"replies": ["one"]}')
    assert model_of(Simple(f"scripted:{tmp_path / 'one.jsonl'}"), Role(folder / "writer.md"))
