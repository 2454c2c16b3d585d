"""Options that must not be blank, in every context and in the options of commands."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import pytest

from agentsys.collect import RunOptions
from agentsys.graphs.translate.options import DataOptions
from agentsys.knobs import check_required, knob
from agentsys.systems import BaseContext
from tests.support.modules import folder_of, modules
from tests.support.paths import ROOT
from tests.support.toys import call_drt, one_error


def contexts() -> list[type[BaseContext]]:
    """Every context of the graphs, those of Studio among them."""
    for module in modules():
        if folder_of(module) == "graphs" and module.count(".") == 3:
            importlib.import_module(module)

    def below(kind: type[BaseContext]) -> Iterator[type[BaseContext]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted({kind for kind in below(BaseContext) if kind.__module__.startswith("agentsys.graphs.")}, key=str)


def name_of(kind: type) -> str:
    """The name of a class with that of its module."""
    return f"{kind.__module__}.{kind.__name__}"


def texts(kind: type) -> Iterator[tuple[str, Any]]:
    """The name and the field of each text option with a default that is not empty, without models of single roles."""
    hints = get_type_hints(kind)
    for item in fields(kind):
        if hints[item.name] is str and item.default and not item.name.endswith(("_model", "_prompt")):
            yield item.name, item


def test_the_contexts_of_studio_are_among_them() -> None:
    served = json.loads((ROOT / "langgraph.json").read_text())["graphs"].values()
    graphs = [getattr(importlib.import_module(path), name) for path, name in (g["path"].split(":") for g in served)]
    assert {graph.builder.context_schema for graph in graphs} <= set(contexts())


@pytest.mark.parametrize(
    "kind", [*contexts(), RunOptions, DataOptions], ids=lambda kind: f"{kind.__module__}.{kind.__name__}"
)
@pytest.mark.parametrize("blank", ["", " \t"])
def test_a_text_that_is_not_empty_by_default_must_not_be_blank(kind: Any, blank: str) -> None:
    names = {name for name, _ in texts(kind)} - {"document_field"}  # without that column each sentence is a document
    assert names & {"model", "target_language", "id_field"}
    for name in names:
        with pytest.raises(ValueError, match=f"^{name}: it is empty; give the "):
            kind(**{name: blank})


@pytest.mark.parametrize("kind", contexts(), ids=name_of)
def test_a_text_that_is_empty_by_default_may_be_so(kind: Any) -> None:
    assert kind()


def test_only_blank_texts_are_refused() -> None:
    @dataclass
    class Options:
        name: str = knob("x", "name of it", required=True)
        count: int = knob(0, "count", required=True)
        other: str = knob("x", "another name")

    check_required(Options("y", 0, ""))
    with pytest.raises(ValueError, match=r"^name: it is empty; give the name of it$"):
        check_required(Options("\n", 1, "y"))


@pytest.mark.parametrize("option", ["--target-language", "--source-language", "--model", "--id-field"])
def test_a_command_refuses_a_blank_option_in_one_line(capsys: pytest.CaptureFixture[str], option: str) -> None:
    code, out, err = call_drt(capsys, option, "")
    assert (code, out) == (2, "")
    assert one_error(err).startswith(f"{option[2:].replace('-', '_')}: it is empty; give the ")
