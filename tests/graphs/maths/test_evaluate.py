"""graphs/maths_evaluate.py: the numbers by hand, with a scripted policy; equal tokens; what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel

from agentsys.collect import RunOptions, collect
from agentsys.graphs.maths import samples as maths_samples
from agentsys.graphs.maths import search as maths
from agentsys.graphs.maths.measures import best
from agentsys.graphs.maths_evaluate import main
from agentsys.models.errors import ModelError
from agentsys.models.wire import Reply
from tests.support.evaluations import Run, read_report, run_command
from tests.support.maths_policy import Policy
from tests.support.toys import one_error, write_lines

QUESTIONS: list[dict[str, Any]] = [
    {"id": "easy", "question": "What is 1 + 1?", "answer": "#### 2"},
    {"id": "hard", "problem": "What is 2 + 2?", "solution": r"\boxed{4}"},
    {"id": "never", "question": "What is 3 + 3?", "answer": "6"},
]
FAILING: set[str] = set()
UNUSABLE: dict[str, str | None] = {}
"""The judge's reply to a question in place of Yes or No; None: its server refuses."""


def answer_to(question: str, key: str, greedy: bool) -> str:
    """easy: always right. hard: greedy wrong; samples 1, 4, 5 right, 0 and 2 give 3, the others 5. never: never."""
    if question == "easy":
        return "2"
    if question == "never":
        return "7"
    if greedy:
        return "3"
    number = int(key.rpartition("/")[2])
    return {0: "3", 1: "4", 2: "3", 4: "4", 5: r"\frac{8}{2}"}.get(number, "5")


class Solving(Policy):
    """Solutions of 20 tokens; the judge says Yes to the answer 4."""

    async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
        last = str(messages[-1]["content"])
        self.calls.append((kwargs["key"], [], last))
        question = next(q["id"] for q in QUESTIONS if (q.get("question") or q["problem"]) in last)
        if question in FAILING:
            raise ModelError("the model fell over")
        if kwargs["role"] == "judge":
            if question in UNUSABLE:
                if (word := UNUSABLE[question]) is None:
                    raise ModelError("HTTP 400: no log-probabilities")
                return Reply(word, "stop", 5, 1)
            return Reply("Yes" if r"\boxed{4}" in last else "No", "stop", 5, 1)
        prefix_ids = kwargs.get("continue_ids") or []
        sampling = self.settings(kwargs["sampling"])
        answer = answer_to(question, kwargs["key"], sampling["temperature"] == 0)
        rest = f"\\boxed{{{answer}}}"
        if kwargs["key"].startswith("root"):
            rest = f"Step 1: x{kwargs['key'][-1]}\n\nStep 2: so {rest}" if not prefix_ids else f": so {rest}"
        return self._reply(rest.ljust(19), prefix_ids, sampling)


MODEL = f"langchain:{__name__}:Solving"


