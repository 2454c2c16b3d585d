"""The systems that translate: each is a graph with the options that make it this system, run over the pairs.

| system | what it is |
|---|---|
| plain | a plain prompt (graphs/translate/system.py) |
| drt-best, drt-last | DRT's refinement: the best-scored draft, and the last one (graphs/drt/refinement.py) |
| thought, direct | DRT's chat format: a student that writes the long thought first, or the translation alone |
| rag | everything that CRAT retrieves in the prompt: no judge and no graph |
| crat, crat-judge, crat-graph | CRAT; CRAT without the judge; CRAT without the graph (graphs/crat/system.py) |
| ragtrans-none, -golden, -noisy, -retrieved | RAGtrans' settings of its document (graphs/ragtrans/system.py) |

Only the graphs of the chosen systems are imported. CRAT translates the sentences of a document together.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Final

from agentsys.collect import RunOptions
from agentsys.collect.fingerprint import context_models
from agentsys.collect.limits import Spending
from agentsys.evaluation.run import SystemRun
from agentsys.graphs import translate
from agentsys.graphs.translate.measures import JUDGED
from agentsys.graphs.translate.rows import Pair, TranslatedPair
from agentsys.records import InputError, record_id
from agentsys.traces import Trace


@dataclass(frozen=True, slots=True)
class SystemSpec:
    """Where a system's graph is, the options that make it this system, its inputs and its answer.

    `prepare` checks what the context names before any call, and fills in its digests. `input_of` is the graph's input
    for a pair. With `documents` the graph also takes {"sentences": [...]} and returns `translations`. `translator` is
    the role that writes the translation, `answer` the value of the result that holds it.
    """

    module: str
    options: Mapping[str, Any]
    prepare: Callable[[Any], Any] = lambda context: context
    input_of: Callable[[Pair, Any], dict[str, Any]] = lambda pair, context: {"text": pair.text}
    documents: bool = False
    translator: str = "translator"
    answer: str = "translation"


def _with_sources(context: Any) -> Any:
    from agentsys.graphs.crat.state import with_digest
    from agentsys.terms.item import require_modules

    require_modules("networkx", "opencc")
    return with_digest(context)


def _with_index(context: Any) -> Any:
    from agentsys.knowledge.context import with_index

    return with_index(context) if context.setting == "retrieved" else context


def _with_document(pair: Pair, context: Any) -> dict[str, Any]:
    """The input of RAGtrans; with all references, so that no retrieved passage leaks one.

    Raises InputError if the pair has no such document.
    """
    record: dict[str, Any] = {"text": pair.text}
    if pair.references:
        record["reference"] = [*pair.references] if len(pair.references) > 1 else pair.references[0]
    if not (column := context.document_column):
        return record
    if column not in pair.data:
        columns = ", ".join(name for name in pair.data if name.endswith("doc")) or "none"
        raise InputError(
            f"{pair.location}: no column '{column}' for ragtrans-{context.setting}; document columns: {columns}; name "
            "one with --document-language"
        )
    record["document"] = pair.data[column] or ""
    if column == "doc" and "tag" in pair.data:
        record["tag"] = pair.data["tag"]
    return record


def _crat(**options: Any) -> SystemSpec:
    return SystemSpec("agentsys.graphs.crat.system", options, _with_sources, documents=True)


SYSTEMS: Final[Mapping[str, SystemSpec]] = {
    "plain": SystemSpec("agentsys.graphs.translate.system", {"judge": False}),
    **{
        style: SystemSpec("agentsys.graphs.translate.system", {"judge": False, "style": style}, translator="student")
        for style in ("thought", "direct")
    },
    "drt-best": SystemSpec("agentsys.graphs.drt.refinement", {}, translator="draft", answer="trans"),
    "drt-last": SystemSpec("agentsys.graphs.drt.refinement", {}, translator="draft", answer="last"),
    "rag": _crat(judge=False, graph=False),
    "crat": _crat(),
    "crat-judge": _crat(judge=False),
    "crat-graph": _crat(graph=False),
    **{
        f"ragtrans-{setting}": SystemSpec(
            "agentsys.graphs.ragtrans.system", {"setting": setting}, _with_index, _with_document
        )
        for setting in ("none", "golden", "noisy", "retrieved")
    },
}


@dataclass(slots=True)
class Cost:
    """The calls and tokens of a system over its sentences, including calls answered by the request cache.

    `truncated` counts replies that ended at their token limit.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("calls", "prompt_tokens", "completion_tokens")

    sentences: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    truncated: int = 0

    def add(self, trace: Trace, sentences: int) -> None:
        """Add a finished record."""
        self.sentences += sentences
        self.calls += len(trace.calls)
        self.prompt_tokens += sum(call.prompt_tokens for call in trace.calls)
        self.completion_tokens += sum(call.completion_tokens for call in trace.calls)
        self.truncated += sum(call.finish == "length" for call in trace.calls)

    def as_json(self) -> dict[str, Any] | None:
        """All counts, and `per_sentence`: calls, prompt tokens and completion tokens; None without any call."""
        if not self.calls:
            return None
        means = {name: getattr(self, name) / max(self.sentences, 1) for name in self.PARTS}
        return {**asdict(self), "per_sentence": means}


