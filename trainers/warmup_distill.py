"""Warmup-Distill: bring the student's distribution towards the teacher's before distilling (Sun et al. 2025).

    python trainers/warmup_distill.py --rows rows/sft --student qwen2.5-coder-0.5b --teacher qwen2.5-coder-1.5b

1. Sample: the student answers the rows' prompts. 2. Score: teacher and student give each token's probability.
3. Check: tokens that the teacher finds too unlikely are flagged (trainers/corrections.py). 4. Correct: the teacher's
token takes their place, and perhaps a model goes on from there. 5. Warm up: DPO with the corrected answer chosen and
the student's own rejected. 6. Distil (--distil) from stored top-k, with and without the warm-up.

The output folder: `warmup.json` (settings), `samples.json`, `pairs/train.parquet`, `warm/` (the DPO run; the warmed
student is `warm/model`), `report.json`; with --distil also `distilled/` and `distilled-without/`. A stage that is there
is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import command, knob, run_app
from agentsys.trainers.corrections import Checked, Edit, Margin, Pick, begun_again, check, flagged, replaced, scores
from agentsys.trainers.distill import COLUMNS, DistillOptions, ScoredOptions
from agentsys.trainers.generate import SamplingOptions, generate
from agentsys.trainers.loading import (
    DType,
    TrainerError,
    load_causal_lm,
    load_tokenizer,
    tokenizer_digest,
    vocabulary_difference,
)
from agentsys.trainers.training import (
    RowOptions,
    StudentOptions,
    TrainingOptions,
    memory_errors,
    read_rows,
    refuse_changes,
    say,
    write_settings,
)

if TYPE_CHECKING:
    from agentsys.trainers.scorers import ModelScorer, Scorer

Ids = list[int]


@dataclass(frozen=True)
class WarmupOptions:
    """The check, the correction and the warm-up. The paper does not tell its values; the defaults are ours."""

    panel: ClassVar[str] = "Warm-up"
    teacher: str = knob("qwen2.5-coder-1.5b", "folder, catalogue name or hub name; must share the student's tokenizer")
    teacher_dtype: DType = knob("float32", "of the teacher's weights: float32 or bfloat16")
    prompts: int = knob(512, "prompts to sample from, the first so many training rows")
    held_out: int = knob(64, "validation rows that the report is measured on")
    margin: Margin = knob("teacher_prob", "what makes a token bad")
    eta: float = knob(0.05, "threshold of the margin, a probability")
    edit: Edit = knob("replace_and_teacher_continue", "what happens after a flagged token")
    pick: Pick = knob("argmax", "the teacher's token for its place")
    max_edits: int = knob(8, "flagged tokens to replace in one answer at most")
    candidates: int = knob(16, "the teacher's tokens that --pick sample draws from")
    warm_beta: float = knob(0.1, "beta of the warm-up's DPO")
    warm_learning_rate: float = knob(1e-6, "peak learning rate of the warm-up")
    warm_epochs: float = knob(1.0, "passes over the pairs")
    distil: Path | None = knob(None, "scored rows: distil on them, with and without the warm-up")
    distil_validation: Path | None = knob(None, "scored validation rows")

    def __post_init__(self) -> None:
        """Raises TrainerError for a threshold that is no probability."""
        if not 0 < self.eta < 1:
            raise TrainerError(f"--eta {self.eta:g}: give a probability between 0 and 1")
        if self.candidates < 2 or self.max_edits < 1:
            raise TrainerError("--candidates is at least 2, --max-edits at least 1")


class Warmup:
    """One warm-up: its models, its prompts, its folder."""

    def __init__(
        self, rows: RowOptions, student: StudentOptions, warm: WarmupOptions, sampling: SamplingOptions,
        training: TrainingOptions,
    ) -> None:  # fmt: skip
        """Raises TrainerError where the tokenizers differ, rows are missing, or --out holds another warm-up."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrainerError("a warm-up is one process; train on its pairs/ with step_dpo.py to use several")
        self.rows, self.student, self.warm, self.sampling, self.training = rows, student, warm, sampling, training
        self.tokenizer = load_tokenizer(student.student)
        if reason := vocabulary_difference(self.tokenizer, load_tokenizer(warm.teacher)):
            raise TrainerError(f"--teacher {warm.teacher}: {reason}")
        splits = read_rows(rows.rows, COLUMNS, self.tokenizer)
        self.prompts = _prompts(splits["train"], warm.prompts, rows.max_length)
        if "validation" not in splits:
            raise TrainerError(f"{rows.rows} has no validation.parquet; the report needs held-out prompts")
        self.held_out = _prompts(splits["validation"], warm.held_out, rows.max_length)
        self.out = training.out
        self._check_settings()

    def _check_settings(self) -> None:
        """Stages that are there must have been made as they would be made now."""
        parts = {"student": asdict(self.student), "warm-up": asdict(self.warm), "sampling": asdict(self.sampling)}
        settings = {f"{part}: {n}": str(v) for part, group in parts.items() for n, v in group.items()}
        settings |= {"rows": str(self.rows.rows), "prompts": _digest(self.prompts), "held_out": _digest(self.held_out)}
        settings = {name: v for name, v in settings.items() if "distil" not in name} | {"seed": str(self.training.seed)}
        file = self.out / "warmup.json"
        if file.exists():
            refuse_changes(file, settings, "name another --out for another warm-up")
        write_settings(file, settings)

    def samples(self) -> list[tuple[Ids, Ids]]:
        """Stage 1: the student's answer y to each prompt x."""
        file = self.out / "samples.json"
        if not file.exists():
            say(f"the student answers {len(self.prompts)} prompts")
            answers = self._generate(self.student.student, self.prompts)
            write_settings(file, {"answers": answers})
        answers = json.loads(file.read_text(encoding="utf-8"))["answers"]
        return [(x, y) for x, y in zip(self.prompts, answers, strict=True) if y]

    def pairs(self) -> Path:
        """Stages 2 to 4: corrected (chosen) and sampled (rejected) answers as rows of kind step."""
        folder = self.out / "pairs"
        if not (folder / "train.parquet").exists():
            samples = self.samples()
            say(f"teacher and student score {len(samples)} answers")
            checked = check(samples, self._scorer(self.warm.teacher), self._scorer(self.student.student))
            prompts = [x for x, _ in samples]
            chosen = self.corrected(prompts, checked)
            self._write(folder, prompts, checked, chosen)
        return folder

    def corrected(self, prompts: Sequence[Ids], checked: Sequence[Checked]) -> list[Ids]:
        """Stage 4: y+ for each answer; equal to y where no token is flagged."""
        import numpy as np

        warm = self.warm
        rng = np.random.default_rng(self.training.seed)
        places = [np.flatnonzero(flagged(c, warm.margin, warm.eta))[: warm.max_edits].tolist() for c in checked]
        if warm.edit == "replace_token":
            return [replaced(c, where, warm.pick, rng) for c, where in zip(checked, places, strict=True)]
        if warm.edit == "replace_and_teacher_continue":
            begun = [begun_again(c, w[0], warm.pick, rng) if w else None for c, w in zip(checked, places, strict=True)]
            return self._continued(warm.teacher, prompts, checked, begun)
        return self._student_continues(prompts, checked, rng)

    def _student_continues(self, prompts: Sequence[Ids], checked: Sequence[Checked], rng: Any) -> list[Ids]:
        """One edit after another: the student goes on after each, and what it wrote is checked again."""
        now, from_place = list(checked), [0] * len(checked)
        for _ in range(self.warm.max_edits):
            begun: list[Ids | None] = []
            for i, c in enumerate(now):
                bad = [t for t in flagged(c, self.warm.margin, self.warm.eta).nonzero()[0] if t >= from_place[i]]
                begun.append(begun_again(c, int(bad[0]), self.warm.pick, rng) if bad else None)
                from_place[i] = int(bad[0]) + 1 if bad else from_place[i]
            if not any(begun):
                break
            answers = self._continued(self.student.student, prompts, now, begun)
            again = [i for i, start in enumerate(begun) if start]
            scored = check(
                [(prompts[i], answers[i]) for i in again],
                self._scorer(self.warm.teacher),
                self._scorer(self.student.student),
            )
            for i, c in zip(again, scored, strict=True):
                now[i] = c
        return [c.ids for c in now]

    def _continued(
        self, model: str, prompts: Sequence[Ids], checked: Sequence[Checked], begun: Sequence[Ids | None]
    ) -> list[Ids]:
        """Each begun answer as a model ends it; the others as they were."""
        todo = [i for i, start in enumerate(begun) if start]
        answers = [c.ids for c in checked]
        starts = {i: begun[i] or [] for i in todo}
        open_ones = [i for i in todo if starts[i][-1] != self.tokenizer.eos_token_id]
        for i in todo:
            answers[i] = starts[i]
        written = self._generate(model, [prompts[i] + starts[i] for i in open_ones])
        for i, rest in zip(open_ones, written, strict=True):
            answers[i] = (starts[i] + rest)[: self.sampling.answer_tokens]
        return answers

    def _write(self, folder: Path, prompts: Sequence[Ids], checked: Sequence[Checked], chosen: Sequence[Ids]) -> None:
        """Pairs with y+ != y-. Raises TrainerError if there are none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from agentsys.trainers.rows import row_schema

        digest, warm = tokenizer_digest(self.tokenizer), self.warm
        about = {"student": self.student.student, "teacher": warm.teacher, "margin": warm.margin, "eta": warm.eta,
                 "edit": warm.edit, "pick": warm.pick}  # fmt: skip
        rows = [
            {
                "id": f"warmup#{i}", "kind": "step", "source": str(self.rows.rows), "input": _digest([x]),
                "prompt": self.tokenizer.decode(x), "text": self.tokenizer.decode(y), "ids_source": "corrected",
                "rejected": self.tokenizer.decode(c.ids), "prompt_ids": x, "chosen_ids": y, "rejected_ids": c.ids,
                "margin": float(flagged(c, warm.margin, warm.eta).sum()), "lineage": json.dumps(about),
                "scores": json.dumps({"teacher_logprob": c.log_p.sum(), "student_logprob": c.log_q.sum()}),
            }
            for i, (x, y, c) in enumerate(zip(prompts, chosen, checked, strict=True)) if y != c.ids
        ]  # fmt: skip
        say(f"{len(rows)} of {len(prompts)} answers have a token to correct")
        if not rows:
            raise TrainerError(f"no answer has a token below --eta {warm.eta:g}: raise it, or sample more prompts")
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".train.parquet.part"
        pq.write_table(pa.Table.from_pylist(rows, row_schema("step", digest)), part, compression="zstd")
        part.replace(folder / "train.parquet")

    def warmed(self) -> Path:
        """Stage 5: DPO on the pairs; the folder of the warmed student."""
        from agentsys.trainers.step_dpo import DPOOptions, DPOTraining, PairOptions
        from agentsys.trainers.step_dpo import train as train_pairs

        model = self.out / "warm" / "model"
        if not (model / "config.json").exists():
            pairs = PairOptions(rows=self.pairs(), max_length=self.rows.max_length, too_long=self.rows.too_long)
            settings = {item.name: getattr(self.training, item.name) for item in fields(self.training)}
            settings |= {"out": self.out / "warm", "learning_rate": self.warm.warm_learning_rate, "steps": -1}
            settings |= {"epochs": self.warm.warm_epochs, "set": (), "resume": _begun(self.out / "warm")}
            train_pairs(pairs, self.student, DPOOptions(beta=self.warm.warm_beta), DPOTraining(**settings))
        return model

    def report(self, student: str) -> dict[str, float]:
        """What the paper claims of a student: how likely its samples are to the teacher, and KL(teacher, student).

        `teacher_logprob` is the teacher's mean log-probability of a token of the student's own answers to held-out
        prompts; `kl` the mean KL(teacher, student) over the tokens of the teacher's answers to them, in nats.
        """
        answers = self._generate(student, self.held_out)
        samples = [(x, y) for x, y in zip(self.held_out, answers, strict=True) if y]
        return {
            "teacher_logprob": teacher_logprob(samples, self._scorer(self.warm.teacher)),
            "kl": mean_kl(self._reference(), student, self._scorer(self.warm.teacher, k=32)),
        }

    def _reference(self) -> list[tuple[Ids, Ids]]:
        """The teacher's own answers to the held-out prompts: the same text for every student."""
        file = self.out / "held_out.json"
        if not file.exists():
            write_settings(file, {"answers": self._generate(self.warm.teacher, self.held_out)})
        answers = json.loads(file.read_text(encoding="utf-8"))["answers"]
        return [(x, y) for x, y in zip(self.held_out, answers, strict=True) if y]

    def _generate(self, name: str, prompts: Sequence[Ids]) -> list[Ids]:
        import torch

        if not prompts:
            return []
        model: Any = load_causal_lm(name, self._dtype(name))
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return generate(model, self.tokenizer, prompts, self.sampling, self.training.seed)

    def _scorer(self, name: str, k: int = 0) -> ModelScorer:
        from agentsys.trainers.scorers import ModelScorer

        return ModelScorer(name, k=k or self.warm.candidates, dtype=self._dtype(name), batch_tokens=4096)

    def _dtype(self, name: str) -> DType:
        return self.warm.teacher_dtype if name == self.warm.teacher else self.student.dtype


