"""Command lines: the fields of a dataclass become options, and a user error becomes one line."""

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

__all__ = ["command", "knob", "run_app", "run_guarded"]

T = TypeVar("T")


def command(*mains: Callable[..., None]) -> typer.Typer:
    """A typer app that runs a function; with several functions, each is a sub-command with its name.

    A parameter whose type is a dataclass becomes one option for each of its fields; the class variable `panel` of the
    dataclass names their group in the help text. For a field `<role>_prompt`, the option takes a prompt file and the
    field gets its text.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    for main in mains:
        app.command()(_with_options(main))
    return app


def _with_options(main: Callable[..., None]) -> Callable[..., None]:
    hints = get_type_hints(main, include_extras=True)
    dataclasses = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def run(**values: Any) -> None:
        def work() -> None:
            instances = {name: _build(kind, values) for name, kind in dataclasses.items()}
            rest = {name: value for name, value in values.items() if name in hints and name not in dataclasses}
            main(**instances, **rest)

        run_guarded(work)

    parameters = []
    for name, parameter in inspect.signature(main).parameters.items():
        if name in dataclasses:
            parameters += _options(dataclasses[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    run.__doc__, run.__name__ = main.__doc__, main.__name__
    return run


def run_guarded(work: Callable[[], T]) -> T:
    """The result of `work`; a user-fixable error is one line and an exit code (docs/collect.md) instead."""
    try:
        return work()
    except EndpointDown as err:
        line, code = f"{err}; finished records are saved: rerun the same command to resume", 1
    except ModelError as err:
        line, code = str(err), 1
    except ValueError as err:  # our user-fixable errors are all ValueErrors
        line, code = str(err), 2
    except OSError as err:  # a full disk, an unreadable file
        line, code = f"{err.filename or 'a file'}: {err.strerror or err}", 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        line, code = "stopped immediately; finished calls are saved: rerun the same command to resume", 130
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    raise typer.Exit(code)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a wrong option is printed as one line too."""

    def work() -> int:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0

    try:
        return run_guarded(work)
    except typer.Exit as end:
        return end.exit_code
    except Exception as err:
        if not hasattr(err, "format_message"):  # the option parser's errors, whose class typer does not export
            raise
        print(f"error: {' '.join(err.format_message().split())}", file=sys.stderr)
        return 2


def _options(kind: Any) -> list[inspect.Parameter]:
    """One option for each field of a dataclass, and a hidden one for each field's former name."""
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
    """A hidden option with a field's former name; its default None means that it is not used."""
    annotation = Path | None if item.name.endswith("_prompt") else hint | None
    option = typer.Option(None, _flags(item, old_name), hidden=True)
    return inspect.Parameter(old_name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _flags(item: Field[Any], name: str = "") -> str:
    """The option's name; a switch that is on by default also gets --no-<name>."""
    name = (name or item.name).replace("_", "-")
    return f"--{name}/--no-{name}" if item.default is True else f"--{name}"


def _panel(kind: Any, name: str) -> str:
    if panel := getattr(kind, "panel", ""):
        return str(panel)
    if name == "model" or name.endswith("_model"):
        return "Models (specs: docs/models.md)"
    return "Prompts" if name.endswith("_prompt") else "Method"


def _build(kind: Any, values: dict[str, Any]) -> Any:
    """An instance of a dataclass from its options; a former name counts where the new one has its default."""
    arguments = {item.name: values[item.name] for item in fields(kind)}
    for item in fields(kind):
        former_value = values.get(item.metadata.get("old_name", ""))
        if former_value not in (None, []) and arguments[item.name] in (None, [], item.default):
            arguments[item.name] = former_value
    for name, value in arguments.items():
        if name.endswith("_prompt"):
            arguments[name] = _read_prompt(value) if value else ""
            if value:  # a malformed prompt is an error before the first call
                Prompt.parse(arguments[name], f"{value} (--{name.replace('_', '-')})")
    return kind(**arguments)


def _read_prompt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise PromptError(f"prompt file {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from None