@pytest.fixture
def run(
    isolated_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The command on the questions."""
    monkeypatch.setenv("COLUMNS", "220")
    FAILING.clear()
    questions = write_lines(tmp_path / "dev.jsonl", QUESTIONS)

    def call(*options: object) -> tuple[int, str, str]:
        defaults = ["--questions", questions, "--model", MODEL, "--samples", 4, "--budget", 160]
        return run_command(main, capsys, *defaults, *options)

    return call


def value(score: Mapping[str, float]) -> float:
    return round(score["value"], 1)


def test_the_numbers(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output, error = run("--out", out)
    assert code == 0, output + error
    systems = read_report(out)["systems"]
    assert value(systems["greedy"]["pass"]["1"]) == 33.3
    samples = systems["samples"]
    assert value(samples["majority"]) == 33.3, "3, 4, 3, 5: the hard one votes for 3"
    assert value(samples["pass"]["1"]) == pytest.approx(100 * (1 + 0.25 + 0) / 3, abs=0.1)
    assert value(samples["pass"]["2"]) == pytest.approx(100 * (1 + 0.5 + 0) / 3, abs=0.1)
    assert value(samples["pass"]["4"]) == 66.7
    assert samples["pass"]["1"]["low"] < 41 < samples["pass"]["1"]["high"]
    assert "majority@4" in output and "pass@2" in output and "best-of-n" in output
    assert "not checked: whether the model was trained" in output
    assert (out / "tokens.png").stat().st_size > 5000
    assert systems["samples"]["prompt_tokens"] > 0 and systems["tree"]["failed"] == 0


class Plain(FakeListChatModel):
    """Another integration, of which only the text is known."""

    responses: list[str] = [r"It is \boxed{2}."]  # noqa: RUF012


def test_a_model_of_another_integration(run: Run, tmp_path: Path) -> None:
    options = ("--model", f"langchain:{__name__}:Plain", "--judge-model", MODEL, "--systems", "greedy,samples")
    code, output, error = run("--out", tmp_path / "out", "--limit", 1, *options)
    assert code == 0, output + error
    systems = read_report(tmp_path / "out")["systems"]
    assert value(systems["greedy"]["pass"]["1"]) == 100 and systems["samples"]["model"] == "of another integration"


def test_best_of_n_under_a_budget(run: Run, tmp_path: Path) -> None:
    """A sample takes 20 tokens and 1 for its judgement: 160 are 7 of them, 40 only one, 10 none."""
    out = tmp_path / "out"
    run("--out", out)
    lines = {line["id"]: line for line in map(json.loads, (out / "predictions.jsonl").read_text().splitlines())}
    solutions = lines["hard"]["systems"]["samples"]["solutions"]
    assert [solution["tokens"] for solution in solutions][:7] == [21 * i for i in range(1, 8)] and len(solutions) == 8
    assert [solution["group"] for solution in solutions][:6] == [0, 1, 0, 3, 1, 1], "8/2 is 4"
    assert [solution["right"] for solution in solutions][:6] == [False, True, False, False, True, True]
    at = read_report(out)["systems"]["samples"]["at"]
    assert list(at) == ["10", "20", "40", "80", "160"]
    assert [value(at[b]["best"]) for b in at] == [0, 0, 33.3, 66.7, 66.7]
    assert [value(at[b]["vote"]) for b in at] == [0, 0, 33.3, 33.3, 66.7]
    assert [value(at[b]["any"]) for b in at] == [0, 0, 33.3, 66.7, 66.7]


def test_the_tree_has_the_same_budget(run: Run, tmp_path: Path) -> None:
    """What it wrote after the budget does not count, and the difference is over the same questions."""
    out = tmp_path / "out"
    run("--out", out)
    report = read_report(out)
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    tree = [line["systems"]["tree"] for line in lines]
    assert all(one["solutions"] and one["tokens"] >= 160 for one in tree)
    last = report["systems"]["tree"]["at"]["160"]
    right = [any(f["right"] for f in one["solutions"] if f["tokens"] <= 160) for one in tree]
    assert value(last["any"]) == pytest.approx(100 * sum(right) / 3, abs=0.1)
    gap, best = report["minus_best_of_n"]["tree"], report["systems"]["samples"]["at"]["160"]
    for choice in ("best", "vote", "any"):
        assert gap[choice]["value"] == pytest.approx(last[choice]["value"] - best[choice]["value"])


def test_again_asks_nothing_and_failures_count_as_wrong(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    FAILING.add("easy")
    code, output, _ = run("--out", out)
    assert code == 3 and "greedy failed at 1 of 3 questions" in output and "the model fell over" in output
    assert value(read_report(out)["systems"]["greedy"]["pass"]["1"]) == 0
    FAILING.clear()
    assert run("--out", out)[0] == 0, "failed questions are retried"
    before = read_report(out)["systems"]
    FAILING.update(row["id"] for row in QUESTIONS)
    assert run("--out", out)[0] == 0
    assert read_report(out)["systems"] == before


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("Perhaps", "no usable reply in 3 attempts: reply with Yes or No"), (None, "HTTP 400: no log-probabilities")],
)
def test_a_judge_that_cannot_be_used_fails_both_that_it_leads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None, reason: str
) -> None:
    """None of the best-of-n's samples is the best one, and the tree's 0 % would be no accuracy."""
    monkeypatch.setitem(UNUSABLE, "easy", fault)
    code, output, _ = run("--out", tmp_path / "out")
    systems = read_report(tmp_path / "out")["systems"]
    assert code == 3 and {name: result["failed"] for name, result in systems.items()} == {
        "greedy": 0, "samples": 1, "tree": 1,
    }  # fmt: skip
    assert all(reason in next(iter(systems[name]["errors"])) for name in ("samples", "tree"))
    assert all(f"{name} failed at 1 of 3 questions" in output for name in ("samples", "tree"))
    monkeypatch.delitem(UNUSABLE, "easy")
    assert run("--out", tmp_path / "out")[0] == 0, "failed questions are retried"


async def test_one_judgement_that_can_be_used_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample without one is the last choice, and ends its branch in a tree."""

    class Doubting(Policy):
        async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
            if kwargs["role"] == "judge" and "/0/judge" in kwargs["key"]:
                return Reply("Perhaps", "stop", 1, 1)
            return await super().complete(messages, **kwargs)

    model = Doubting(author=lambda told, key, seed: rf"good \boxed{{{key[-1]}}}", calls=[])
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    record = {"question": "What is 1 + 1?", "answer": "1"}
    result = await maths_samples.graph.ainvoke(record, context=maths_samples.SamplesContext(samples=2))
    assert [solution["score"] for solution in result["solutions"]] == [-1.0, 1.0] and best(result["solutions"])
    context = maths.Context(value="judge", width=2, depth=1, simulations=2)
    result = await maths.graph.ainvoke(record, context=context)
    assert [solution["call"] for solution in result["solutions"]] == ["root/1"] and result["right"]


async def test_without_anything_to_judge_an_answer_is_wrong_and_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Policy(author=lambda told, key, seed: "on and on without an end", calls=[])
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    record = {"question": "What is 1 + 1?", "answer": "2"}
    few = {"solution_tokens": 10}
    result = await maths_samples.graph.ainvoke(record, context=maths_samples.SamplesContext(samples=2, **few))
    assert len(result["solutions"]) == 2 and not best(result["solutions"])
    result = await maths.graph.ainvoke(record, context=maths.Context(value="judge", width=2, depth=1, **few))
    assert result["solutions"] == [] and result["dropped"] == "no pair: no solution came to its end"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--systems", "greedy,forest"), "there is no 'forest'; there are greedy, samples, tree, beam, dvts"),
        (("--budget", 0), "--budget 0: at least 1 is needed"),
        (("--samples", 0), "samples: 0 is below 1"),
        (("--depth", 0), "depth: 0 is below 1"),
        (
            ("--model", f"{MODEL}?temperature=0.8"),
            "--model: temperature cannot be set here, the roles set it; remove temperature=0.8 from the spec",
        ),
        (("--judge-model", "?top_p=0.9&max_tokens=5"), "--judge-model: max_tokens cannot be set here"),
        (("--trained-on", "nowhere"), "--trained-on nowhere: no traces there"),
        (("--field", "question=text", "--limit", 1), "no question to use: no question: a record needs"),
    ],
)
def test_what_is_refused(run: Run, tmp_path: Path, options: Sequence[object], line: str) -> None:
    code, _, error = run("--out", tmp_path / "out", *options)
    assert code == 2 and line in one_error(error)
    assert not (tmp_path / "out").exists()


