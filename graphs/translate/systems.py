"""Who translates: each system is a graph with the knobs that make it this one, taken over the pairs by a collect run.

| system | what it is |
|---|---|
| plain, thought | a plain prompt; a student that writes DRT's long thought first (graphs/translate/system.py) |
| rag | everything that CRAT retrieves in the prompt: no judge and no graph |
| crat, crat-judge, crat-graph | CRAT; CRAT without the judge; CRAT without the graph (graphs/crat/system.py) |
| ragtrans-none, -golden, -noisy, -retrieved | RAGtrans' settings of its document (graphs/ragtrans/system.py) |

Only the graphs that are asked for are imported. CRAT takes the sentences of one document together.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final

import orjson

from agentsys.collect import RunOptions
from agentsys.collect.fingerprint import context_models
from agentsys.evaluation.run import collected
from agentsys.graphs import translate
from agentsys.graphs.translate.measures import JUDGED
from agentsys.graphs.translate.rows import Pair, Row
from agentsys.records import InputError, record_id
from agentsys.traces import Trace, finished


@dataclass(frozen=True, slots=True)
class Spec:
    """Where a system's graph is, the knobs that make it this system, and what it is given.

    `ready` checks what the context names before anything is asked, and fills in its digests. `inputs` makes a pair the
    graph's input. `documents`: the graph also takes {"sentences": [...]} and then gives `translations`.
    """

    module: str
    knobs: Mapping[str, Any]
    ready: Callable[[Any], Any] = lambda context: context
    inputs: Callable[[Pair, Any], dict[str, Any]] = lambda pair, context: {"text": pair.text}
    documents: bool = False


def _with_sources(context: Any) -> Any:
    from agentsys.graphs.crat.state import with_digest

    return with_digest(context)


def _with_index(context: Any) -> Any:
    from agentsys.knowledge.context import with_index

    return with_index(context) if context.setting == "retrieved" else context


def _with_document(pair: Pair, context: Any) -> dict[str, Any]:
    """All references are there so that what is retrieved cannot give one away. Raises InputError without a document."""
    several = len(pair.references) > 1
    given: dict[str, Any] = {"text": pair.text, "reference": [*pair.references] if several else pair.references[0]}
    if not (column := context.document_column):
        return given
    if column not in pair.data:
        there = ", ".join(name for name in pair.data if name.endswith("doc")) or "none"
        raise InputError(
            f"{pair.at}: no column '{column}' for ragtrans-{context.setting}; of documents it has {there}: name one "
            "with --document-language"
        )
    given["document"] = pair.data[column] or ""
    if column == "doc" and "tag" in pair.data:
        given["tag"] = pair.data["tag"]
    return given


def _crat(**knobs: Any) -> Spec:
    return Spec("agentsys.graphs.crat.system", knobs, _with_sources, documents=True)


SYSTEMS: Final[Mapping[str, Spec]] = {
    "plain": Spec("agentsys.graphs.translate.system", {"judge": False}),
    "thought": Spec("agentsys.graphs.translate.system", {"judge": False, "style": "thought"}),
    "rag": _crat(judge=False, graph=False),
    "crat": _crat(),
    "crat-judge": _crat(judge=False),
    "crat-graph": _crat(graph=False),
    **{
        f"ragtrans-{setting}": Spec(
            "agentsys.graphs.ragtrans.system", {"setting": setting}, _with_index, _with_document
        )
        for setting in ("none", "golden", "noisy", "retrieved")
    },
}


@dataclass(slots=True)
class Cost:
    """What a system's calls came to, the request cache's included, for so many sentences.

    `cut_off` replies ended at their token limit.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("calls", "prompt_tokens", "completion_tokens")

    sentences: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_off: int = 0

    def add(self, trace: Trace, sentences: int) -> None:
        """Add a finished record."""
        self.sentences += sentences
        self.calls += len(trace.calls)
        self.prompt_tokens += sum(call.prompt_tokens for call in trace.calls)
        self.completion_tokens += sum(call.completion_tokens for call in trace.calls)
        self.cut_off += sum(call.finish == "length" for call in trace.calls)

    def a_sentence(self) -> dict[str, float]:
        """Calls, prompt tokens and written tokens a sentence."""
        return {name: getattr(self, name) / max(self.sentences, 1) for name in self.PARTS}


@dataclass(slots=True)
class Outcome:
    """What a run made of the pairs, its manifest, and its cost."""

    rows: list[Row]
    manifest: dict[str, Any]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, slots=True)
class System:
    """A system that is ready to run. `units` are what goes through its graph at once, by id: input, and its pairs."""

    graph: Any
    context: Any
    units: dict[str, tuple[dict[str, Any], list[Pair]]]

    @property
    def takes_sources(self) -> bool:
        """Whether it looks terms up in the sources that the command names."""
        return bool(getattr(self.context, "sources", ""))