@dataclass(slots=True)
class SystemResult:
    """The translations of a system, the run or file (by its SHA-256) they are from, and its conditions and cost.

    `rows` are those of all repetitions, in order; `repeats` is their number.
    """

    rows: list[TranslatedPair]
    run: str
    file: Path | None = None
    models: list[str] = field(default_factory=list)
    sampling: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    repeats: int = 1

    @property
    def translated(self) -> list[TranslatedPair]:
        """The rows with a translation."""
        return [row for row in self.rows if row.translation]


@dataclass(frozen=True, slots=True)
class TranslationSystem:
    """A system that is ready to run. `units` are the pairs and the repetition of each record of its graph, by id."""

    spec: SystemSpec
    run: SystemRun
    units: dict[str, tuple[list[Pair], int]]
    repeats: int

    @property
    def uses_sources(self) -> bool:
        """Whether it looks terms up in the sources that the command names."""
        return bool(getattr(self.run.context, "sources", ""))

    def result(self, pairs: Sequence[Pair], traces: Iterable[Trace]) -> SystemResult:
        """The translations of the pairs from the traces of the run."""
        cost = Cost()
        rows: dict[tuple[int, str], TranslatedPair] = {}
        for trace in traces:
            members, repeat = self.units[trace.id]
            cost.add(trace, len(members))
            for row in translations_in(trace, members, self.spec.answer):
                row.run = repeat
                rows[repeat, row.pair.id] = row
        manifest = self.run.manifest()
        models = manifest["fingerprint"]["models"]
        role = manifest["fingerprint"]["roles"].get(self.spec.translator, {})
        return SystemResult(
            rows=[rows[repeat, pair.id] for repeat in range(1, self.repeats + 1) for pair in pairs],
            run=manifest["run"],
            models=sorted({model["name"] for model in models.values()}),
            sampling={**role.get("sampling", {}), **models.get("model", {}).get("sampling", {})},
            cost=cost,
            repeats=self.repeats,
        )


def load_system(
    name: str, settings: Mapping[str, Any], pairs: Sequence[Pair], folder: Path, repeats: int = 1
) -> TranslationSystem:
    """A system over these pairs, without any call; its context gets the settings that it has fields for.

    Each repetition has records of its own, whose id is part of a call's seed. Raises InputError for an unknown system,
    a graph that cannot be imported, a missing option and a fixed seed with repetitions, and what the context raises.
    """
    if name not in SYSTEMS:
        raise InputError(f"--systems: there is no '{name}'; there are {', '.join(SYSTEMS)}")
    spec = SYSTEMS[name]
    try:
        module = importlib.import_module(spec.module)
    except ImportError as err:
        raise InputError(f"--systems: '{name}' needs {spec.module}, which cannot be imported: {err}") from None
    allowed = {item.name for item in fields(module.Context)}
    options = {name: value for name, value in settings.items() if name in allowed}
    context = spec.prepare(module.Context(**{**options, **spec.options}))
    if repeats > 1:
        check_seeds(context)
    units: dict[str, tuple[list[Pair], int]] = {}
    records = []
    for repeat in range(1, repeats + 1):
        for key, (record, members) in units_of(spec, context, pairs):
            key = key if repeat == 1 else f"{key} (run {repeat})"
            records.append({**record, "id": key})
            units[key] = members, repeat
    return TranslationSystem(spec, SystemRun(name, module.graph, context, records, folder), units, repeats)


