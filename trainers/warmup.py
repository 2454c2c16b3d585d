"""The stages of Warmup-Distill: sample, score, check, correct, DPO, and a report on held-out prompts.

trainers/warmup_distill.py is the command and describes the output folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from agentsys.commands import knob
from agentsys.config import save_config, without_config
from agentsys.trainers.corrections import (
    CheckedSample,
    Edit,
    Margin,
    Pick,
    check_samples,
    flag_tokens,
    replace_and_truncate,
    replace_tokens,
    score_answers,
)
from agentsys.trainers.dpo import DPOOptions, DPOTraining, PairOptions, train_dpo
from agentsys.trainers.generate import SamplingOptions, generate
from agentsys.trainers.loading import (
    DType,
    TrainerError,
    load_causal_lm,
    load_tokenizer,
    tokenizer_digest,
    vocabulary_difference,
)
from agentsys.trainers.output import check_folder, last_checkpoint, refuse_changes, write_settings
from agentsys.trainers.processes import count_processes, print_once
from agentsys.trainers.row_files import TEXT_COLUMNS, Needs, RowOptions, find_row_files, read_rows, row_schema
from agentsys.trainers.training import StudentOptions, TrainingOptions

if TYPE_CHECKING:
    from agentsys.trainers.scorers import ModelScorer, Scorer

NEEDS = Needs("warmup-distill", TEXT_COLUMNS, ("sft", "role"))

Ids = list[int]


@dataclass(frozen=True)
class WarmupOptions:
    """Check, correction and warm-up. The paper's values are not known; the defaults are ours."""

    panel: ClassVar[str] = "Warm-up"
    teacher: str = knob("qwen2.5-coder-1.5b", "folder, catalog name or hub name; must share the student's tokenizer")
    teacher_dtype: DType = knob("float32", "type of the teacher's weights: float32 or bfloat16")
    prompts: int = knob(512, "number of prompts, from the first training rows")
    held_out: int = knob(64, "number of validation prompts for the report")
    margin: Margin = knob("teacher_prob", "criterion for flagging a token (trainers/corrections.py)")
    eta: float = knob(0.05, "threshold of the margin, a probability (0-1)")
    edit: Edit = knob("replace_and_teacher_continue", "what follows a flagged token")
    pick: Pick = knob("argmax", "which token of the teacher replaces a flagged one")
    max_edits: int = knob(8, "maximum number of tokens to replace per answer")
    candidates: int = knob(16, "number of the teacher's tokens that --pick sample draws from")
    warm_beta: float = knob(0.1, "beta of DPO in the warm-up")
    warm_learning_rate: float = knob(1e-6, "peak learning rate of the warm-up")
    warm_epochs: float = knob(1.0, "passes over the pairs")
    distill: Path | None = knob(None, "scored rows: distill on them, with and without the warm-up", old_name="distil")
    distill_validation: Path | None = knob(None, "scored validation rows", old_name="distil_validation")

    def __post_init__(self) -> None:
        """Raises TrainerError for numbers out of range."""
        if not 0 < self.eta < 1:
            raise TrainerError(f"--eta {self.eta:g}: give a probability between 0 and 1")
        if self.candidates < 2 or self.max_edits < 1:
            raise TrainerError("--candidates must be at least 2, --max-edits at least 1")


