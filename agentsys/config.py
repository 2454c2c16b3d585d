"""Options in a YAML file: `--config` of every command, and the run.yaml that a command writes into its folder."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

from agentsys.paths import replace_file

FILE: Final = "run.yaml"
"""The file in an output folder with the command and the options that wrote it."""
ROLE_OPTIONS: Final = ("role_model", "role_prompt")
"""The options whose values are pairs of a role and its setting; in YAML a mapping, or a list of ROLE=SETTING."""
KEY_REMOVED: Final = "<key removed>"
"""What stands in run.yaml for a key that an option held."""
_KEY_VARIABLE: Final = re.compile(r"(^|_)(API_?KEY\w*|KEY|TOKEN|SECRET|PASSWORD|PAT)$")
_HEADER: Final = "# `agentsys rerun FOLDER` runs this again. Relative paths start at the working folder.\n"

current: ContextVar[str | None] = ContextVar("run_yaml", default=None)
"""The text of run.yaml for the command that is running; None outside a command."""


class ConfigError(ValueError):
    """A file of options that cannot be used. The message is one line that names the file and the fix."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The options in a YAML file: names with underscores; values as text, lists of text or role mappings.

    Scalars stay the text that the file has, as on a command line: `no` is Norwegian for a language option and false for
    a switch. Raises ConfigError.
    """
    import yaml

    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"--config {path}: {getattr(err, 'strerror', None) or 'not UTF-8 text'}") from None
    except yaml.YAMLError as err:
        raise ConfigError(f"--config {path}: not YAML: {' '.join(str(err).split())}") from None
    if content in (None, ""):
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: write option names and values, such as `limit: 100`")
    options: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name in options:
            raise ConfigError(f"--config {path}: {key}: given twice")
        options[name] = _check_value(value, f"--config {path}: {key}", is_pairs=name in ROLE_OPTIONS)
    return options


def _check_value(value: Any, place: str, is_pairs: bool) -> Any:
    """A text, or a list of texts. Raises ConfigError for other shapes."""
    if is_pairs and isinstance(value, dict):
        value = [f"{name}={setting}" for name, setting in value.items()]
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ConfigError(f"{place}: give one value, or a list of values")
    return value


def config_text(command: str, options: Mapping[str, Any]) -> str:
    """The text of run.yaml for a command and its options, by their names with underscores. Keys are left out."""
    import yaml

    lines = {"command": command} if command else {}
    values = {name.replace("_", "-"): _plain(value) for name, value in options.items()}
    return _HEADER + yaml.safe_dump(lines | values, sort_keys=False, allow_unicode=True, width=10_000)


def _plain(value: Any) -> Any:
    """A value as YAML has it: paths are texts, and the value of a key in the environment is hidden."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    for name, key in os.environ.items():
        if len(key) >= 8 and "/" not in key and _KEY_VARIABLE.search(name.upper()):
            text = text.replace(key, KEY_REMOVED)
    return text


@contextmanager
def without_config() -> Iterator[None]:
    """Inside, no folder gets the command's run.yaml: those of a part of the command, which it does not run alone."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)


def save_config(folder: str | Path) -> None:
    """Write run.yaml into a folder, which is made if needed; outside a command nothing is written."""
    if (text := current.get()) is None:
        return
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())