def test_questions_that_a_model_was_trained_on_are_refused(run: Run, tmp_path: Path) -> None:
    """By their words, in GSM8K's field or MATH's; signs count, ids do not."""
    context = maths.Context(model=MODEL, simulations=1, depth=2)
    for name, row in {
        "same": {"id": "z", "problem": "What is 1  + 1?", "answer": "2"},
        "other": {"id": "easy", "question": "What is 1 1?", "answer": "2"},
    }.items():
        write_lines(tmp_path / f"{name}.jsonl", [row])
    QUESTIONS.append({"id": "q", "question": "What is 1 1?"})  # what the policy may be asked
    QUESTIONS.append({"id": "easy", "question": "What is 1  + 1?"})
    try:
        for name in ("same", "other"):
            collect(
                maths.graph,
                tmp_path / f"{name}.jsonl",
                tmp_path / name,
                context=context,
                options=RunOptions(no_cache=True),
            )
    finally:
        del QUESTIONS[-2:]
    code, _, error = run("--out", tmp_path / "out", "--trained-on", tmp_path / "same")
    assert code == 2 and "1 of 3 are also in" in one_error(error)
    code, output, error = run("--out", tmp_path / "out", "--trained-on", tmp_path / "other", "--systems", "greedy")
    assert code == 0, error
    assert "not checked" not in output