class Warmup:
    """One warm-up: its models, its prompts, its folder."""

    def __init__(
        self, rows: RowOptions, student: StudentOptions, warm: WarmupOptions, sampling: SamplingOptions,
        training: TrainingOptions,
    ) -> None:  # fmt: skip
        """Raises TrainerError for different tokenizers, missing rows, or another warm-up in --out."""
        if count_processes() > 1:
            raise TrainerError("a warm-up runs in one process; use step_dpo.py on its pairs/ for several")
        self.rows, self.student, self.warm, self.sampling, self.training = rows, student, warm, sampling, training
        if "validation" not in find_row_files(rows.rows, NEEDS):
            raise TrainerError(f"{rows.rows} has no validation.parquet; the report needs held-out prompts")
        check_folder(training.out)
        self.tokenizer = load_tokenizer(student.student)
        if reason := vocabulary_difference(self.tokenizer, load_tokenizer(warm.teacher)):
            raise TrainerError(f"--teacher {warm.teacher}: {reason}")
        splits = read_rows(rows.rows, NEEDS, self.tokenizer)
        self.prompts = _prompts(splits["train"], warm.prompts, rows.max_length)
        self.held_out = _prompts(splits["validation"], warm.held_out, rows.max_length)
        self.out = training.out
        self._check_settings()

    def _check_settings(self) -> None:
        """Raises TrainerError if --out was made with other settings."""
        parts = {"student": asdict(self.student), "warm-up": asdict(self.warm), "sampling": asdict(self.sampling)}
        settings = {f"{part}: {n}": str(v) for part, group in parts.items() for n, v in group.items()}
        settings |= {"rows": str(self.rows.rows), "prompts": _digest(self.prompts), "held_out": _digest(self.held_out)}
        settings = {name: value for name, value in settings.items() if "distill" not in name}
        settings["seed"] = str(self.training.seed)
        file = self.out / "warmup.json"
        if file.exists():
            refuse_changes(file, settings, "give another --out for another warm-up")
        write_settings(file, settings)
        save_config(self.out)

    def sample_answers(self) -> list[tuple[Ids, Ids]]:
        """Stage 1: pairs of a prompt x and the student's answer y."""
        file = self.out / "samples.json"
        if not file.exists():
            print_once(f"the student answers {len(self.prompts)} prompts")
            answers = self._generate(self.student.student, self.prompts)
            write_settings(file, {"answers": answers})
        answers = json.loads(file.read_text(encoding="utf-8"))["answers"]
        return [(x, y) for x, y in zip(self.prompts, answers, strict=True) if y]

    def make_pairs(self) -> Path:
        """Stages 2 to 4: rows of kind step with the corrected answer as chosen, the sampled one as rejected."""
        folder = self.out / "pairs"
        if not (folder / "train.parquet").exists():
            samples = self.sample_answers()
            print_once(f"teacher and student score {len(samples)} answers")
            checked = check_samples(samples, self._scorer(self.warm.teacher), self._scorer(self.student.student))
            prompts = [x for x, _ in samples]
            chosen = self.correct(prompts, checked)
            self._write_pairs(folder, prompts, checked, chosen)
        return folder

    def correct(self, prompts: Sequence[Ids], checked: Sequence[CheckedSample]) -> list[Ids]:
        """Stage 4: y+ for each answer; equal to y where no token is flagged."""
        import numpy as np

        warm = self.warm
        rng = np.random.default_rng(self.training.seed)
        places = [np.flatnonzero(flag_tokens(c, warm.margin, warm.eta))[: warm.max_edits].tolist() for c in checked]
        if warm.edit == "replace_token":
            return [replace_tokens(c, where, warm.pick, rng) for c, where in zip(checked, places, strict=True)]
        if warm.edit == "replace_and_teacher_continue":
            starts = [
                replace_and_truncate(c, where[0], warm.pick, rng) if where else None
                for c, where in zip(checked, places, strict=True)
            ]
            return self._complete(warm.teacher, prompts, checked, starts)
        return self._student_continues(prompts, checked, rng)

    def _student_continues(self, prompts: Sequence[Ids], checked: Sequence[CheckedSample], rng: Any) -> list[Ids]:
        """Edit token by token: the student continues after each edit, and its continuation is checked again."""
        current, first_place = list(checked), [0] * len(checked)
        for _ in range(self.warm.max_edits):
            starts: list[Ids | None] = []
            for i, c in enumerate(current):
                flagged = flag_tokens(c, self.warm.margin, self.warm.eta).nonzero()[0]
                place = next((int(t) for t in flagged if t >= first_place[i]), None)
                starts.append(None if place is None else replace_and_truncate(c, place, self.warm.pick, rng))
                first_place[i] = first_place[i] if place is None else place + 1
            if not any(starts):
                break
            answers = self._complete(self.student.student, prompts, current, starts)
            edited = [i for i, start in enumerate(starts) if start]
            scored = check_samples(
                [(prompts[i], answers[i]) for i in edited],
                self._scorer(self.warm.teacher),
                self._scorer(self.student.student),
            )
            for i, c in zip(edited, scored, strict=True):
                current[i] = c
        return [c.ids for c in current]

    def _complete(
        self, model: str, prompts: Sequence[Ids], checked: Sequence[CheckedSample], starts: Sequence[Ids | None]
    ) -> list[Ids]:
        """The answers, completed by a model where `starts` gives a new beginning."""
        answers = [start or c.ids for start, c in zip(starts, checked, strict=True)]
        unfinished = [i for i, start in enumerate(starts) if start and start[-1] != self.tokenizer.eos_token_id]
        continuations = self._generate(model, [prompts[i] + answers[i] for i in unfinished])
        for i, continuation in zip(unfinished, continuations, strict=True):
            answers[i] = (answers[i] + continuation)[: self.sampling.answer_tokens]
        return answers

    def _write_pairs(
        self, folder: Path, prompts: Sequence[Ids], checked: Sequence[CheckedSample], chosen: Sequence[Ids]
    ) -> None:
        """Write the pairs with y+ != y-. Raises TrainerError if there are none."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        digest, warm = tokenizer_digest(self.tokenizer), self.warm
        lineage = {"student": self.student.student, "teacher": warm.teacher, "margin": warm.margin, "eta": warm.eta,
                 "edit": warm.edit, "pick": warm.pick}  # fmt: skip
        rows = [
            {
                "id": f"warmup#{i}", "kind": "step", "source": str(self.rows.rows), "input": _digest([x]),
                "prompt": self.tokenizer.decode(x), "text": self.tokenizer.decode(y), "ids_source": "corrected",
                "rejected": self.tokenizer.decode(c.ids), "prompt_ids": x, "chosen_ids": y, "rejected_ids": c.ids,
                "margin": float(flag_tokens(c, warm.margin, warm.eta).sum()), "lineage": json.dumps(lineage),
                "scores": json.dumps({"teacher_logprob": c.log_p.sum(), "student_logprob": c.log_q.sum()}),
            }
            for i, (x, y, c) in enumerate(zip(prompts, chosen, checked, strict=True)) if y != c.ids
        ]  # fmt: skip
        print_once(f"{len(rows)} of {len(prompts)} answers have a flagged token")
        if not rows:
            raise TrainerError(f"no answer has a token below --eta {warm.eta:g}: raise --eta or --prompts")
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".train.parquet.part"
        pq.write_table(pa.Table.from_pylist(rows, row_schema("step", digest)), part, compression="zstd")
        part.replace(folder / "train.parquet")

    def train_dpo(self) -> Path:
        """Stage 5: DPO on the pairs. Returns the folder of the warmed student."""
        model = self.out / "warm" / "model"
        if not (model / "config.json").exists():
            pairs = PairOptions(rows=self.make_pairs(), max_length=self.rows.max_length, too_long=self.rows.too_long)
            settings = {item.name: getattr(self.training, item.name) for item in fields(self.training)}
            settings |= {"out": self.out / "warm", "learning_rate": self.warm.warm_learning_rate, "steps": -1}
            settings |= {
                "epochs": self.warm.warm_epochs,
                "set": (),
                "resume": last_checkpoint(self.out / "warm") is not None,
            }
            with without_config():
                train_dpo(pairs, self.student, DPOOptions(beta=self.warm.warm_beta), DPOTraining(**settings))
        return model

    def measure(self, student: str) -> dict[str, float]:
        """Measure the paper's claim: how likely a student's samples are under the teacher, and KL(teacher, student).

        `teacher_logprob` is the teacher's mean log-probability per token of the student's answers to the held-out
        prompts; `kl` is the mean KL(teacher, student) per token of the teacher's answers, both in nats.
        """
        answers = self._generate(student, self.held_out)
        samples = [(x, y) for x, y in zip(self.held_out, answers, strict=True) if y]
        return {
            "teacher_logprob": teacher_logprob(samples, self._scorer(self.warm.teacher)),
            "kl": mean_kl(self._teacher_answers(), student, self._scorer(self.warm.teacher, k=32)),
        }

    def _teacher_answers(self) -> list[tuple[Ids, Ids]]:
        """The teacher's answers to the held-out prompts, the same for every student."""
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
    """The teacher's mean log-probability per token of the samples, in nats."""
    import numpy as np

    return float(
        np.concatenate([score.token_logprob for score in score_answers(samples, teacher)]).astype(float).mean()
    )


