"""What the evaluation of stepwise maths measures of the solutions that were found, and how it is shown.

At equal tokens: a system's solutions come in an order, each with the completion tokens that were written when it was
there (judgements and what was written in vain included). Under a budget B those up to B count, and no others, for
best-of-n and for tree search alike. Of these the answer is `best`, that of the solution with the greatest score, or
`vote`, that of most solutions; `any` is whether one of them is right, which no system without the reference can know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from agentsys.evaluation.run import seconds_of
from agentsys.graphs.maths.search import Find
from agentsys.metrics.corpus import mean_with_interval
from agentsys.traces import Trace

Finds = Sequence[Find]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a system found for one question; `error` says why nothing, which counts as wrong.

    `tokens` and `prompt_tokens` are of all calls; `seconds` is None where calls came from the request cache.
    """

    finds: Finds = ()
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float | None = None
    error: str | None = None


def prediction_of(trace: Trace) -> Prediction:
    """What a trace of graphs/maths/search.py or graphs/maths/samples.py says."""
    return Prediction(
        finds=(trace.result or {}).get("finds", ()),
        tokens=sum(call.completion_tokens for call in trace.calls),
        prompt_tokens=sum(call.prompt_tokens for call in trace.calls),
        seconds=seconds_of(trace),
        error=trace.reason if trace.result is None else None,
    )


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n samples hold a right one, without bias: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021).

    Raises ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples with {right} right: needs 0 <= right <= n and 1 <= k <= n")
    return 1 - comb(n - right, k) / comb(n, k)


def best(finds: Finds) -> bool:
    """Whether the answer with the greatest score is right; of equals the first, one without an answer last."""
    return bool(finds) and max(finds, key=lambda find: (find["score"], bool(find["answer"])))["right"]


def vote(finds: Finds) -> bool:
    """Whether the answer that most solutions give is right; of equals the one that was found first."""
    votes = Counter(find["group"] for find in finds if find["answer"])
    if not votes:
        return False
    chosen = votes.most_common(1)[0][0]
    return next(find["right"] for find in finds if find["group"] == chosen)


def covered(finds: Finds) -> bool:
    """Whether any solution is right."""
    return any(find["right"] for find in finds)


CHOICES: Final[Mapping[str, Callable[[Finds], bool]]] = {"best": best, "vote": vote, "any": covered}


def within(finds: Finds, budget: int) -> Finds:
    """The solutions that were there when so many tokens had been written."""
    return [find for find in finds if find["tokens"] <= budget]


def budgets_of(greatest: int) -> list[int]:
    """A sixteenth, an eighth, ... of the greatest budget, and it."""
    return sorted({max(1, greatest // part) for part in (1, 2, 4, 8, 16)})


def score(values: Sequence[float]) -> dict[str, float]:
    """Their mean in percent with its 95 % bootstrap interval over questions."""
    return asdict(mean_with_interval([100.0 * value for value in values]))


def measure(predictions: Sequence[Prediction], samples: int, budgets: Sequence[int]) -> dict[str, Any]:
    """The measures of one system. `samples` is n of majority@n and pass@k, 0 where it took none; `budgets` of `at`."""
    answered = [prediction for prediction in predictions if prediction.error is None]
    seconds = [prediction.seconds for prediction in answered if prediction.seconds is not None]
    finds = [find for prediction in answered for find in prediction.finds]
    found: dict[str, Any] = {
        "n": len(predictions),
        "failed": len(predictions) - len(answered),
        "solutions": fmean([len(prediction.finds) for prediction in answered]) if answered else None,
        "tokens": fmean([prediction.tokens for prediction in answered]) if answered else None,
        "prompt_tokens": fmean([prediction.prompt_tokens for prediction in answered]) if answered else None,
        "seconds": fmean(seconds) if seconds else None,
        "compared": dict(Counter(find["how"] for find in finds)),
    }
    if samples:
        first = [prediction.finds[:samples] for prediction in predictions]
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < samples] + [samples]
        found["majority"] = score([vote(one) for one in first])
        found["pass"] = {
            str(k): score([pass_at_k(len(one), sum(find["right"] for find in one), k) if one else 0.0 for one in first])
            for k in ks
        }
    if budgets:
        found["at"] = {
            str(budget): {
                name: score([choice(within(prediction.finds, budget)) for prediction in predictions])
                for name, choice in CHOICES.items()
            }
            for budget in budgets
        }
    return found


def difference(one: Sequence[Prediction], other: Sequence[Prediction], budget: int) -> dict[str, dict[str, float]]:
    """For each choice, how much more often the first is right on the same questions, in points with its interval."""
    return {
        name: score(
            [choice(within(a.finds, budget)) - choice(within(b.finds, budget)) for a, b in zip(one, other, strict=True)]
        )
        for name, choice in CHOICES.items()
    }


def tables(systems: Mapping[str, Mapping[str, Any]], samples: int) -> list[Table]:
    """Accuracy with any number of tokens, and at equal tokens."""
    plain = Table("", "right, %", "solutions", "tokens written", "tokens read", "s a question", box=SIMPLE)
    for name, found in systems.items():
        rows = {"greedy": found["pass"]["1"]} if name == "greedy" else {}
        if name == "samples":
            rows = {f"majority@{samples}": found["majority"]}
            rows |= {f"pass@{k}": value for k, value in found["pass"].items()}
        if name == "tree":
            rows = {"tree, best": list(found["at"].values())[-1]["best"]}
        about = [_number(found[cost]) for cost in ("solutions", "tokens", "prompt_tokens", "seconds")]
        for row, value in rows.items():
            plain.add_row(row, _score(value), *about)
    equal = Table("tokens written", title="at equal tokens: right, %", box=SIMPLE)
    shown = {name: found["at"] for name, found in systems.items() if "at" in found}
    for name in shown:
        for choice in CHOICES:
            equal.add_column(f"{_LABELS[name]}\n{choice}")
    for budget in next(iter(shown.values()), {}):
        equal.add_row(f"{int(budget):,}", *(_score(at[budget][choice]) for at in shown.values() for choice in CHOICES))
    return [plain, equal] if shown else [plain]


_LABELS: Final = {"samples": "best-of-n", "tree": "tree search"}


def _score(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f}-{value['high']:.1f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def plot(systems: Mapping[str, Mapping[str, Any]], title: str, file: Path) -> None:
    """Accuracy against completion tokens a question; the band is the 95 % interval of `best`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for color, (name, found) in enumerate(systems.items()):
        if name == "greedy" and found["tokens"] is not None:
            axes.plot(found["tokens"], found["pass"]["1"]["value"], "ks", label="greedy")
        if "at" not in found:
            continue
        x = [int(budget) for budget in found["at"]]
        for choice, style in zip(CHOICES, ("-", "--", ":"), strict=True):
            values = [at[choice] for at in found["at"].values()]
            y = [value["value"] for value in values]
            axes.plot(x, y, style, marker=".", color=f"C{color}", label=f"{_LABELS[name]}: {choice}")
            if choice == "best":
                low, high = ([value[end] for value in values] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=f"C{color}", alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("completion tokens a question")
    axes.set_ylabel("right answers, %")
    axes.set_ylim(0, 100)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=120)
