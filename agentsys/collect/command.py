"""Commands over `collect`: the fields of a dataclass become options, and what a user did wrong becomes one line."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

import typer

from agentsys.collect.report import ProgressView, print_summary
from agentsys.collect.runner import Options, Summary, collect
from agentsys.collect.store import RunFolderError
from agentsys.models import EndpointDown, ModelError, SpecError
from agentsys.models.cache import CacheError, default_path
from agentsys.models.endpoint import DEFAULT_IN_FLIGHT
from agentsys.prompts import Prompt, PromptError
from agentsys.records import SHUFFLE_BUFFER, InputError
from agentsys.systems import knob

T = TypeVar("T")

USER_ERRORS: Final = (SpecError, InputError, PromptError, RunFolderError, CacheError, ValueError)
"""What a user can mend: one line and exit code 2."""


@dataclass(frozen=True)
class RunOptions:
    """The options of every collect command."""

    input: Path | None = knob(None, "records: .jsonl, .json, .csv, .tsv, .parquet or .txt")
    out: Path | None = knob(None, "output folder; a run that is there already is resumed")
    field: list[str] = knob((), "graph field and column, as text=sentence; may be repeated")
    id_field: str = knob("id", "column that holds the record's id; without it the id is a digest of the record")
    limit: int | None = knob(None, "take only the first so many records")
    shuffle: bool = knob(False, f"shuffle the input (in a buffer of {SHUFFLE_BUFFER:,} records)")
    seed: int = knob(0, "seed of the shuffle")
    in_flight: int = knob(DEFAULT_IN_FLIGHT, "requests in flight per server")
    token_budget: int | None = knob(None, "take no new record after so many tokens, prompt and completion")
    retry_rejected: bool = knob(False, "try the rejected records again")
    cache: Path | None = knob(None, "request cache file; by default one in the user's cache folder")
    no_cache: bool = knob(False, "neither read nor write the request cache")
    cache_limit: float = knob(20.0, "size in GB beyond which the cache's oldest calls go")

    def runner(self) -> Options:
        """The runner's options. Raises InputError for a --field that is no pair."""
        pairs = [entry.partition("=") for entry in self.field]
        if bad := ["".join(pair) for pair in pairs if not all(pair)]:
            raise InputError(f"--field {bad[0]}: give graph field and column, as --field text=sentence")
        least = {"in_flight": 1, "limit": 1, "token_budget": 1, "cache_limit": 0}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise InputError(f"--{name.replace('_', '-')} {value}: at least {bound} is needed")
        return Options(
            limit=self.limit,
            shuffle=self.shuffle,
            seed=self.seed,
            in_flight=self.in_flight,
            cache=None if self.no_cache else self.cache or default_path(),
            cache_limit=int(self.cache_limit * 1e9),
            retry_rejected=self.retry_rejected,
            token_budget=self.token_budget,
            fields={name: column for name, _, column in pairs},
            id_field=self.id_field,
        )


def run_with_view(
    graph: Any,
    records: Path | Iterable[Mapping[str, Any] | str],
    run: RunOptions,
    context: Any,
    *,
    out: Path | None = None,
) -> Summary:
    """`collect` with a progress view; without --out the folder is runs/<name of the graph>."""
    with ProgressView(total=run.limit) as view:
        folder = out or run.out or Path("runs") / graph.name
        return collect(graph, records, folder, context=context, options=run.runner(), watch=view)


def finish(summary: Summary, run: RunOptions, extra: Iterable[tuple[str, str]] = ()) -> None:
    """Print the table and end the command: exit code 3 if records were rejected, 130 after Ctrl-C."""
    print_summary(summary, run.runner().cache, extra)
    if summary.stopped:
        print(f"stopped: {summary.stopped}; the same command goes on from here", file=sys.stderr)
    if summary.stopped == "interrupted":
        raise typer.Exit(130)
    if summary.rejected:
        raise typer.Exit(3)


def command(main: Callable[..., None]) -> typer.Typer:
    """A typer app from a function: a parameter whose type is a dataclass becomes one option for each of its fields.

    A field `<role>_prompt` of a context is given as a file on the command line and arrives as its text.
    """
    hints = get_type_hints(main, include_extras=True)
    spread = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def run(**values: Any) -> None:
        def work() -> None:
            given = {name: _collected(kind, values) for name, kind in spread.items()}
            rest = {name: value for name, value in values.items() if name in hints}
            main(**given, **rest)

        guarded(work)

    parameters = []
    for name, parameter in inspect.signature(main).parameters.items():
        if name in spread:
            parameters += _options(spread[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    run.__doc__ = main.__doc__
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command()(run)
    return app


def guarded(work: Callable[[], T]) -> T:
    """The result of `work`; what the user can mend becomes one line and the exit code that docs/collect.md gives it."""
    try:
        return work()
    except EndpointDown as err:
        line, code = f"{err}; what is finished is on disk, and the same command goes on from there", 1
    except ModelError as err:
        line, code = str(err), 1
    except USER_ERRORS as err:
        line, code = str(err), 2
    except OSError as err:  # a full disk, a file that must not be read
        line, code = f"{err.filename or 'a file'}: {err.strerror or err}", 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        line, code = "stopped at once; finished calls are kept, and the same command goes on from there", 130
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    raise typer.Exit(code)


def run_app(
    app: typer.Typer, arguments: Sequence[str] | None = None, then: Callable[[Any], int] = lambda result: 0
) -> int:
    """The exit code of a command; a wrong option gets one line too. `then` goes on with what the command returned."""

    def work() -> int:
        result = app(arguments, standalone_mode=False)
        return result if isinstance(result, int) else then(result)

    try:
        return guarded(work)
    except typer.Exit as end:
        return end.exit_code
    except Exception as err:
        if not hasattr(err, "format_message"):  # the option parser's errors, whose class typer keeps to itself
            raise
        print(f"error: {' '.join(err.format_message().split())}", file=sys.stderr)
        return 2


def _options(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind)
    options = []
    for item in fields(kind):
        is_file = item.name.endswith("_prompt")
        annotation = Path | None if is_file else hints[item.name]
        help_text = item.metadata["description"]
        option = typer.Option(
            None if is_file else item.default if item.default != () else [],
            f"--{item.name.replace('_', '-')}",
            help=help_text.replace("prompt text", "prompt file") if is_file else help_text,
            rich_help_panel=_panel(kind, item.name),
            show_default=item.default not in ("", None, ()),
        )
        options.append(
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
        )
    return options


def _panel(kind: Any, name: str) -> str:
    if kind is RunOptions:
        return "Run"
    if name == "model" or name.endswith("_model"):
        return "Models (specs: docs/models.md)"
    return "Prompts" if name.endswith("_prompt") else "Method"


def _collected(kind: Any, values: dict[str, Any]) -> Any:
    given = {item.name: values[item.name] for item in fields(kind)}
    for name, value in given.items():
        if name.endswith("_prompt"):
            given[name] = _text(value) if value else ""
            if value:  # what cannot be a prompt is found before anything is asked
                Prompt.parse(given[name], f"{value} (--{name.replace('_', '-')})")
    return kind(**given)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise PromptError(f"prompt file {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from None
