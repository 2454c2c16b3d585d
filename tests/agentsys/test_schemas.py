"""JSON schemas of role outputs: class docstrings are not in them, descriptions given by Field are."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from agentsys.prompt import Prompt
from agentsys.roles import Role

PROMPT = Prompt.parse("# user\nJudge {{ text }}", "judge")


def make_output(docstring: str | None) -> type[BaseModel]:
    """An output class with a nested model, an enum, a dataclass and a typed dictionary, all with this docstring."""

    class Severity(Enum):
        __doc__ = docstring
        MINOR = "minor"
        MAJOR = "major"

    class Span(BaseModel):
        __doc__ = docstring
        start: int
        severity: Severity

    @dataclasses.dataclass
    class Source:
        __doc__ = docstring
        name: str = Field(description="where it was found")

    class Note(TypedDict):
        __doc__ = docstring
        text: str

    class Report(BaseModel):
        __doc__ = docstring
        model_config = ConfigDict(json_schema_extra={"examples": [{}]})
        spans: list[Span] = Field(description="the faults, most severe first")
        first: Span | None = Field(None, description="A docstring.")
        sources: list[Source] = []
        note: Note
        score: float = Field(ge=0, le=100, description="0 to 100")

    return Report


def find_descriptions(schema: Any) -> list[str]:
    """All values of "description" in a schema, sorted."""
    if isinstance(schema, list):
        return sorted(text for item in schema for text in find_descriptions(item))
    if not isinstance(schema, dict):
        return []
    own = [schema["description"]] if isinstance(schema.get("description"), str) else []
    return sorted(own + [text for value in schema.values() for text in find_descriptions(value)])


@pytest.mark.parametrize(
    "docstring", ["A docstring.", "Another one.\n\n        With a second paragraph.\n        ", ""]
)
def test_a_schema_does_not_depend_on_docstrings(docstring: str) -> None:
    bare, documented = Role(PROMPT, make_output(None)), Role(PROMPT, make_output(docstring))
    assert documented.schema == bare.schema
    assert documented.schema_sha256 == bare.schema_sha256


def test_descriptions_of_fields_stay_even_if_equal_to_a_docstring() -> None:
    schema = Role(PROMPT, make_output("A docstring.")).schema
    fields = ["0 to 100", "A docstring.", "the faults, most severe first", "where it was found"]
    assert find_descriptions(schema) == fields
    assert schema is not None
    assert schema["properties"]["first"]["description"] == "A docstring."


def test_a_description_in_the_models_configuration_stays() -> None:
    class Verdict(BaseModel):
        """For readers of the code."""

        model_config = ConfigDict(json_schema_extra={"description": "for the model"})
        right: bool

    assert find_descriptions(Role(PROMPT, Verdict).schema) == ["for the model"]


def test_everything_else_is_pydantics_schema() -> None:
    output = make_output(None)
    assert Role(PROMPT, output).schema == output.model_json_schema()


def test_another_field_description_is_another_schema() -> None:
    class One(BaseModel):
        score: int = Field(description="0 to 10")

    class Two(BaseModel):
        score: int = Field(description="0 to 100")

    Two.__name__ = Two.__qualname__ = "One"
    schemas = [json.dumps(Role(PROMPT, output).schema) for output in (One, Two)]
    assert schemas[0] != schemas[1].replace("Two", "One")
    assert Role(PROMPT, One).schema_sha256 != Role(PROMPT, Two).schema_sha256


def test_text_has_no_schema() -> None:
    role: Role[str] = Role(PROMPT)
    assert role.schema is None and role.schema_sha256 is None
