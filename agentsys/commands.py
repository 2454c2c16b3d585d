"""Command lines: the fields of a dataclass become options, and what a user did wrong becomes one line."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer

from agentsys.knobs import knob
from agentsys.models import EndpointDown, ModelError
from agentsys.prompt import Prompt, PromptError

__all__ = ["command", "guarded", "knob", "run_app"]

T = TypeVar("T")


def command(*mains: Callable[..., None]) -> typer.Typer:
    """A typer app from a function; of several functions each becomes a sub-command of its name.

    A parameter whose type is a dataclass becomes one option for each of its fields; the class variable `panel` of the
    dataclass names their group in the help text. A field `<role>_prompt` of a context is given as a file on the command
    line and arrives as its text.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    for main in mains:
        app.command()(_with_options(main))
    return app


def _with_options(main: Callable[..., None]) -> Callable[..., None]:
    hints = get_type_hints(main, include_extras=True)
    spread = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def run(**values: Any) -> None:
        def work() -> None:
            given = {name: _collected(kind, values) for name, kind in spread.items()}
            rest = {name: value for name, value in values.items() if name in hints and name not in spread}
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
    run.__doc__, run.__name__ = main.__doc__, main.__name__
    return run


def guarded(work: Callable[[], T]) -> T:
    """The result of `work`; what the user can mend becomes one line and the exit code that docs/collect.md gives it."""
    try:
        return work()
    except EndpointDown as err:
        line, code = f"{err}; what is finished is on disk, and the same command goes on from there", 1
    except ModelError as err:
        line, code = str(err), 1
    except ValueError as err:  # what a user can mend: every such error of ours is one
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
    """The options of a dataclass's fields, and hidden ones for the fields' former names."""
    hints = get_type_hints(kind)
    options = []
    for item in fields(kind):
        if old := item.metadata.get("old_name"):
            options.append(_former_option(old, item, hints[item.name]))
        is_file = item.name.endswith("_prompt")
        annotation = Path | None if is_file else hints[item.name]
        help_text = item.metadata["description"]
        option = typer.Option(
            None if is_file else item.default if item.default != () else [],
            _flags(item),
            help=help_text.replace("prompt text", "prompt file") if is_file else help_text,
            rich_help_panel=_panel(kind, item.name),
            show_default=item.default not in ("", None, ()),
            hidden=bool(item.metadata.get("hidden")),
        )
        options.append(
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)
        )
    return options


def _former_option(old_name: str, item: Field[Any], hint: Any) -> inspect.Parameter:
    """A hidden option under a field's former name. Its default None says that it was not given."""
    annotation = Path | None if item.name.endswith("_prompt") else hint | None
    option = typer.Option(None, _flags(item, old_name), hidden=True)
    return inspect.Parameter(old_name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _flags(item: Field[Any], name: str = "") -> str:
    """A switch that is on by default is put out with --no-<name>."""
    name = (name or item.name).replace("_", "-")
    return f"--{name}/--no-{name}" if item.default is True else f"--{name}"


def _panel(kind: Any, name: str) -> str:
    if panel := getattr(kind, "panel", ""):
        return str(panel)
    if name == "model" or name.endswith("_model"):
        return "Models (specs: docs/models.md)"
    return "Prompts" if name.endswith("_prompt") else "Method"


def _collected(kind: Any, values: dict[str, Any]) -> Any:
    given = {item.name: values[item.name] for item in fields(kind)}
    for item in fields(kind):
        former = values.get(item.metadata.get("old_name", ""))
        if former not in (None, []):
            given[item.name] = former
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
