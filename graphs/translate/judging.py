"""Runs of the judges over the translations of all systems; their scores are written into the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from agentsys.collect import RunOptions
from agentsys.collect.limits import Spending
from agentsys.display import say
from agentsys.evaluation.report import mean_score
from agentsys.evaluation.run import OutputOptions, SystemRun
from agentsys.graphs import translate
from agentsys.graphs.translate.judges import Error, JudgeContext, builder, mqm_score
from agentsys.graphs.translate.rows import TranslatedPair
from agentsys.graphs.translate.systems import SystemResult, group_by_translation, judge_translations
from agentsys.records import record_id

Rows = list[TranslatedPair]
Task = Literal["mqm", "preference", "document"]

_PROGRESS: Final[Mapping[Task, str]] = {
    "mqm": "listing the errors of",
    "preference": "comparing with the baseline:",
    "document": "judging the documents of",
}
_FOLDERS: Final[Mapping[Task, str]] = {"mqm": "errors", "preference": "preferences", "document": "documents"}


@dataclass(frozen=True)
class Judging:
    """The judges that are asked: those of system.py, and those of judges.py that `tasks` names."""

    context: translate.Context
    tasks: Sequence[Task]
    output: OutputOptions

    def score(self, results: Mapping[str, SystemResult], baseline: str, out: Path) -> None:
        """Let the judges score the translations of all systems. Raises what `SystemRun.collect` raises."""
        for name, result in results.items():
            say(f"judging {name}")
            folder = out / name / "judged"
            context = replace(self.context, data=result.run)
            judge_translations(result.rows, folder, context, self.output.run_options(folder), self.output.spending)
        for task in self.tasks:
            for name, result in results.items():
                if task != "preference" or name != baseline:
                    say(f"{_PROGRESS[task]} {name}")
                    self._score(task, result, results[baseline], out / name / _FOLDERS[task])

    def _score(self, task: Task, result: SystemResult, baseline: SystemResult, folder: Path) -> None:
        data = f"{result.run} {baseline.run}" if task == "preference" else result.run
        context = JudgeContext(model=self.context.model, task=task, data=data, **self.context.languages)
        run = JudgeRun(context, folder, self.output.run_options(folder), self.output.spending)
        match task:
            case "mqm":
                list_errors(result.rows, run)
            case "preference":
                compare(result.rows, baseline, run)
            case "document":
                score_documents(result.rows, run)


@dataclass(frozen=True)
class JudgeRun:
    """One judge's collect run in a folder."""

    context: JudgeContext
    folder: Path
    options: RunOptions
    spending: Spending | None = None

    def collect(
        self, records: Sequence[Mapping[str, Any]], rows_by_id: Mapping[str, Rows], metric: str
    ) -> Iterator[tuple[dict[str, Any], Rows]]:
        """The result of each judged record with its rows; where there is none, the rows get the reason."""
        graph = builder.compile(name="translation_judges")
        run = SystemRun("judge", graph, self.context, records, self.folder)
        for trace in run.collect(self.options, self.spending):
            result = trace.result or {}
            if reason := trace.reason or result.get("unscored"):
                for row in rows_by_id[trace.id]:
                    row.unscored[metric] = reason
            else:
                yield result, rows_by_id[trace.id]


def list_errors(rows: Iterable[TranslatedPair], run: JudgeRun) -> None:
    """Write the errors and the MQM score of each translation into its rows."""
    by_id = group_by_translation(rows)
    records = [{"id": name, "text": row.pair.text, "translation": row.translation} for name, (row, *_) in by_id.items()]
    for result, members in run.collect(records, by_id, "MQM"):
        errors: list[Error] = result["errors"]
        for row in members:
            row.errors = errors
            row.scores["MQM"] = mqm_score(errors)


def compare(rows: Iterable[TranslatedPair], baseline: SystemResult, run: JudgeRun) -> None:
    """Write the preference over the baseline's translation (100, 0, or 50 for a tie) into each row.

    A run of a system is compared with the same run of the baseline, or with its last one. Equal translations are a tie
    without a call.
    """
    rivals = {(row.run, row.pair.id): row.translation for row in baseline.translated}
    by_id: defaultdict[str, Rows] = defaultdict(list)
    records = {}
    for row in rows:
        rival = rivals.get((min(row.run, baseline.repeats), row.pair.id))
        if row.translation and row.translation == rival:
            row.scores["preference"] = 50.0
        elif row.translation and rival:
            texts = {"translation": row.translation, "baseline": rival}
            name = f"{row.pair.id} {record_id(texts)}"
            by_id[name].append(row)
            records[name] = {"id": name, "text": row.pair.text, **texts}
    for result, members in run.collect(list(records.values()), by_id, "preference"):
        for row in members:
            row.scores["preference"] = 100 * result["preference"]


def score_documents(rows: Iterable[TranslatedPair], run: JudgeRun) -> None:
    """Write the score of each document into its rows. A document with a missing translation is not judged."""
    documents: defaultdict[tuple[int, str], Rows] = defaultdict(list)
    for row in rows:
        if row.pair.document:
            documents[row.run, row.pair.document].append(row)
    by_id: defaultdict[str, Rows] = defaultdict(list)
    records = {}
    for (_, document), members in documents.items():
        members.sort(key=lambda row: row.pair.number)
        if all(row.translation for row in members):
            sentences = [{"source": row.pair.text, "translation": row.translation} for row in members]
            name = f"{document} {record_id({'sentences': sentences})}"
            by_id[name] += members
            records[name] = {"id": name, "sentences": sentences}
    for result, members in run.collect(list(records.values()), by_id, "document"):
        for row in members:
            row.scores["document"] = result["score"]


def count_errors(rows: Iterable[TranslatedPair]) -> dict[str, Any] | None:
    """The listed errors by severity and by category; `unplaced` are in neither text. None if no errors were listed."""
    judged = [row for row in rows if row.errors is not None]
    if not judged:
        return None
    errors = [(row, error) for row in judged for error in row.errors or () if error["severity"] != "no"]
    categories: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for _, error in errors:
        categories[error["category"]][error["severity"]] += 1
    severities = Counter(error["severity"] for _, error in errors)
    return {
        "translations": len(judged),
        "without_errors": len(judged) - len({id(row) for row, _ in errors}),
        **{name: severities[name] for name in ("critical", "major", "minor")},
        "unplaced": sum(error["span"] not in f"{row.translation}\n{row.pair.text}" for row, error in errors),
        "categories": {name: dict(counts) for name, counts in sorted(categories.items())},
    }


def count_preferences(rows: Iterable[TranslatedPair]) -> dict[str, Any] | None:
    """Wins, losses and ties against the baseline, and the p-value of the two-sided sign test; None if not compared.

    A sentence counts once: over several runs, the mean of its preferences decides. `value` is the share of wins in
    percent, with a tie as half a win.
    """
    by_pair: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        if "preference" in row.scores:
            by_pair[row.pair.id].append(row.scores["preference"])
    if not by_pair:
        return None
    means = [fmean(values) for values in by_pair.values()]
    wins, losses = sum(mean > 50 for mean in means), sum(mean < 50 for mean in means)
    ties = len(means) - wins - losses
    return {"win": wins, "loss": losses, "tie": ties, **mean_score(means), "p": sign_test(wins, losses)}


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of the exact sign test: wins and losses are equally likely; ties are left out."""
    n, fewer = wins + losses, min(wins, losses)
    return min(1.0, sum(comb(n, k) for k in range(fewer + 1)) / float(2 ** (n - 1))) if n else 1.0
