"""The options of graphs/translate_evaluate.py: test pairs, systems, scores and output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from agentsys.collect import RunOptions
from agentsys.collect.fingerprint import context_models
from agentsys.commands import knob
from agentsys.evaluation.run import OutputOptions
from agentsys.evaluation.sample import Sample, SampleOptions, sample_rows
from agentsys.graphs import translate
from agentsys.graphs.translate.measures import check_comet
from agentsys.graphs.translate.rows import Columns, Pair, read_pairs, with_terms
from agentsys.graphs.translate.systems import SYSTEMS
from agentsys.knobs import check_required, split_names
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.records import BadRecord, InputError
from agentsys.terms.tmx import is_memory


@dataclass(frozen=True)
class DataOptions:
    """The test pairs."""

    panel: ClassVar[str] = "Data"
    pairs: Path | None = knob(None, "sources and references: .jsonl, .json, .csv, .tsv, .parquet or .tmx")
    source_field: str = knob("text", "column of the source texts", required=True)
    reference_field: str = knob("trans", "column of the reference, or of a list of references", required=True)
    document_field: str = knob("document", "column that names the document of a sentence")
    terms: str = knob(
        "", "term lists, FILE.csv, separated by commas: terms in both a source and its reference are scored"
    )
    source_language: str = knob("English", "language of the sources", required=True)
    target_language: str = knob("Chinese", "language of the translations; determines BLEU's tokenizer", required=True)

    def __post_init__(self) -> None:
        """Raises ValueError for a column or a language that is blank."""
        check_required(self)

    @property
    def languages(self) -> tuple[str, str]:
        """The languages of the sources and of the translations."""
        return self.source_language, self.target_language

    def read(self, sample: SampleOptions) -> tuple[list[Pair | BadRecord], Sample[Pair]]:
        """All pairs of the file, and the sample with its terms. Raises InputError and KnowledgeError."""
        if self.pairs is None:
            raise InputError("--pairs: name a file of sources and references, such as pairs.jsonl or memory.tmx")
        if sample.field and (is_memory(self.pairs) or "text" in sample.fields):
            raise InputError("--field: a memory has no columns; of other files --source-field names the source's")
        columns = Columns(self.source_field, self.reference_field, self.document_field)
        pairs = read_pairs(self.pairs, columns, self.languages, sample)
        test = sample_rows(pairs, self.pairs, sample, "pair")
        if lists := split_names(self.terms):
            test = replace(test, rows=with_terms(test.rows, lists, self.languages))
        return pairs, test


@dataclass(frozen=True)
class SystemOptions:
    """The systems to compare."""

    panel: ClassVar[str] = "Systems"
    systems: str = knob("", f"systems to compare, separated by commas: {', '.join(SYSTEMS)}")
    translations: list[str] = knob((), "existing translations, as name=FILE: text lines or records; may be repeated")
    baseline: str = knob("", "the system that the others are tested against; empty: the first")
    model: str = knob(DEFAULT_SPEC, "model spec of every system")
    sources: str = knob("", "term sources of CRAT and rag: specs such as terms:FILE.csv, separated by commas")
    document_language: str = knob("", "RAGtrans' documents: zh uses the columns zh_doc and noisy_zh_doc; empty: doc")
    index: str = knob("", "ragtrans-retrieved: folder of an index that `python -m agentsys.knowledge build` wrote")
    retriever: Literal["", "bm25", "dense", "hybrid"] = knob("", "retriever of the index; empty: the best it has")

    def files(self) -> dict[str, Path]:
        """The files of existing translations by system name. Raises InputError."""
        files: dict[str, Path] = {}
        for entry in self.translations:
            name, _, file = entry.partition("=")
            if not name or not file or "/" in name:
                raise InputError(f"--translations {entry}: give a name and a file, as mine=mine.jsonl")
            if name in files or name in SYSTEMS:
                raise InputError(f"--translations {entry}: there is a system '{name}' already; choose another name")
            files[name] = Path(file)
        return files

    def names(self) -> list[str]:
        """All systems, in the order in which they run. Raises InputError."""
        names = [*dict.fromkeys(split_names(self.systems)), *self.files()]
        if not names:
            raise InputError(f"--systems: name some of {', '.join(SYSTEMS)}, or give existing --translations")
        if self.baseline and self.baseline not in names:
            raise InputError(f"--baseline {self.baseline}: this is not one of the systems; add it to --systems")
        return names

    def settings(self, data: DataOptions) -> dict[str, Any]:
        """What the context of a system can take from the command."""
        names = ("model", "sources", "document_language", "index", "retriever")
        languages = {"source_language": data.source_language, "target_language": data.target_language}
        return {name: getattr(self, name) for name in names} | languages


@dataclass(frozen=True)
class ScoreOptions:
    """The metrics besides BLEU, chrF and terms."""

    panel: ClassVar[str] = "Scores"
    judge: str = knob("", "model spec of the judge; empty: no GRF, GRB and GEA")
    comet_python: Path | None = knob(None, "a Python that has unbabel-comet; without it no COMET")
    comet_model: str = knob("Unbabel/wmt22-comet-da", "COMET model: a name or a checkpoint")
    one_script: bool = knob(False, "convert translations and references to simplified Chinese before BLEU and chrF")

    def check_comet(self) -> None:
        """Raises InputError if --comet-python cannot import unbabel-comet."""
        if self.comet_python:
            check_comet(self.comet_python)

    def judge_context(self, data: DataOptions) -> translate.Context | None:
        """The context of the judge; None without --judge. Raises SpecError."""
        if not self.judge:
            return None
        source, target = data.languages
        context = translate.Context(model=self.judge, source_language=source, target_language=target)
        context_models(context)
        return context


@dataclass(frozen=True)
class TranslationOutput(OutputOptions):
    """Systems share the user's request cache. `table_only` leaves no files."""

    cache: Path | None = knob(None, "request cache file; default: the one in the user's cache folder")
    table_only: bool = knob(False, "print the table and write no results; the runs are deleted")

    def run_options(self, folder: Path) -> RunOptions:
        """The options of a system's run: failed records are retried. Raises InputError."""
        return replace(super().run_options(folder), cache=self.cache)

    @contextmanager
    def open_folder(self, default_name: str) -> Iterator[Path]:
        """The folder of the results; a temporary one with --table-only. Raises InputError."""
        if not self.table_only:
            yield self.folder(default_name)
        elif self.out:
            raise InputError("--table-only writes nothing to --out; leave one of them out")
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)
