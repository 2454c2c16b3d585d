"""Command lines: the fields of a dataclass become options, and a user error becomes one line."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import typer

from agentsys import config, options
from agentsys.display import LOGGER, print_lines, say
from agentsys.knobs import knob
from agentsys.models import EndpointDown, ModelError
from agentsys.models.access import mask_key

__all__ = ["command", "knob", "run_app", "run_guarded"]

T = TypeVar("T")


def command(
    *mains: Callable[..., None], name: str = "", profiles: Mapping[str, Mapping[str, Any]] | None = None
) -> typer.Typer:
    """A typer app that runs a function; with several functions, each is a sub-command with its name.

    A parameter whose type is a dataclass becomes one option for each of its fields; the class variable `panel` of the
    dataclass names their group in the help text. For a field `<role>_prompt`, the option takes a prompt file and the
    field gets its text. Options can also come from a YAML file (`--config`). `--verbose` prints messages for
    debugging. `name` is the command as a user of `agentsys` writes it, such as "collect drt"; the default is
    "collect FOLDER" for a file FOLDER/collect.py. `profiles` are sets of options by name: `--profile` sets those that
    neither the command line nor the file sets.
    """
    app = typer.Typer(name=name or None, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    for main in mains:
        full_name = f"{name} {main.__name__}" if name and len(mains) > 1 else name or _name_from_file(main)
        app.command()(_with_options(main, full_name, profiles or {}))
    return app


def _name_from_file(main: Callable[..., None]) -> str:
    file = Path(inspect.getfile(main))
    if file.stem not in ("collect", "evaluate", "train"):
        return ""
    return shlex.join([file.stem, str(file.parent.resolve())])


def _with_options(
    main: Callable[..., None], name: str, profiles: Mapping[str, Mapping[str, Any]]
) -> Callable[..., None]:
    hints = get_type_hints(main, include_extras=True)
    kinds = {parameter: hint for parameter, hint in hints.items() if is_dataclass(hint)}

    def run(typer_context: typer.Context, **values: Any) -> None:
        if profiles:
            del values["profile"]  # the options that it set are among the values
        with _show_messages() if has_verbose and values.pop("verbose") else nullcontext():
            run_guarded(lambda: _call(main, kinds, name, typer_context, values))

    parameters = [inspect.Parameter("typer_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for parameter_name, parameter in inspect.signature(main).parameters.items():
        if parameter_name in kinds:
            parameters += options.make_options(kinds[parameter_name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter_name]))
    parameters += options.make_role_options(list(kinds.values()))
    parameters.append(_config_option(list(kinds.values()), name))
    parameters += [_profile_option(profiles)] if profiles else []
    if has_verbose := "verbose" not in {parameter.name for parameter in parameters}:
        parameters.append(_verbose_option())
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    )
    run.__doc__, run.__name__ = main.__doc__, main.__name__
    return run


def _call(
    main: Callable[..., None], kinds: Mapping[str, Any], name: str, context: typer.Context, values: dict[str, Any]
) -> None:
    """Call a command's function with its options, and remember those that are set for run.yaml."""
    groups = list(kinds.values())
    sources = {option: origin.name for option in values if (origin := context.get_parameter_source(option))}
    by_role = _role_values(groups, values, sources)
    values |= by_role
    sources |= dict.fromkeys(by_role, "COMMANDLINE")
    options.rename_former(groups, values, sources)
    _refuse_removed_keys(values, sources)
    instances = {parameter: options.build(kind, values) for parameter, kind in kinds.items()}
    unsaved = {"config", *config.ROLE_OPTIONS, *options.names_meant_once(groups)}
    saved = {name: value for name, value in values.items() if sources.get(name) != "DEFAULT" and name not in unsaved}
    plain = inspect.signature(main).parameters.keys() - kinds.keys()
    text = config.config_text(name, options.group_role_values(groups, saved))
    token = config.current.set(text)
    try:
        main(**{option: values[option] for option in plain}, **instances)
    finally:
        config.current.reset(token)


