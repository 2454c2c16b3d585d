"""Every reader with some hundred damaged files: it reads them, or refuses them in one line that names the file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from agentsys.config import config_text, read_config
from agentsys.models.scripted import ScriptedChatModel
from agentsys.models.spec import load_model
from agentsys.prompt import Prompt
from agentsys.records import BadRecord, read_records
from agentsys.terms.sources import load_sources
from tests.support.extras import skip_without
from tests.support.fuzz import check, damaged, fault_of, first_faults
from tests.support.terms import tmx
from tests.support.toys import RULES, write_lines

pytestmark = pytest.mark.timeout(120)

ROWS = [
    {
        "id": f"r{i}",
        "text": f"Line {i}, “quoted”; 行",
        "number": i,
        "list": [i, None],
        "object": {"a": 1.5},
        "flag": i % 2 == 0,
    }
    for i in range(12)
]
TERMS = [("harbor", "港口"), ("barge", "驳船"), ("R&D", "研发"), ("pier", "码头")]


def json_lines() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def table(separator: str) -> bytes:
    lines = [
        "id{0}text{0}number",
        *(f'{row["id"]}{{0}}"Line {row["number"]}, ""x"""{{0}}{row["number"]}' for row in ROWS),
    ]
    return "\n".join(line.format(separator) for line in lines).encode()


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, row_group_size=5)
    return sink.getvalue().to_pybytes()


def zst() -> bytes:
    skip_without("inputs")
    import zstandard

    return zstandard.compress(json_lines())


INPUTS: dict[str, Callable[[], bytes]] = {
    "a.jsonl": json_lines,
    "a.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "a.csv": lambda: table(","),
    "a.tsv": lambda: table("\t"),
    "a.txt": lambda: "".join(f"{row['text']}\n" for row in ROWS).encode(),
    "a.parquet": parquet,
    "a.jsonl.gz": lambda: gzip.compress(json_lines()),
    "a.csv.bz2": lambda: bz2.compress(table(",")),
    "a.jsonl.xz": lambda: lzma.compress(json_lines()),
    "a.jsonl.zst": zst,
}


def read_input(path: Path) -> None:
    for record in read_records(path, required=["text"]):
        assert record.source.startswith(f"{path}:"), record.source
        if isinstance(record, BadRecord):
            assert record.reason and "\n" not in record.reason, repr(record.reason)
        else:
            json.dumps(record.data)


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(INPUTS[name]())
    read_input(path)
    check(first_faults(path, read_input, name, 300))


def spreadsheet() -> bytes:
    import io

    import openpyxl

    book = openpyxl.Workbook()
    for row in [("term", "translation"), *TERMS]:
        book.active.append(row)
    book.save(file := io.BytesIO())
    return file.getvalue()


def term_base() -> bytes:
    entries = "".join(
        f'<termEntry id="{i}"><langSet xml:lang="en"><tig><term>{a.replace("&", "&amp;")}</term></tig></langSet>\n'
        f'<langSet xml:lang="zh-CN"><tig><term>{b}</term></tig></langSet></termEntry>\n'
        for i, (a, b) in enumerate(TERMS)
    )
    return f'<?xml version="1.0"?>\n<martif type="TBX"><text><body>{entries}</body></text></martif>'.encode()


def memory() -> bytes:
    return tmx(*({"en": a.replace("&", "&amp;"), "zh": b} for a, b in TERMS)).replace("<tu ", "\n<tu ").encode()


def xliff() -> bytes:
    units = "".join(
        f'<trans-unit id="{i}"><source>{a.replace("&", "&amp;")}</source><target>{b}</target></trans-unit>\n'
        for i, (a, b) in enumerate(TERMS)
    )
    head = '<xliff version="1.2"><file source-language="en" target-language="zh"><body>\n'
    return f"{head}{units}</body></file></xliff>".encode()


