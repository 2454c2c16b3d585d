"""The command `agentsys` (also `python -m agentsys`): systems, evaluations, trainers, and the tools around a run."""

from __future__ import annotations

import importlib
import importlib.util
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from agentsys.commands import run_app
from agentsys.display import say, show

COLLECT: Final = {
    "drt": ("agentsys.graphs.drt_collect", "long-thought translation data (DRT)"),
    "drt-mine": ("agentsys.graphs.drt_mine", "sentences with similes and metaphors from books (DRT, stage A)"),
    "crat": ("agentsys.graphs.crat_collect", "translation with a knowledge graph of unknown terms (CRAT)"),
    "ragtrans": ("agentsys.graphs.ragtrans_collect", "translation with documents, and its benchmark (RAGtrans)"),
    "deeprag": ("agentsys.graphs.deeprag_collect", "retrieval narratives and decision pairs (DeepRAG)"),
    "longdpo": ("agentsys.graphs.longdpo_collect", "stepwise preference pairs for long texts (LongDPO)"),
    "maths": ("agentsys.graphs.maths_collect", "stepwise preference pairs for maths (Step-DPO, MCTS-DPO)"),
    "punchbench": (
        "agentsys.graphs.punchbench_collect",
        "questions on the punchlines of pictures (PunchBench)",
    ),
}
EVALUATE: Final = {
    "translate": ("agentsys.graphs.translate_evaluate", "translation systems side by side"),
    "drt-evaluator": ("agentsys.graphs.drt_evaluator", "DRT's evaluator on pairs of which one is known to be better"),
    "translate-human": ("agentsys.graphs.translate_human", "sheets of translations for annotators, and their scores"),
    "deeprag": ("agentsys.graphs.deeprag_evaluate", "answers with and without retrieval"),
    "longdpo": ("agentsys.graphs.longdpo_evaluate", "long texts: length and quality (LongBench-Write)"),
    "maths": ("agentsys.graphs.maths_evaluate", "answers to maths questions"),
    "punchbench": ("agentsys.graphs.punchbench_evaluate", "answers on pictures with captions (PunchBench, SC-CoQ)"),
    "punchbench-annotate": (
        "agentsys.graphs.punchbench_annotate",
        "PunchBench's questions for people",
    ),
}
TRAIN: Final = {
    "sft": ("agentsys.trainers.sft", "supervised fine-tuning"),
    "step-dpo": ("agentsys.trainers.step_dpo", "preference optimization on steps (Step-DPO)"),
    "prm": ("agentsys.trainers.prm", "process reward model from the steps of checked solutions"),
    "teacher": ("agentsys.trainers.teacher", "score rows with a teacher, for distillation"),
    "distill": ("agentsys.trainers.distill", "distillation from stored scores, or on the student's own text"),
    "warmup-distill": ("agentsys.trainers.warmup_distill", "warm up a student before distillation (Warmup-Distill)"),
    "miniplm": ("agentsys.trainers.miniplm", "select a corpus by two models' likelihoods, and pre-train (MiniPLM)"),
    "extralonger": (
        "agentsys.trainers.extralonger",
        "forecast traffic a week ahead from a table of counts (Extralonger)",
    ),
    "forecast": ("agentsys.trainers.forecast", "forecast with a model of `extralonger`, beside the naive forecast"),
    "idfree-pl": (
        "agentsys.trainers.idfree_pl",
        "personalize a model on texts without user identifiers (IDfree-PL)",
    ),
    "idfree-attack": (
        "agentsys.trainers.idfree_attack",
        "attack anonymous user embeddings: attribution, linkage, clustering, texts (IDfree-PL)",
    ),
    "idfree-serve": (
        "agentsys.trainers.idfree_serve",
        "serve a model to devices that send a text and an embedding (IDfree-PL)",
    ),
    "gguf": ("agentsys.trainers.export", "export a trained model to a GGUF file"),
}
TOOLS: Final = {
    "rows": ("agentsys.trainers.rows", "Make training rows from a run's traces."),
    "new": ("agentsys.new:new", "Write a folder with a paper of your own: two roles, prompts, a command, a test."),
    "index": ("agentsys.knowledge.__main__", "Build and search an index of documents."),
    "report": ("agentsys.collect.run_report:report", "Report on a run: outcomes, calls, tokens, its method's figures."),
    "view": ("agentsys.view.command:view", "Write runs, evaluations and trainings as one HTML page."),
    "check": ("agentsys.collect.check:check", "List the damage in a run's files, and repair it."),
    "models": (
        "agentsys.models.catalog:models",
        "List the catalog's models, their sources, and whether they are installed.",
    ),
    "doctor": ("agentsys.doctor:doctor", "Check what this machine can run, with the fix for what it cannot."),
}
ORDER: Final = (
    *("collect", "evaluate", "rows", "train"),
    *("new", "index", "rerun", "view", "report", "check", "export"),
    *("models", "cache", "doctor"),
)
"""The commands of `agentsys` in its help."""