def test_bad_questions_are_counted(run: Run, tmp_path: Path) -> None:
    rows = [*QUESTIONS, {"id": "x", "question": "Why?"}, {"id": "easy", "question": "What is 1 + 1?", "answer": "3"}]
    mixed = write_lines(tmp_path / "mixed.jsonl", rows)
    code, output, _ = run("--questions", mixed, "--out", tmp_path / "out", "--systems", "greedy")
    assert code == 3 and "mixed.jsonl:4: no right answer" in output and "two questions have the id easy" in output
    assert read_report(tmp_path / "out")["questions"] == 3
    write_lines(tmp_path / "dev.jsonl", [{"id": "easy", "question": "What is 1 + 1?", "answer": "3"}])
    code, _, error = run("--out", tmp_path / "out", "--systems", "greedy")
    assert code == 2 and "question easy differs" in one_error(error)


async def test_a_solution_that_was_cut_off_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """So far it may be all right, as the judge is asked; tree search cannot choose it either."""

    def author(told: str, key: str, seed: int) -> str:
        return "a good beginning without an end" if key == "sample/0" else r"\boxed{2}"

    model = Policy(author=author, calls=[])
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    record = {"question": "What is 1 + 1?", "answer": "2"}
    context = maths_samples.SamplesContext(samples=2, solution_tokens=20)
    result = await maths_samples.graph.ainvoke(record, context=context)
    assert [(solution["right"], solution["answer"], solution["tokens"]) for solution in result["solutions"]] == [
        (False, "", 20), (True, "2", 31),
    ]  # fmt: skip
    assert best(result["solutions"]) and [key for key, _, _ in model.calls if "judge" in key] == ["sample/1/judge"]


async def test_the_greedy_solution_is_the_solvers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own model, and its own prompt, at temperature 0."""
    specs: list[str] = []
    model = Policy(author=lambda told, key, seed: r"\boxed{2}", calls=[])
    monkeypatch.setattr("agentsys.systems.load_model", lambda spec, **settings: specs.append(spec) or model)
    record = {"question": "What is 1 + 1?", "answer": "2"}
    context = maths_samples.SamplesContext(
        greedy=True, samples=1, solver_model="mine", solver_prompt="# user\n{{ question }}"
    )
    result = await maths_samples.graph.ainvoke(record, context=context)
    assert result["solutions"][0]["right"] and specs == ["mine"]
    assert [shown for _, _, shown in model.calls] == ["What is 1 + 1?"]


async def test_an_empty_solution_counts_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does a judgement that could not be used: at equal tokens means at equal tokens written."""

    class Wasting(Policy):
        async def complete(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Reply:
            reply = await super().complete(messages, **kwargs)
            if kwargs["role"] == "judge":
                return Reply("Perhaps", "stop", 1, 5) if "/0/judge" in kwargs["key"] else reply
            return replace(reply, text=" ", completion_tokens=300) if int(kwargs["key"][-1]) % 2 else reply

    model = Wasting(author=lambda told, key, seed: r"so \boxed{2}", calls=[])
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    record = {"question": "What is 1 + 1?", "answer": "2"}
    result = await maths_samples.graph.ainvoke(record, context=maths_samples.SamplesContext(samples=4, budget=1000))
    tokens = [solution["tokens"] for solution in result["solutions"]]
    solution, doubted = len(r"so \boxed{2}") + 1, 3 * 5
    assert tokens[:3] == [solution + doubted, solution + doubted + 300, 2 * solution + doubted + 300 + 1]
    assert 1000 <= tokens[-1] < 1700 and len(tokens) < 10


async def test_an_empty_solution_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Policy(author=lambda told, key, seed: " ", calls=[])
    monkeypatch.setattr("agentsys.systems.load_model", lambda *spec, **settings: model)
    record = {"question": "What is 1 + 1?", "answer": "2"}
    result = await maths_samples.graph.ainvoke(record, context=maths_samples.SamplesContext(samples=2))
    assert [(solution["right"], solution["score"], solution["how"]) for solution in result["solutions"]] == [
        (False, -1, "empty")
    ] * 2