def list_lines() -> bytes:
    return "".join(json.dumps({"term": a, "translation": [b, "其他"], "gloss": "x"}) + "\n" for a, b in TERMS).encode()


TERM_FILES: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "t.csv": ("terms", lambda: "\n".join(["source,target", *(f'{a},"{b}"' for a, b in TERMS)]).encode(), 300),
    "t.tsv": ("terms", lambda: "\n".join(["source\ttarget", *("\t".join(pair) for pair in TERMS)]).encode(), 300),
    "t.jsonl": ("dictionary", list_lines, 300),
    "t.xlsx": ("terms", spreadsheet, 150),
    "t.tbx": ("terms", term_base, 300),
    "t.xliff": ("terms", xliff, 300),
    "m.tmx": ("tmx", memory, 300),
    "m.xlf": ("tmx", xliff, 300),
    "m.tmx.gz": ("tmx", lambda: gzip.compress(memory()), 300),
}


@pytest.mark.needs("knowledge")
@pytest.mark.parametrize("name", TERM_FILES)
def test_term_files(name: str, tmp_path: Path) -> None:
    kind, content, count = TERM_FILES[name]
    path = tmp_path / name
    path.write_bytes(content())

    def read(path: Path) -> None:
        load_sources([f"{kind}:{path}"], "English", "Chinese")

    read(path)
    check(first_faults(path, read, name, count))


def test_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.md"
    text = "A note.\n# system\nYou are {{ role | upper }}.\n# each s in steps\n# user\n{{ s.text }}\n# end\n# user\n"
    path.write_text(text + "{% if a %}{{ b|join(', ') }}{% else %}x{% endif %}{% for c in d %}{{ c }}{% endfor %}")
    inputs = {"role": "x", "steps": [{"text": "{{ x }}\n# user"}, {"text": ""}], "a": 1, "b": ["y", "z"], "d": "yz"}
    Prompt.load(path).render(inputs)
    check(first_faults(path, lambda path: Prompt.load(path).render(inputs), "prompt", 400, "prompt p:", path.name))


def test_rules_of_a_scripted_model(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rules.jsonl", RULES)
    check(first_faults(path, lambda path: ScriptedChatModel.from_file(str(path), {}), "rules", 400))


def test_files_of_options(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    options = {
        "limit": 3,
        "field": ["text=a", "b=c"],
        "role_model": {"draft": "embedded"},
        "seed": -1,
        "text": "a: b\n#",
    }
    path.write_text(config_text("collect drt", options), encoding="utf-8")
    check(first_faults(path, read_config, "config", 400))


TRAFFIC_ROWS = [(f"2024-01-0{1 + hour // 24} {hour % 24:02}:00", hour, 3.5 * hour) for hour in range(40)]


def traffic_csv() -> bytes:
    return ("time,a,b\n" + "".join(f"{time},{a},{b}\n" for time, a, b in TRAFFIC_ROWS)).encode()


def traffic_long_csv() -> bytes:
    return ("Zeit;station;wert\n" + "".join(f"{t};s1;{a}\n{t};s2;{b}\n" for t, a, b in TRAFFIC_ROWS)).encode()


def traffic_parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*TRAFFIC_ROWS, strict=True))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"time": columns[0], "a": columns[1], "b": columns[2]}), sink)
    return sink.getvalue().to_pybytes()


def traffic_npz() -> bytes:
    import io

    import numpy as np

    np.savez(file := io.BytesIO(), data=np.arange(80.0).reshape(40, 2, 1))
    return file.getvalue()


def traffic_h5() -> bytes:
    skip_without("traffic")
    import io

    import h5py
    import numpy as np

    with h5py.File(buffer := io.BytesIO(), "w") as file:
        group = file.create_group("df")
        group["axis0"] = group["block0_items"] = np.array([b"a", b"b"])
        group["axis1"] = np.arange(40, dtype=np.int64) * 3600 * 10**9
        group["axis1"].attrs["kind"] = np.bytes_("datetime64")
        group["block0_values"] = np.arange(80.0).reshape(40, 2)
    return buffer.getvalue()