def _refuse_removed_keys(values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Raises ConfigError for an option of a file whose key was removed when it was written."""
    for option, value in values.items():
        if sources.get(option) == "DEFAULT_MAP" and config.KEY_REMOVED in str(value):
            flag = "--" + option.replace("_", "-")
            raise config.ConfigError(f"{flag} {value}: the file does not have the key; give {flag} on the command line")


def _role_values(kinds: list[Any], values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """The fields that --role-model and --role-prompt set. Raises OptionError for a role that is set in two ways."""
    fields: dict[str, Any] = {}
    for option in config.ROLE_OPTIONS:
        for field, value in options.split_role_option(kinds, option, values.get(option) or ()).items():
            if sources.get(field) == "COMMANDLINE":
                flags = f"--{option.replace('_', '-')} and --{field.replace('_', '-')}"
                raise options.OptionError(f"{flags} both set one role: give one of them")
            fields[field] = Path(value) if option == "role_prompt" else value
    return fields


def _config_option(kinds: list[Any], name: str) -> inspect.Parameter:
    """--config, whose file sets the options that the command line does not."""

    def load(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            values = _read_defaults(path, context, kinds, name)
            context.default_map = {**(context.default_map or {}), **values}
        return path

    text = "YAML file of options by the same names; the command line wins"
    option = typer.Option(None, "--config", help=text, is_eager=True, callback=load, metavar="FILE")
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=Path | None)


def _profile_option(profiles: Mapping[str, Mapping[str, Any]]) -> inspect.Parameter:
    """--profile, a set of options by name. Raises OptionError for a name that does not exist."""
    names = ", ".join(profiles)

    def load(context: typer.Context, profile: str) -> str:
        if profile and profile not in profiles:
            raise options.OptionError(f"--profile {profile}: no such profile; there is {names}")
        context.default_map = {**profiles.get(profile, {}), **(context.default_map or {})}
        return profile

    text = f"set of options: {names}; the command line and --config win"
    option = typer.Option("", "--profile", help=text, is_eager=True, callback=load)
    return inspect.Parameter("profile", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=str)


def _read_defaults(path: Path, context: typer.Context, kinds: list[Any], name: str) -> dict[str, Any]:
    """The options of a file for a command. Raises ConfigError for an unknown option and another command's file."""
    values = config.read_config(path)
    command_name = values.pop("command", "")
    if command_name and name and not _is_same_command(command_name, name):
        raise config.ConfigError(f"--config {path}: these are options of `agentsys {command_name}`, not of {name}")
    for option in config.ROLE_OPTIONS:
        if option in values:
            settings = values.pop(option)
            by_role = options.split_role_option(kinds, option, settings if isinstance(settings, list) else [settings])
            if twice := by_role.keys() & values.keys():
                names = f"{option} and {min(twice)}".replace("_", "-")
                raise config.ConfigError(f"--config {path}: {names} both set one role: give one of them")
            values |= by_role
    parameters = {parameter.name: parameter for parameter in context.command.params}
    unknown = [option for option in values if option not in parameters or option == "config"]
    if unknown:
        near = difflib.get_close_matches(unknown[0], parameters, 1)
        hint = f"did you mean {near[0].replace('_', '-')}?" if near else "--help lists the options"
        raise config.ConfigError(f"--config {path}: no option {unknown[0].replace('_', '-')}; {hint}")
    for option, value in values.items():
        repeatable = getattr(parameters[option], "multiple", False) or parameters[option].nargs == -1
        if isinstance(value, list) and not repeatable:
            raise config.ConfigError(f"--config {path}: {option.replace('_', '-')}: give one value, not a list")
        if repeatable and not isinstance(value, list):
            values[option] = [value]
        if value == "" and option in options.names_of_paths(kinds):
            raise config.ConfigError(f"--config {path}: {option.replace('_', '-')}: it is empty; give a path")
    return values


def _verbose_option() -> inspect.Parameter:
    """--verbose of every command, unless its function has an option of that name."""
    option = typer.Option(False, "--verbose", help="print messages for debugging on stderr")
    return inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool)


class _DebugHandler(logging.Handler):
    """Prints messages on stderr: notices as they are, those for debugging with the time and the module."""

    def emit(self, record: logging.LogRecord) -> None:
        text = mask_key(self.format(record))
        if record.levelno < logging.INFO:
            text = f"{datetime.now():%H:%M:%S} {record.name}: {text}"
        print_lines(text)


@contextmanager
def _show_messages() -> Iterator[None]:
    """Inside, all messages of the package are printed."""
    handler, level = _DebugHandler(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def _is_same_command(one: str, other: str) -> bool:
    """Whether two names are of one command; a user's folder may have been moved."""
    (verb, *first), (other_verb, *second) = shlex.split(one), shlex.split(other)
    return verb == other_verb and [Path(name).name for name in first] == [Path(name).name for name in second]


def run_guarded(work: Callable[[], T]) -> T:
    """The result of `work`; a user-fixable error is one line and an exit code (docs/collect.md) instead.

    Further lines of an error, its `detail`, follow that line.
    """
    detail = ""
    try:
        return work()
    except EndpointDown as err:
        line, code = f"{err}; finished records are saved: rerun the same command to resume", 1
    except ModelError as err:
        line, code = str(err), 1
    except ValueError as err:  # our user-fixable errors are all ValueErrors
        line, code, detail = str(err), 2, getattr(err, "detail", "")
    except OSError as err:  # a full disk, an unreadable file
        line, code = f"{err.filename or 'a file'}: {err.strerror or err}", 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        line, code = "stopped immediately; finished calls are saved: rerun the same command to resume", 130
    say(f"error: {' '.join(line.split())}", *detail.splitlines())
    raise typer.Exit(code)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run a command and return its exit code; a wrong option is printed as one line too.

    `program` is its name in the help; the default is that of the script. Without `arguments` it is this process's
    command: after Ctrl-C the process ends here if llama.cpp runs in it (models.embedded.leave_at_once).
    """
    code = _run_app(app, arguments, program)
    if code == 130 and arguments is None and (engine := sys.modules.get("agentsys.models.embedded")):
        engine.leave_at_once(code)
    return code


def _run_app(app: typer.Typer, arguments: Sequence[str] | None, program: str | None) -> int:

    def work() -> int:
        code = app(arguments, prog_name=program, standalone_mode=False)
        return code if isinstance(code, int) else 0

    try:
        return run_guarded(work)
    except typer.Exit as end:
        return end.exit_code
    except Exception as err:
        if not hasattr(err, "format_message"):  # the option parser's errors, whose class typer does not export
            raise
        if message := " ".join(err.format_message().split()):  # empty where the help was printed for want of arguments
            say(f"error: {message}")
        return 2
