"""The options of graphs/translate_evaluate.py: test pairs, systems, scores and output."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
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
from agentsys.graphs.translate.comet import DEFAULT_MODEL, check_comet, column_names
from agentsys.graphs.translate.judging import Judging, Task
from agentsys.graphs.translate.measures import CORPUS, JUDGED, TERM_METRICS
from agentsys.graphs.translate.rows import Columns, Pair, read_pairs, with_terms
from agentsys.graphs.translate.systems import SYSTEMS, TranslationSystem, load_system
from agentsys.installation import install_command
from agentsys.knobs import check_required, split_names
from agentsys.models.cache import default_path
from agentsys.models.spec import DEFAULT_SPEC
from agentsys.prompt import Prompt
from agentsys.records import BadRecord, InputError
from agentsys.roles import load_prompt
from agentsys.terms.tmx import is_memory
from agentsys.text.chinese import can_simplify

STUDENTS = ("thought", "direct")
"""The systems in DRT's chat format."""


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
    student_system: str = knob(
        "", "system message of thought and direct: a text, or a file with it; empty: that of prompts/drt/student.md"
    )
    drt_profile: Literal["paper", "small"] = knob(
        "paper", "profile of drt-best and drt-last: the method as published, or for small models"
    )
    trained_on: list[Path] = knob((), "collect run that a model was trained on; no pair may be in it; may be repeated")
    repeat: int = knob(1, "run each system this often, with other seeds; scores are means over the runs")

    def __post_init__(self) -> None:
        """Raises InputError for fewer than one run."""
        if self.repeat < 1:
            raise InputError(f"--repeat {self.repeat}: at least 1 is needed")

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
        if self.student_system and not {*names} & {*STUDENTS}:
            raise InputError(f"--student-system: only {' and '.join(STUDENTS)} use it; add one of them to --systems")
        return names

    def settings(self, data: DataOptions) -> dict[str, Any]:
        """What the context of a system can take from the command."""
        names = ("model", "sources", "document_language", "index", "retriever")
        languages = {"source_language": data.source_language, "target_language": data.target_language}
        return {name: getattr(self, name) for name in names} | languages | {"profile": self.drt_profile}

    def student_prompt(self) -> str:
        """prompts/drt/student.md with another system message; "" without one. Raises InputError and PromptError."""
        if not self.student_system:
            return ""
        parts = [part for part in load_prompt("drt/student").parts if part.role != "system"]
        messages = [("system", _read_text(self.student_system)), *((part.role, part.template) for part in parts)]
        prompt = "".join(f"# {role}\n{text}\n" for role, text in messages)
        return Prompt.parse(prompt, "--student-system").text

    def load(self, data: DataOptions, pairs: Sequence[Pair], out: Path) -> list[TranslationSystem]:
        """The systems that run, without those of --translations. Raises what `load_system` raises."""
        settings, files = self.settings(data), self.files()
        student = settings | {"student_prompt": self.student_prompt()}
        return [
            load_system(name, student if name in STUDENTS else settings, pairs, out / name, self.repeat)
            for name in self.names()
            if name not in files
        ]


def _read_text(text_or_file: str) -> str:
    """A text, or that of a file. Raises InputError for one word that is no file, and for a file that is not UTF-8."""
    is_text = len(text_or_file.split()) > 1
    try:
        is_file = Path(text_or_file).is_file()
        if is_text and not is_file:
            return text_or_file
        return Path(text_or_file).read_text(encoding="utf-8-sig").strip()
    except OSError as err:
        if is_text:  # too long for the name of a file
            return text_or_file
        fault = f"{err.strerror}; give a file, or a text of several words"
        raise InputError(f"--student-system {text_or_file}: {fault}") from None
    except UnicodeDecodeError:
        raise InputError(f"--student-system {text_or_file}: not UTF-8 text; convert it") from None


@dataclass(frozen=True)
class ScoreOptions:
    """The metrics besides BLEU, chrF and terms."""

    panel: ClassVar[str] = "Scores"
    judge: str = knob("", "model spec of the judge; empty: no GRF, GRB and GEA")
    mqm: bool = knob(False, "the judge also lists errors with category and severity: the MQM score")
    prefer: bool = knob(False, "the judge also compares each system with the baseline, in both orders")
    judge_documents: bool = knob(False, "the judge also scores each document as a whole")
    comet_python: Path | None = knob(None, "a Python that has unbabel-comet; without it no COMET")
    comet_model: list[str] = knob((), f"COMET model: a name or a checkpoint; may be repeated; default: {DEFAULT_MODEL}")
    one_script: bool = knob(False, "convert translations and references to simplified Chinese before BLEU and chrF")

    @property
    def comet_columns(self) -> dict[str, str]:
        """The COMET models by the names of their metrics; empty without --comet-python. Raises InputError."""
        return column_names(self.comet_model or [DEFAULT_MODEL]) if self.comet_python else {}

    @property
    def tasks(self) -> list[Task]:
        """The judge's further tasks."""
        chosen: dict[Task, bool] = {"mqm": self.mqm, "preference": self.prefer, "document": self.judge_documents}
        return [task for task, is_chosen in chosen.items() if is_chosen]

    @property
    def metrics(self) -> list[str]:
        """All metrics in the order of the report; COMET stands for its models if there are none."""
        names = {"mqm": "MQM", "preference": "preference", "document": "document"}
        judged = [names[task] for task in self.tasks]
        return [*CORPUS, *(self.comet_columns or ["COMET"]), *JUDGED, *judged, *TERM_METRICS]

    def check(self, pairs: Sequence[Pair], systems: Sequence[str]) -> None:
        """Check before any call what can be checked. Raises InputError, which names the option and the fix."""
        if self.comet_model and not self.comet_python:
            raise InputError("--comet-model: name a Python that has unbabel-comet with --comet-python")
        if self.comet_python:
            _ = self.comet_columns
            check_comet(self.comet_python)
        flags = {"mqm": "--mqm", "preference": "--prefer", "document": "--judge-documents"}
        if self.tasks and not self.judge:
            raise InputError(f"{flags[self.tasks[0]]}: name the judge with --judge")
        if self.prefer and len(systems) < 2:
            raise InputError("--prefer compares systems with the baseline; give at least two")
        if self.judge_documents and not any(pair.document for pair in pairs):
            raise InputError("--judge-documents: no pair names its document; name the column with --document-field")
        if self.one_script and not can_simplify():
            raise InputError(f"--one-script needs OpenCC: {install_command('knowledge')}")

    def judging(self, data: DataOptions, run: TranslationOutput) -> Judging | None:
        """The judges of a run; None without --judge. Raises SpecError."""
        if not self.judge:
            return None
        source, target = data.languages
        context = translate.Context(model=self.judge, source_language=source, target_language=target)
        context_models(context)
        return Judging(context, self.tasks, run)


@dataclass(frozen=True)
class TranslationOutput(OutputOptions):
    """Systems share the user's request cache. `table_only` leaves no files."""

    cache: Path | None = knob(None, "request cache file; default: the one in the user's cache folder")
    table_only: bool = knob(False, "print the table and write no results; the runs are deleted")

    def run_options(self, folder: Path) -> RunOptions:
        """The options of a system's run: failed records are retried. Raises InputError."""
        return replace(super().run_options(folder), cache=self.cache)

    @property
    def cache_path(self) -> Path:
        """The file of the request cache."""
        return self.cache or default_path()

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