def check_seeds(context: Any) -> None:
    """Raises InputError for a model whose spec fixes the seed: all repetitions would be equal."""
    for model in context_models(context).values():
        if "seed" in model.sampling:
            raise InputError("--repeat: the model's spec has a seed, with which all runs are equal; leave it out")


def units_of(
    spec: SystemSpec, context: Any, pairs: Iterable[Pair]
) -> Iterator[tuple[str, tuple[dict[str, Any], list[Pair]]]]:
    """(id, (input, its pairs)) for each pair, or each document with its pairs. Raises InputError."""
    documents: dict[str, list[Pair]] = {}
    for pair in pairs:
        if spec.documents and pair.document:
            documents.setdefault(pair.document, []).append(pair)
        else:
            yield pair.id, ({**spec.input_of(pair, context), "id": pair.id}, [pair])
    for name, of_document in documents.items():
        members = sorted(of_document, key=lambda pair: pair.number)
        texts = [pair.text for pair in members]
        key = f"{name} {record_id({'sentences': texts})}"  # a document of more sentences is another record
        yield key, ({"id": key, "sentences": texts}, members)


def translations_in(trace: Trace, members: Sequence[Pair], answer: str = "translation") -> list[TranslatedPair]:
    """The translations of a record's pairs: `answer` in its result.

    A document with another number of translations has none.
    """
    result = trace.result or {}
    texts = result.get("translations", []) if "sentences" in trace.input else [result.get(answer)]
    if len(texts) != len(members):
        reason = trace.reason or f"{len(texts)} translations of {len(members)} sentences"
        return [TranslatedPair(pair, reason=reason) for pair in members]
    rows = []
    for pair, text in zip(members, texts, strict=True):
        translation = (text or "").strip() or None
        missing = None if translation else trace.reason or "an empty translation"
        rows.append(TranslatedPair(pair, translation, missing, result.get("well_formed")))
    return rows


def judge_translations(
    rows: Iterable[TranslatedPair],
    folder: Path,
    context: translate.Context,
    options: RunOptions,
    spending: Spending | None = None,
) -> None:
    """Let the judge of graphs/translate/system.py score the rows that have a translation; scores are written into them.

    A record's id contains its translation: a document that has grown may have another translation of a sentence, and
    equal translations of two repetitions are judged once. If a record fails, its translation is kept without scores.
    Raises what `SystemRun.collect` raises.
    """
    by_id = group_by_translation(rows)
    records = []
    for name, (row, *_) in by_id.items():
        reference = {"reference": row.pair.references[0]} if row.pair.references else {}
        records.append({"id": name, "text": row.pair.text, **reference, "translation": row.translation})
    for trace in SystemRun("judge", translate.graph, context, records, folder).collect(options, spending):
        result = trace.result or {}
        for row in by_id[trace.id]:
            names = [name for name in JUDGED if name != "GRB" or row.pair.references]
            row.scores |= result.get("scores", {})
            row.unscored |= dict.fromkeys(names, trace.reason) if trace.reason else result.get("unscored", {})


def group_by_translation(rows: Iterable[TranslatedPair]) -> dict[str, list[TranslatedPair]]:
    """The rows that have a translation, by a record's id made of the pair and the translation."""
    by_id: dict[str, list[TranslatedPair]] = {}
    for row in rows:
        if row.translation:
            by_id.setdefault(f"{row.pair.id} {record_id({'translation': row.translation})}", []).append(row)
    return by_id