def teacher_logprob(samples: Sequence[tuple[Ids, Ids]], teacher: Scorer) -> float:
    """Mean over all tokens of the teacher's log-probability of the samples, in nats."""
    import numpy as np

    return float(np.concatenate([score.token_logprob for score in scores(samples, teacher)]).astype(float).mean())


def mean_kl(answers: Sequence[tuple[Ids, Ids]], student: str, teacher: Scorer) -> float:
    """Mean KL(teacher, student) over the tokens of answers, in nats, on the teacher's top k and the rest."""
    import torch

    from agentsys.trainers.losses import Divergence, divergence_from_topk

    total, count = 0.0, 0
    stored = scores(answers, teacher)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_causal_lm(student)
    model.eval().to(device)
    for (x, y), score in zip(answers, stored, strict=True):
        with torch.inference_mode():
            states = model.base_model(input_ids=torch.tensor([x + y], device=device), use_cache=False).last_hidden_state
            found = divergence_from_topk(
                states[0, len(x) - 1 : -1],
                model.get_output_embeddings().weight,
                torch.tensor(score.ids, device=device),
                torch.tensor(score.logprobs, device=device),
                torch.tensor(score.tail, device=device),
                Divergence("forward_kl"),
            )
        total, count = total + float(found.divergence), count + len(y)
    return total / count