def mean_kl(answers: Sequence[tuple[Ids, Ids]], student: str, teacher: Scorer) -> float:
    """Mean KL(teacher, student) per token of the answers, in nats, over the teacher's top k and the rest."""
    import torch

    from agentsys.trainers.losses import Divergence, divergence_from_topk

    total, count = 0.0, 0
    stored = score_answers(answers, teacher)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_causal_lm(student)
    model.eval().to(device)
    for (x, y), score in zip(answers, stored, strict=True):
        with torch.inference_mode():
            states = model.base_model(input_ids=torch.tensor([x + y], device=device), use_cache=False).last_hidden_state
            losses = divergence_from_topk(
                states[0, len(x) - 1 : -1],
                model.get_output_embeddings().weight,
                torch.tensor(score.ids, device=device),
                torch.tensor(score.logprobs, device=device),
                torch.tensor(score.tail, device=device),
                Divergence("forward_kl"),
            )
        total, count = total + float(losses.divergence), count + len(y)
    return total / count


def _prompts(rows: Any, count: int, longest: int) -> list[Ids]:
    """The tokens before the first learned one, for the first `count` rows whose prompt is short enough."""
    prompts: list[Ids] = []
    for row in rows.select_columns(["input_ids", "loss_mask"]):
        prompt = row["input_ids"][: row["loss_mask"].index(1)] if 1 in row["loss_mask"] else []
        if prompt and len(prompt) <= longest:
            prompts.append(prompt)
        if len(prompts) == count:
            break
    return prompts


def _digest(prompts: Sequence[Ids]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
