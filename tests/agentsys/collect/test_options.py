"""RunOptions: their values as the runner uses them, and the errors for values out of range."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.collect.command import CollectOptions
from agentsys.records import InputError
from agentsys.traces import read_traces
from tests.support.greeter import Context, greet
from tests.support.toys import one_node, write_lines


def test_the_defaults_use_the_cache_of_the_user(isolated_cache: Path) -> None:
    options = RunOptions()
    assert options.cache_path == isolated_cache / "requests.sqlite"
    assert options.cache_bytes == 20 * 10**9
    assert options.fields == {}


def test_no_cache_wins_over_a_cache_file(tmp_path: Path) -> None:
    assert RunOptions(cache=tmp_path / "c.sqlite").cache_path == tmp_path / "c.sqlite"
    assert RunOptions(cache=tmp_path / "c.sqlite", no_cache=True).cache_path is None


def test_columns_are_mapped_to_fields() -> None:
    assert RunOptions(field=["text=sentence", "note=a=b"]).fields == {"text": "sentence", "note": "a=b"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"in_flight": 0}, "--in-flight 0: at least 1 is needed"),
        ({"in_flight": 100_001}, "--in-flight 100001: at most 100,000 requests can be in flight"),
        ({"limit": 0}, "--limit 0: at least 1 is needed"),
        ({"token_budget": -5}, "--token-budget -5: at least 1 is needed"),
        ({"cache_limit": -1.0}, "--cache-limit -1.0: at least 0 is needed"),
        ({"cache_limit": float("inf")}, "--cache-limit inf: give a size in GB"),
        ({"cache_limit": float("nan")}, "--cache-limit nan: give a size in GB"),
        ({"seed": 2**63}, "--seed 9223372036854775808: give a number from "),
        ({"field": ["text"]}, "--field text: give graph field and column, as --field text=sentence"),
        ({"field": ["a=b", "=b"]}, "--field =b: give graph field and column, as --field text=sentence"),
    ],
)
def test_a_value_out_of_range_is_an_error(values: dict[str, Any], message: str) -> None:
    for kind in (RunOptions, CollectOptions):
        with pytest.raises(InputError) as error:
            kind(**values)
        assert str(error.value).startswith(message)


def test_a_command_adds_input_and_output_only() -> None:
    names = [item.name for item in fields(CollectOptions)]
    assert names == ["input", "out", *(item.name for item in fields(RunOptions))]


def test_collect_takes_the_options_and_paths_as_strings(tmp_path: Path, model: str) -> None:
    records = write_lines(
        tmp_path / "in.jsonl", [{"nr": i, "name": name} for i, name in enumerate(["Ann", "Bob", "Eve"])]
    )
    options = RunOptions(limit=2, field=["text=name"], id_field="nr", cache=tmp_path / "cache.sqlite")
    summary = collect(one_node(greet), str(records), str(tmp_path / "run"), context=Context(model), options=options)
    assert (summary.kept, summary.calls) == (2, 2)
    assert [(trace.id, trace.input["text"]) for trace in read_traces(tmp_path / "run")] == [("0", "Ann"), ("1", "Bob")]
    assert (tmp_path / "cache.sqlite").exists()


def test_collect_without_options_uses_the_defaults(tmp_path: Path, model: str, isolated_cache: Path) -> None:
    summary = collect(one_node(greet), ["Ann"], tmp_path / "run", context=Context(model))
    assert (summary.kept, summary.calls) == (1, 1)
    assert (isolated_cache / "requests.sqlite").exists()