def _prompts(rows: Any, count: int, longest: int) -> list[Ids]:
    """What stands before the first learned token, for the first rows whose prompt is short enough."""
    found: list[Ids] = []
    for row in rows.select_columns(["input_ids", "loss_mask"]):
        prompt = row["input_ids"][: row["loss_mask"].index(1)] if 1 in row["loss_mask"] else []
        if prompt and len(prompt) <= longest:
            found.append(prompt)
        if len(found) == count:
            break
    return found


def _digest(prompts: Sequence[Ids]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


def _begun(folder: Path) -> bool:
    from agentsys.trainers.training import last_checkpoint

    return last_checkpoint(folder) is not None


def distil_both(
    warmup: Warmup, warmed: Path, distill: DistillOptions, training: TrainingOptions
) -> dict[str, dict[str, float]]:
    """Stage 6: the same distillation from the warmed student and from the one before; validation metrics of both."""
    from agentsys.trainers.distill import train

    scored = ScoredOptions(
        rows=warmup.warm.distil or Path(),
        validation=warmup.warm.distil_validation,
        max_length=warmup.rows.max_length,
        too_long=warmup.rows.too_long,
    )
    starts = {"distilled": str(warmed), "distilled-without": warmup.student.student}
    found = {}
    for name, start in starts.items():
        out = training.out / name
        settings = replace(training, out=out, resume=_begun(out))
        found[name] = train(scored, replace(warmup.student, student=start), distill, settings)
    return found


def main(
    rows: RowOptions,
    student: StudentOptions,
    warm: WarmupOptions,
    sampling: SamplingOptions,
    distill: DistillOptions,
    training: TrainingOptions,
) -> None:
    """Warm a student up on its own corrected answers, and report what that does to its distance from the teacher."""
    warmup = Warmup(rows, student, warm, sampling, training)
    with memory_errors(training):
        warmed = warmup.warmed()
        report: dict[str, Any] = {"before": warmup.report(student.student), "after": warmup.report(str(warmed))}
        if warm.distil:
            report |= distil_both(warmup, warmed, distill, training)
    (training.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print_report(report, print)


def print_report(report: dict[str, dict[str, float]], show: Callable[[str], None]) -> None:
    """One line a measure."""
    for name, values in report.items():
        show(f"{name}: " + ", ".join(f"{measure} {value:.4f}" for measure, value in values.items()))


if __name__ == "__main__":
    raise SystemExit(run_app(command(main)))
