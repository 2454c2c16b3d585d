"""Dataclass fields as options of a command."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_type_hints

import typer

from agentsys.prompt import Prompt, PromptError

MODEL_PANEL = "Models (specs: docs/models.md)"


class OptionError(ValueError):
    """An option that cannot be used. The message is one line that names it and the fix."""


def make_options(kind: Any) -> list[inspect.Parameter]:
    """One option for each field of a dataclass, and a hidden one for each field's former name."""
    hints = get_type_hints(kind)
    by_role = {*_model_fields([kind]).values(), *_prompt_fields([kind]).values()}
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
            show_default=item.default not in ("", None, (), False),
            hidden=item.name in by_role or bool(item.metadata.get("hidden")),
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
    """The option's name; a switch also gets --no-<name>, which turns off what a file turns on."""
    name = (name or item.name).replace("_", "-")
    return f"--{name}/--no-{name}" if isinstance(item.default, bool) else f"--{name}"


def _panel(kind: Any, name: str) -> str:
    if panel := getattr(kind, "panel", ""):
        return str(panel)
    if name == "model" or name.endswith("_model"):
        return MODEL_PANEL
    return "Prompts" if name.endswith("_prompt") else "Method"


def rename_former(kinds: Iterable[Any], values: dict[str, Any], sources: dict[str, str]) -> None:
    """Move the values of former names to the new ones, where those are not set as closely: see `_CLOSENESS`."""
    for item in (item for kind in kinds for item in fields(kind)):
        if not (old := item.metadata.get("old_name")):
            continue
        value, source = values.pop(old), sources.pop(old, "DEFAULT")
        if _CLOSENESS[source] > _CLOSENESS[sources.get(item.name, "DEFAULT")]:
            values[item.name], sources[item.name] = value, source


_CLOSENESS = {"DEFAULT": 0, "DEFAULT_MAP": 1, "ENVIRONMENT": 1, "COMMANDLINE": 2}
"""Where an option comes from: a default, a file of options, the command line, which wins."""


def build(kind: Any, values: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from its options.

    Raises PromptError for a prompt file that cannot be read or parsed, and what the dataclass raises.
    """
    arguments = {item.name: values[item.name] for item in fields(kind)}
    for name, value in arguments.items():
        if name.endswith("_prompt"):
            arguments[name] = _read_prompt(value) if value else ""
            if value:  # a malformed prompt is an error before the first call
                Prompt.parse(arguments[name], f"{value} (--{name.replace('_', '-')})")
    return kind(**arguments)


def names_meant_once(kinds: Iterable[Any]) -> set[str]:
    """The options that hold for one start of a command."""
    return {item.name for kind in kinds for item in fields(kind) if item.metadata.get("once")}


def names_of_paths(kinds: Iterable[Any]) -> set[str]:
    """The options that take one path."""
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    return {name for name, hint in hints.items() if hint in (Path, Path | None)}


def _read_prompt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise PromptError(f"prompt file {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from None


def _model_fields(kinds: Iterable[Any]) -> dict[str, str]:
    """The field `<role>_model` of each role that has one."""
    roles = [item for kind in kinds for item in getattr(kind, "role_fields", {}).items()]
    return {field.removesuffix("_model"): field for _, field in roles if field != "model"}


def _prompt_fields(kinds: Iterable[Any]) -> dict[str, str]:
    """The field `<prompt>_prompt` of each prompt of a context's roles."""
    names = [item.name for kind in kinds if getattr(kind, "role_fields", {}) for item in fields(kind)]
    return {name.removesuffix("_prompt"): name for name in names if name.endswith("_prompt")}


def make_role_options(kinds: Iterable[Any]) -> list[inspect.Parameter]:
    """--role-model ROLE=SPEC and --role-prompt ROLE=FILE of a command whose contexts have roles; else none."""
    models, prompts = _model_fields(kinds), _prompt_fields(kinds)
    texts = {
        "role_model": (models, MODEL_PANEL, "ROLE=SPEC", "model spec of one role; repeatable, all others use --model"),
        "role_prompt": (prompts, "Prompts", "ROLE=FILE", "prompt file of one role in place of its own; repeatable"),
    }
    options = []
    for name, (roles, panel, metavar, text) in texts.items():
        if roles:
            flag = "--" + name.replace("_", "-")
            text = f"{text}. Roles: {', '.join(roles)}"
            option = typer.Option([], flag, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)
            options.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=list[str])
            )
    return options


def split_role_option(kinds: Iterable[Any], option: str, settings: Iterable[str]) -> dict[str, str]:
    """The value of each role's field from the ROLE=SETTING values of `role_model` or `role_prompt`.

    Raises OptionError for a malformed value, an unknown role, and a role that is named twice.
    """
    flag = "--" + option.replace("_", "-")
    names = _model_fields(kinds) if option == "role_model" else _prompt_fields(kinds)
    values: dict[str, str] = {}
    for entry in settings:
        if not names:
            raise OptionError(f"{flag} {entry}: the command has no roles")
        role, _, setting = entry.partition("=")
        if not role or not setting:
            raise OptionError(f"{flag} {entry}: give a role and its setting, as {flag} {next(iter(names))}=...")
        if role not in names:
            raise OptionError(f"{flag} {entry}: {_why_unknown(kinds, role, option)}; roles: {', '.join(names)}")
        if names[role] in values:
            raise OptionError(f"{flag} {entry}: the role {role} is named twice")
        values[names[role]] = setting
    return values


def _why_unknown(kinds: Iterable[Any], role: str, option: str) -> str:
    fields_by_role = {name: field for kind in kinds for name, field in getattr(kind, "role_fields", {}).items()}
    if option == "role_model" and role in fields_by_role:
        return f"the role {role} uses --{fields_by_role[role].replace('_', '-')}"
    return f"no role {role}"


def group_role_values(kinds: Iterable[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with those of roles grouped, as run.yaml has them: `role_model: {judge: SPEC}`."""
    roles = {
        field: (option, role)
        for option, names in (("role_model", _model_fields(kinds)), ("role_prompt", _prompt_fields(kinds)))
        for role, field in names.items()
    }
    grouped = {name: value for name, value in values.items() if name not in roles}
    for name, (option, role) in roles.items():
        if name in values:
            grouped.setdefault(option, {})[role] = values[name]
    return grouped
