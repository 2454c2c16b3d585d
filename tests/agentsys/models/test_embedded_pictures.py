"""The embedded engine with a projector: real image tokens of a random one beside the 0.5B model; no quality claimed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.models import load_model
from agentsys.models.errors import Refused
from agentsys.models.weights import find
from agentsys.traces import read_traces
from tests.support.images import Describer, DescriberContext, png
from tests.support.tiny_projector import TOKENS, make_projector

pytestmark = pytest.mark.needs("local", "weights-small", "pictures")
WIDTH = 896
"""Embedding size of Qwen2.5-Coder-0.5B."""


def run(spec: str, out: Path) -> list[Any]:
    """Three pictures with one caption, and a record whose picture is of another size."""
    records = [{"id": str(n), "image": png(n), "caption": "an <__media__> here"} for n in range(3)]
    records.append({"id": "large", "image": png(0, 900, 600), "caption": "an <__media__> here"})
    context = DescriberContext(model=f"{spec}&max_tokens=4&temperature=0")
    options = RunOptions(no_cache=True, max_failures="none")
    role = replace(Describer().describer, allow_truncated=True)
    graph = Describer(role).builder().compile(name="describer")
    collect(graph, records, out, context=context, options=options)
    return list(read_traces(out))


def test_a_run_with_pictures(tmp_path: Path) -> None:
    weights = find("qwen2.5-coder-0.5b")
    projector = make_projector(tmp_path / "proj.gguf", WIDTH)
    traces = run(f"embedded:{weights}?mmproj={projector}&slots=1&context=1024", tmp_path / "run")
    assert [trace.outcome for trace in traces] == ["kept"] * 4
    calls = [trace.calls[0] for trace in traces]
    assert {call.mode for call in calls} == {"chat"} and all(call.completion_tokens for call in calls)
    assert len({call.prompt_tokens for call in calls}) == 1, "the projector has one size of picture"
    assert len({call.revision for call in calls}) == 1 and "+" in (calls[0].revision or "")
    assert len(list((tmp_path / "run" / "images").iterdir())) == 4


async def test_each_picture_has_its_tokens(tmp_path: Path) -> None:
    from agentsys.prompt import Prompt
    from agentsys.roles import Role

    projector = make_projector(tmp_path / "proj.gguf", WIDTH)
    spec = f"embedded:{find('qwen2.5-coder-0.5b')}?mmproj={projector}&slots=1&context=1024"
    model: Any = load_model(spec)
    assert await model.sees_pictures() is True
    role: Role[str] = Role(Prompt.parse("# user\n# image images\nSay a word.", "p"), allow_truncated=True,
                           sampling={"max_tokens": 4, "temperature": 0.0})  # fmt: skip
    tokens = []
    for count in (1, 2, 3):
        answer = await role.answer(model, key="k", images=[png(n) for n in range(count)])
        tokens.append(answer.call.prompt_tokens)
    assert [b - a for a, b in pairwise(tokens)] == [TOKENS, TOKENS]


def test_without_a_projector_it_is_refused_before_the_first_call(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="takes text only, and the prompt shows a picture"):
        run(f"embedded:{find('qwen2.5-coder-0.5b')}?slots=1&context=1024", tmp_path / "run")
    assert not (tmp_path / "run").exists()
