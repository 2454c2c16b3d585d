"""Options of a command line from the fields of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from agentsys.commands import command, run_app
from agentsys.knobs import knob


@dataclass(frozen=True)
class Context:
    judge: bool = knob(True, "on unless it is put out")
    verbose: bool = knob(False, "off unless it is given")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], Context()),
        (["--no-judge"], Context(judge=False)),
        (["--judge", "--verbose"], Context(verbose=True)),
    ],
)
def test_switches(given: list[str], expected: Context) -> None:
    seen: list[Context] = []

    def main(context: Context) -> None:
        seen.append(context)

    main.__annotations__ = {"context": Context}
    assert run_app(command(main), given) == 0
    assert seen == [expected]


def test_a_switch_that_is_off_has_no_second_name(capsys: pytest.CaptureFixture[str]) -> None:
    def main(context: Context) -> None: ...

    main.__annotations__ = {"context": Context}
    assert run_app(command(main), ["--no-verbose"]) == 2
    assert "--no-verbose" in capsys.readouterr().err