def traffic_json() -> bytes:
    nodes = [{"bus_stop": name, "y": list(range(40))} for name in (5, 7)]
    return json.dumps({"nodes": nodes, "links": [{"source": 5, "target": 7, "weight": 1.5}]}).encode()


TRAFFIC: dict[str, Callable[[], bytes]] = {
    "wide.csv": traffic_csv,
    "long.csv": traffic_long_csv,
    "counts.csv.gz": lambda: gzip.compress(traffic_csv()),
    "counts.parquet": traffic_parquet,
    "counts.npz": traffic_npz,
    "counts.h5": traffic_h5,
    "counts.json": traffic_json,
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_tables_of_traffic(name: str, tmp_path: Path) -> None:
    skip_without("traffic")
    from agentsys.trainers.traffic.formats import DataOptions, read_series

    path = tmp_path / name
    path.write_bytes(TRAFFIC[name]())
    arrays = name.endswith((".npz", ".json"))
    options = DataOptions(data=path, start="2024-01-01" if arrays else "", step="1h" if arrays else "")
    assert len(read_series(options)) == 40
    check(first_faults(path, lambda path: read_series(options), name, 200))


@pytest.mark.parametrize("name", ["edges.csv", "matrix.csv", "places.csv", "edges.json", "school.csv"])
def test_graphs_and_terms_of_traffic(name: str, tmp_path: Path) -> None:
    skip_without("traffic")
    import numpy as np

    from agentsys.trainers.traffic.calendar import school_holidays
    from agentsys.trainers.traffic.graph import nearest_graph, read_graph
    from agentsys.trainers.traffic.series import Series

    sensors = ("a", "b", "c", "d")
    times = np.datetime64("2024-01-01", "s") + np.arange(400) * np.timedelta64(3600, "s")
    series = Series(np.ones((400, 4, 1), np.float32), times, 3600, sensors)
    contents = {
        "edges.csv": "from,to,cost\na,b,1.5\nb,c,2\nc,d,0\n",
        "matrix.csv": "1,0,0,1\n0,1,0,0\n0,0.5,1,0\n0,0,0,1\n",
        "places.csv": "sensor,lat,lon\na,52.1,7.5\nb,52.2,7.6\nc,52.3,7.7\nd,52,7\n",
        "edges.json": json.dumps({"edges": [[0, 1], [2, 3]], "node_ids": {"a": 0, "b": 1, "c": 2, "d": 3}}),
        "school.csv": "from,to\n2024-01-02,2024-01-04\n05.01.2024,2024-01-09\n",
    }
    readers: dict[str, Callable[[Path], object]] = {
        "places.csv": lambda path: nearest_graph(path, sensors),
        "school.csv": lambda path: school_holidays(series, path),
    }
    path = tmp_path / name
    path.write_text(contents[name])
    read = readers.get(name, lambda path: read_graph(path, sensors))
    read(path)
    check(first_faults(path, read, name, 200))


SPECS = [
    "embedded?temperature=0.2&max_tokens=300&slots=2",
    "http://127.0.0.1:8000/v1,http://[::1]:81/v1#name?timeout=5&rpm=3&top_p=0.9&extra.a=1",
    "https://example.invalid/base/?key=A_KEY&header.X=Y_KEY&query.v=1&stop=a",
    "vllm:some/model?max-model-len=100&context=20&seed=3",
    "scripted:rules.jsonl?temperature=1",
    "langchain:tests.support.toys:Nothing?a=b",
]


def test_model_specs() -> None:
    faults = []
    for spec in SPECS:
        for name, content in damaged(spec.encode(), spec, 200):
            text = content.decode(errors="replace")
            if fault := fault_of(lambda text=text: load_model(text)):
                faults.append(f"{name} {text!r}: {fault}")
    check(faults)