def system(name: str, settings: Mapping[str, Any], pairs: Sequence[Pair]) -> System:
    """A system over these pairs; its context gets those of the settings that it has fields for. Asks nothing.

    Raises InputError for an unknown system, one whose graph cannot be imported or one that lacks something, and what
    the context and its models raise.
    """
    if name not in SYSTEMS:
        raise InputError(f"--systems: there is no '{name}'; there are {', '.join(SYSTEMS)}")
    spec = SYSTEMS[name]
    try:
        module = importlib.import_module(spec.module)
    except ImportError as err:
        raise InputError(f"--systems: '{name}' needs {spec.module}, which cannot be imported: {err}") from None
    known = {item.name for item in fields(module.Context)}
    given = {knob: value for knob, value in settings.items() if knob in known}
    context = spec.ready(module.Context(**{**given, **spec.knobs}))
    context_models(context)
    return System(module.graph, context, dict(units_of(spec, context, pairs)))


def units_of(
    spec: Spec, context: Any, pairs: Iterable[Pair]
) -> Iterator[tuple[str, tuple[dict[str, Any], list[Pair]]]]:
    """(id, (input, its pairs)) for each pair, or each document of several. Raises InputError."""
    documents: dict[str, list[Pair]] = {}
    for pair in pairs:
        if spec.documents and pair.document:
            documents.setdefault(pair.document, []).append(pair)
        else:
            yield pair.id, ({**spec.inputs(pair, context), "id": pair.id}, [pair])
    for name, found in documents.items():
        members = sorted(found, key=lambda pair: pair.number)
        texts = [pair.text for pair in members]
        key = f"{name} {record_id({'sentences': texts})}"  # a document of more sentences is another record
        yield key, ({"id": key, "sentences": texts}, members)


def translated(ready: System, pairs: Sequence[Pair], folder: Path, options: RunOptions) -> Outcome:
    """Take the pairs through a system into its folder; what is there already is not asked again.

    Raises what `check_inputs` and `collected` raise.
    """
    inputs = [record for record, _ in ready.units.values()]
    check_inputs(folder, inputs)
    traces, manifest = _run(ready.graph, inputs, folder, ready.context, options)
    rows: dict[str, Row] = {}
    outcome = Outcome([], manifest)
    for key, (_, members) in ready.units.items():
        outcome.cost.add(traces[key], len(members))
        rows |= {row.pair.id: row for row in _rows(traces[key], members)}
    outcome.rows = [rows[pair.id] for pair in pairs]
    return outcome


def _rows(trace: Trace, members: Sequence[Pair]) -> list[Row]:
    result = trace.result or {}
    texts = result.get("translations", []) if "sentences" in trace.input else [result.get("translation")]
    if len(texts) != len(members):
        why = trace.reason or f"{len(texts)} translations of {len(members)} sentences"
        return [Row(pair, reason=why) for pair in members]
    rows = []
    for pair, text in zip(members, texts, strict=True):
        found = (text or "").strip() or None
        reason = None if found else trace.reason or "an empty translation"
        rows.append(Row(pair, found, reason, result.get("well_formed")))
    return rows


def judged(rows: Sequence[Row], folder: Path, context: translate.Context, options: RunOptions) -> dict[str, Any]:
    """Take rows through graphs/translate/system.py and write into them what it found; the run's manifest.

    A row with a translation is only judged, as a record of that translation: a document that has grown may have given
    another. Where that record is rejected the translation stays and is unscored. One with a reason why there is none is
    left out. Raises what `collected` raises.
    """
    asked = {_judged_as(row): row for row in rows if not row.reason}
    inputs = [
        {"id": name, "text": row.pair.text, "reference": row.pair.references[0]}
        | ({"translation": row.translation} if row.translation else {})
        for name, row in asked.items()
    ]
    traces, manifest = _run(translate.graph, inputs, folder, context, options)
    for name, row in asked.items():
        trace = traces[name]
        result = trace.result or {}
        row.scores, row.unscored = result.get("scores", {}), result.get("unscored", {})
        if row.translation and trace.reason:
            row.unscored = dict.fromkeys(JUDGED, trace.reason)
            continue
        row.translation, row.reason = result.get("translation"), trace.reason
        row.well_formed = result.get("well_formed", row.well_formed)
    return manifest


def _judged_as(row: Row) -> str:
    return f"{row.pair.id} {record_id({'translation': row.translation})}" if row.translation else row.pair.id


def _run(
    graph: Any, inputs: Sequence[dict[str, Any]], folder: Path, context: Any, options: RunOptions
) -> tuple[dict[str, Trace], dict[str, Any]]:
    """The trace of each record by its id, rejected ones too, and the run's manifest. Raises what `collected` raises."""
    traces = {trace.id: trace for trace in collected(graph, inputs, folder, context, options)}
    manifest: dict[str, Any] = orjson.loads((folder / "manifest.json").read_bytes())
    return traces, manifest


def check_inputs(folder: Path, inputs: Iterable[Mapping[str, Any]]) -> None:
    """Raises InputError where a run has taken something else under the id of one of the inputs."""
    given = {str(record["id"]): record for record in inputs}
    for trace in finished(folder):
        record = given.get(trace.id)
        if record is not None and trace.input != record:
            raise InputError(f"{folder}: {trace.id} has other words there; choose another --out")