class LazyGroup(TyperGroup):
    """Commands whose modules are imported when they run. A user's folder with a file such as collect.py is one too."""

    modules: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Module and help line of each command; the module has an `app`, unless `module:function` names its function."""
    folder_file: ClassVar[str] = ""
    """The file that makes a user's folder a command, such as collect.py."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order in which they are used."""
        names = [*self.modules, *super().list_commands(ctx)]
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else -1)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name: for the list of commands only its help line."""
        if cmd_name in self.modules:
            return TyperCommand(cmd_name, help=self.modules[cmd_name][1])
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name, with its module imported."""
        try:
            return self._resolve(ctx, args)
        except KeyboardInterrupt:
            say("error: stopped before it began")
            raise typer.Exit(130) from None

    def _resolve(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name in self.modules:
            return name, _load_module(self.modules[name][0]), args[1:]
        if self.folder_file and (Path(name).is_dir() or "/" in name or Path(name).name == self.folder_file):
            return name, _load_folder(Path(name), self.folder_file), args[1:]
        if name in self.commands:
            return super().resolve_command(ctx, args)
        or_folder = f", or give a folder with a {self.folder_file}" if self.folder_file else ""
        raise ValueError(f"{ctx.command_path} has no {name!r}: use {', '.join(self.list_commands(ctx))}{or_folder}")


def _load_module(reference: str) -> Any:
    module, _, function = reference.partition(":")
    loaded = importlib.import_module(module)
    if not function:
        return get_command(loaded.app)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(getattr(loaded, function))
    return get_command(single)


def _load_folder(folder: Path, file: str) -> Any:
    """The command in a user's folder, as `python FOLDER/collect.py` has it."""
    folder = folder.parent if folder.name == file and folder.is_file() else folder
    path = folder / file
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; `agentsys new NAME` writes one")
    if not path.is_file():
        raise ValueError(f"{folder}: no {file} there; `agentsys new NAME` writes a folder with one")
    sys.path.insert(0, str(folder.resolve()))
    name = f"{folder.resolve().name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as err:
        raise ValueError(f"{err.filename}:{err.lineno}: {err.msg}") from None
    if not isinstance(getattr(module, "app", None), typer.Typer):
        raise ValueError(f"{path}: no command there; end the file with `app = command(main)` (docs/own-system.md)")
    return get_command(module.app)


def _group(name: str, commands: Mapping[str, tuple[str, str]], file: str = "") -> type[LazyGroup]:
    return type(name, (LazyGroup,), {"modules": commands, "folder_file": file})


app = typer.Typer(
    cls=_group("Tools", TOOLS),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    help="Agents made of roles write training data, and smaller models learn from it.",
)
app.add_typer(
    typer.Typer(cls=_group("Collect", COLLECT, "collect.py"), no_args_is_help=True),
    name="collect",
    help="Write training data with a paper's system, or with that of a FOLDER with a collect.py.",
)
app.add_typer(
    typer.Typer(cls=_group("Evaluate", EVALUATE, "evaluate.py"), no_args_is_help=True),
    name="evaluate",
    help="Compare systems and models on a test set.",
)
app.add_typer(
    typer.Typer(cls=_group("Train", TRAIN, "train.py"), no_args_is_help=True),
    name="train",
    help="Train a student, or export it.",
)


def _print_version(value: bool) -> None:
    if value:
        from agentsys import __version__

        show(f"agentsys {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the name of a command."""


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="output folder of a collect run")],
    parquet: Annotated[
        Path | None, typer.Argument(help="file to write; by default traces.parquet in the folder")
    ] = None,
) -> None:
    """Write a run's traces to one Parquet file."""
    from agentsys.collect.export import to_parquet

    path = parquet or run / "traces.parquet"
    show(f"{to_parquet(run, path):,} traces in {path}")


@app.command()
def cache(
    path: Annotated[Path | None, typer.Option(help="cache file; by default the one in the user's cache folder")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="remove all calls")] = False,
    limit: Annotated[
        float | None, typer.Option(min=0, help="shrink the file to this many GB; the oldest calls are removed")
    ] = None,
) -> None:
    """Show the size of the request cache, or shrink it."""
    from agentsys.models.cache import CacheError, RequestCache, default_path

    if path is not None and not path.exists():
        raise CacheError(f"--path {path}: no such file")
    if limit is not None and not math.isfinite(limit):
        raise CacheError(f"--limit {limit}: give a size in GB")
    requests = RequestCache(path or default_path(), **({} if limit is None else {"limit": int(limit * 1e9)}))
    if clear:
        requests.clear()
    stats = requests.stats()
    show(f"{stats['path']}: {stats['entries']:,} calls, {stats['bytes'] / 1e6:.1f} MB")
    requests.close()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def rerun(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="folder with a run.yaml")],
) -> None:
    """Run the command again that wrote a folder. Further options replace those of its run.yaml.

    An unfinished collect run or evaluation in the folder is resumed, a training with --resume. With --out FOLDER the
    same run is made elsewhere.
    """
    from agentsys.config import FILE, ConfigError, read_config

    path = run / FILE
    if str(run).startswith("-"):
        raise ConfigError(f"agentsys rerun {run}: the folder comes first, as agentsys rerun FOLDER {run}")
    if not path.is_file():
        raise ConfigError(f"{run}: no {FILE} there; give the output folder of a command of this version")
    command = shlex.split(str(read_config(path).get("command", "")))
    if not command:
        raise ConfigError(f"{path}: it names no command; run your script with --config {path}")
    raise typer.Exit(main([*command, "--config", str(path), "--out", str(run), *context.args]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `agentsys` with its arguments (default: those of the process) and return the exit code."""
    return run_app(app, arguments, program="agentsys")
