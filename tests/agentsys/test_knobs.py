"""Options that must not be blank, and numbers with bounds, in every context and in the options of commands."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

from agentsys.collect import RunOptions
from agentsys.graphs.translate.options import DataOptions
from agentsys.knobs import check_required, knob, studio_bound
from agentsys.systems import BaseContext
from tests.support.modules import folder_of, modules
from tests.support.paths import ROOT
from tests.support.toys import call_drt, one_error


def contexts() -> list[type[BaseContext]]:
    """Every context of the graphs, those of Studio among them."""
    served = json.loads((ROOT / "langgraph.json").read_text())["graphs"].values()
    of_graphs = {module for module in modules() if folder_of(module) == "graphs" and module.count(".") == 3}
    for module in of_graphs | {graph["path"].partition(":")[0] for graph in served}:
        importlib.import_module(module)

    def below(kind: type[BaseContext]) -> Iterator[type[BaseContext]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted(
        {kind for kind in below(BaseContext) if kind.__module__.startswith(("agentsys.graphs.", "agentsys.trainers."))},
        key=str,
    )


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


# Bounds of numbers


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Studio's server."""
    monkeypatch.setitem(sys.modules, "langgraph_api", ModuleType("langgraph_api"))


def numbers(kind: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(kind)
    for item in fields(kind):
        if {int, float} & {hints[item.name], *get_args(hints[item.name])}:
            yield item.name, item


@pytest.mark.parametrize("kind", contexts(), ids=name_of)
def test_a_number_has_an_upper_bound(kind: Any) -> None:
    """Any web page can send a context to Studio: a number without a bound freezes the server."""
    for name, item in numbers(kind):
        bounds = [item.metadata.get(bound) for bound in ("highest", "highest_in_studio")]
        assert any(bound is not None for bound in bounds), f"{name} needs highest=... or highest_in_studio=..."


@pytest.mark.parametrize("kind", contexts(), ids=name_of)
def test_studio_takes_the_defaults_and_no_number_above_the_bound(served: None, kind: Any) -> None:
    assert kind()
    for name, item in numbers(kind):
        bound = studio_bound(item)
        assert bound is not None
        with pytest.raises(ValueError, match=f"^{name}: .* is above "):
            kind(**{name: type(item.default)(bound * 2 + 1)})


@dataclass(frozen=True)
class OwnContext(BaseContext):
    """A user's context, whose knobs have no bounds."""

    width: int = knob(3, "width")
    share: float = knob(0.5, "share")
    big: int = knob(50_000, "big")
    maybe: int | None = knob(None, "maybe")
    percent: float = knob(1.0, "percent", highest=100)
    is_on: bool = knob(True, "a switch")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"width": 1000, "share": -1000.0, "big": 500_000, "maybe": 1000, "percent": 100.0, "is_on": False}, ""),
        ({"width": 1001}, "width: 1001 is above 1000, the most that Studio accepts"),
        ({"width": -1001}, "width: -1001 is above 1000"),
        ({"share": 1e300}, "share: 1e.300 is above 1000"),
        ({"big": 500_001}, "big: 500001 is above 500000"),
        ({"maybe": 1001}, "maybe: 1001 is above 1000"),
        ({"percent": 100.5}, "percent: 100.5 is above 100$"),
    ],
)
def test_a_users_numbers_are_bounded_in_studio(served: None, values: dict[str, Any], problem: str) -> None:
    if not problem:
        assert OwnContext(**values)
        return
    with pytest.raises(ValueError, match=f"^{problem}"):
        OwnContext(**values)


def test_only_senseless_numbers_are_refused_elsewhere() -> None:
    assert OwnContext(width=10**6, share=1e300, maybe=10**9)
    with pytest.raises(ValueError, match=r"^percent: 100\.5 is above 100$"):
        OwnContext(percent=100.5)
