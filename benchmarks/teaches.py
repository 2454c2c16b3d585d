"""Does it teach? A student before and after each kind of training, on data held out by source.

    python benchmarks/teaches.py --data FOLDER --out proof            (all five parts, about an hour on 2 cores)
    python benchmarks/teaches.py --data FOLDER --out proof --part 1 --train 512 --test 400

FOLDER holds drt_metaphortrans/ (with_thoughts.jsonl, pairs.jsonl) and wiki_passages/ (passages.jsonl). Seeds are fixed.
Every part writes proof/<part>/result.json, and is skipped if that file exists. The printed results are read from it.

1  DRT: SFT with thoughts and without, on the published data; BLEU and chrF
2  the same from traces collected here with the default model as teacher
3  distillation from stored top-k against SFT alone, with and without warm-up; validation loss and KL
4  MiniPLM: the part that is kept of a corpus with planted noise and boilerplate; loss on clean text against a random
   selection
5  step-level DPO on drafts of the rounds of part 2; preference accuracy and margin on held-out pairs
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from agentsys.graphs.drt.targets import STUDENT
from agentsys.metrics.corpus import mean_with_interval, score_corpus
from agentsys.traces import Segment, Target, Trace, dump
from agentsys.trainers.generate import SamplingOptions, generate
from agentsys.trainers.loading import load_causal_lm, load_tokenizer
from agentsys.trainers.row_files import RowOptions
from agentsys.trainers.training import StudentOptions, TrainingOptions

LANGUAGES = {"source_language": "English", "target_language": "Chinese"}
SEED = 0


@dataclass(frozen=True)
class Size:
    """Models, and sizes of training and test."""

    student: str
    teacher: str
    train: int
    test: int
    lora: int
    collect: int
    max_length: int
    answer_tokens: int
    corpus: int

    @property
    def options(self) -> StudentOptions:
        """The student with its adapters."""
        return StudentOptions(self.student, self.lora)


def read(file: Path) -> list[dict[str, str]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def prompt(text: str) -> list[Segment]:
    """The prompt of the student."""
    messages = STUDENT.render({"text": text, **LANGUAGES})
    return [Segment(m["role"], False, text=str(m["content"])) for m in messages]


def make_trace(name: str, text: str, answer: str) -> Trace:
    """A trace whose only target is one answer."""
    target = Target("sft", (*prompt(text), Segment("assistant", True, text=answer)))
    return Trace(name, "published", "published", "kept", None, name, {"text": text}, None, [target], [])


def answer_of(record: Mapping[str, str], thought: bool) -> str:
    """The published answer format, with the thought or without."""
    before = f"<thought>\n{record['thought']}\n</thought>\n" if thought else ""
    return f"{before}<output>\n{record['trans']}\n</output>"


def rows_from(traces: Iterable[Trace], folder: Path, size: Size, kind: str = "sft", validation: float = 0.15) -> Path:
    """Write the rows of traces, with a share of the inputs for validation. Returns the folder of the kind."""
    from agentsys.trainers.row_filter import Filters
    from agentsys.trainers.rows import TargetOptions, make_rows, print_report

    run = folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "traces-00000.jsonl").write_bytes(b"".join(dump(trace) for trace in traces))
    options = TargetOptions(size.student, folder / "rows")
    filters = Filters(max_length=size.max_length, validation=validation)
    print_report(make_rows([run], options, filters), folder / "rows")
    return folder / "rows" / kind


def test_pairs(data: Path, size: Size) -> list[dict[str, str]]:
    """Test sentences that are not in the training data."""
    training_texts = {record["text"].casefold() for record in read(data / "drt_metaphortrans" / "with_thoughts.jsonl")}
    pairs = [p for p in read(data / "drt_metaphortrans" / "pairs.jsonl") if p["en"].casefold() not in training_texts]
    return random.Random(SEED).sample(pairs, size.test)


def translate(student: str, pairs: list[dict[str, str]], size: Size, answer_tokens: int) -> list[str]:
    """Translations: the text between <output> tags, or the whole answer without them."""
    tokenizer, model = load_tokenizer(student), load_causal_lm(student, "bfloat16")
    prompts = []
    for pair in pairs:
        messages = [{"role": s.role, "content": s.text} for s in prompt(pair["en"])]
        prompts.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    sampling = SamplingOptions(temperature=0, answer_tokens=answer_tokens, sample_batch=12)
    texts = tokenizer.batch_decode(generate(model, tokenizer, prompts, sampling, SEED), skip_special_tokens=True)
    return [text.partition("<output>")[2].partition("</output>")[0].strip() or text for text in texts]


def quality(student: str, pairs: list[dict[str, str]], size: Size, answer_tokens: int, out: Path) -> dict[str, Any]:
    """BLEU and chrF with 95 % intervals. Writes the translations to translations.json."""
    hypotheses = translate(student, pairs, size, answer_tokens)
    out.mkdir(parents=True, exist_ok=True)
    (out / "translations.json").write_text(json.dumps(hypotheses, ensure_ascii=False, indent=1), encoding="utf-8")
    scores = score_corpus(hypotheses, [pair["zh"] for pair in pairs], language="Chinese")
    return {name: [round(s.value, 2), round(s.low, 2), round(s.high, 2)] for name, s in scores.items()}


def fine_tune(rows: Path, out: Path, size: Size, student: StudentOptions | None = None, epochs: float = 2) -> Path:
    """Run SFT. Returns the folder of the student."""
    from agentsys.trainers.sft import SFTOptions, train

    if not (out / "model" / "config.json").exists():
        row_options = RowOptions(rows, max_length=size.max_length)
        train(row_options, student or size.options, SFTOptions(), settings(out, epochs, 2e-4 if size.lora else 1e-5))
    return out / "model"


def settings(out: Path, epochs: float, learning_rate: float) -> TrainingOptions:
    """Training options of all parts: eight rows per step, computed in bfloat16 with fp32 weights."""
    return TrainingOptions(
        out, epochs=epochs, learning_rate=learning_rate, batch=8, seed=SEED, bf16=True, checkpoint_every=1000
    )


def part_1(data: Path, out: Path, size: Size) -> dict[str, Any]:
    """SFT with thoughts and without, from the published data."""
    records = random.Random(SEED).sample(read(data / "drt_metaphortrans" / "with_thoughts.jsonl"), size.train)
    pairs = test_pairs(data, size)
    result = {"before": quality(size.student, pairs, size, 160, out / "before")}
    for name, thought in (("without thoughts", False), ("with thoughts", True)):
        folder = out / name.replace(" ", "-")
        traces = [make_trace(f"m{i}", r["text"], answer_of(r, thought)) for i, r in enumerate(records)]
        student = fine_tune(rows_from(traces, folder, size), folder / "sft", size)
        result[name] = quality(str(student), pairs, size, size.answer_tokens if thought else 160, folder)
    return result


def collect_traces(data: Path, out: Path, size: Size) -> Path:
    """Run DRT with the default model on sentences that are not in the tests; resumes an earlier run."""
    from agentsys.collect import RunOptions, collect
    from agentsys.graphs.drt.system import Context, graph

    tests = {pair["en"].casefold() for pair in read(data / "drt_metaphortrans" / "pairs.jsonl")}
    records = read(data / "drt_metaphortrans" / "with_thoughts.jsonl")
    sentences = [{"text": r["text"]} for r in records if r["text"].casefold() not in tests and len(r["text"]) < 160]
    run = out / "collected"
    collect(
        graph, sentences[: size.collect], run, context=Context(model=f"embedded:{size.teacher}"), options=RunOptions()
    )
    return run


def part_2(data: Path, out: Path, size: Size) -> dict[str, Any]:
    """SFT from our own traces, with their thoughts and without."""
    from agentsys.traces import read_traces

    run = collect_traces(data, out, size)
    kept = [trace for trace in read_traces(run) if trace.outcome == "kept"]
    pairs = test_pairs(data, size)
    result: dict[str, Any] = {"records": size.collect, "kept": len(kept)}
    result["before"] = quality(size.student, pairs, size, 160, out / "before")
    for name, thought in (("without thoughts", False), ("with thoughts", True)):
        folder = out / name.replace(" ", "-")
        traces = [make_trace(t.id, t.input["text"], answer_of(t.result or {}, thought)) for t in kept]
        student = fine_tune(rows_from(traces, folder, size), folder / "sft", size)
        result[name] = quality(str(student), pairs, size, size.answer_tokens if thought else 160, folder)
    return result


def part_3(data: Path, out: Path, size: Size) -> dict[str, Any]:
    """SFT, distillation, and distillation after a warm-up, all on the same rows; measured against the teacher."""
    from agentsys.trainers.distill_offline import DistillOptions, ScoredOptions, measure
    from agentsys.trainers.teacher import SpeedOptions, TeacherOptions
    from agentsys.trainers.teacher import main as score
    from agentsys.trainers.warmup import Warmup, WarmupOptions
    from agentsys.trainers.warmup_distill import distill_both

    records = random.Random(SEED + 1).sample(read(data / "drt_metaphortrans" / "with_thoughts.jsonl"), 3 * size.train)
    traces = [make_trace(f"m{i}", r["text"], answer_of(r, False)) for i, r in enumerate(records)]
    rows = rows_from(traces, out, size, validation=0.3)
    for split in ("train", "validation"):
        scoring = TeacherOptions(rows / f"{split}.parquet", out / "scored" / split, size.teacher)
        score(scoring, SpeedOptions(dtype="bfloat16", batch_tokens=2048))
    warm = WarmupOptions(
        size.teacher, "bfloat16", prompts=2 * size.train, held_out=16, eta=0.01,
        warm_learning_rate=1e-4 if size.lora else 1e-6,
        distill=out / "scored" / "train", distill_validation=out / "scored" / "validation",
    )  # fmt: skip
    training = settings(out, 2, 2e-4 if size.lora else 1e-5)
    sampling = SamplingOptions(answer_tokens=96, sample_batch=24)
    warmup = Warmup(RowOptions(rows, max_length=size.max_length), size.options, warm, sampling, training)
    warmed = warmup.train_dpo()
    result: dict[str, Any] = {"before": warmup.measure(size.student), "warmed": warmup.measure(str(warmed))}
    distill_both(warmup, warmed, DistillOptions(), training)
    alone = fine_tune(rows, out / "sft", size)
    scored = ScoredOptions(rows=out / "scored" / "validation", max_length=size.max_length)
    folders = {"untrained": size.student, "SFT alone": str(alone)}
    folders |= {name: str(out / name / "model") for name in ("distilled", "distilled-without")}
    for name, student in folders.items():
        measures = measure(scored, StudentOptions(student), DistillOptions())
        result[name] = {
            "KL": with_interval([divergence / tokens for divergence, _, tokens in measures]),
            "cross-entropy": with_interval([ce / tokens for _, ce, tokens in measures]),
            "rows": len(measures),
        }
    return result


def with_interval(values: list[float]) -> list[float]:
    """The mean over rows and its 95 % bootstrap interval."""
    score = mean_with_interval(values)
    return [round(score.value, 3), round(score.low, 3), round(score.high, 3)]


def part_4(data: Path, out: Path, size: Size) -> dict[str, Any]:
    """Difference sampling on a corpus of clean passages, shuffled letters and one repeated line."""
    from proof_miniplm import difference_sampling

    passages = [record["text"] for record in read(data / "wiki_passages" / "passages.jsonl")]
    return difference_sampling(passages, out, size.corpus, SEED)


def part_5(data: Path, out: Path, size: Size) -> dict[str, Any]:
    """Step-level DPO on pairs of drafts from our own rounds."""
    from agentsys.traces import read_traces
    from agentsys.trainers.dpo import DPOOptions, DPOTraining, PairOptions, train_dpo

    run = collect_traces(data, out.parent / "2", size)
    rows = rows_from(read_traces(run), out, size, "step", validation=0.3)
    if not (rows / "validation.parquet").exists():
        return {"missing": "too few pairs for a held-out side; collect more records"}
    learning_rate = 1e-4 if size.lora else 1e-6
    training = DPOTraining(out / "dpo", epochs=3, learning_rate=learning_rate, batch=4, seed=SEED, bf16=True)
    train_dpo(PairOptions(rows, max_length=size.max_length), size.options, DPOOptions(), training)
    pairs = zip(preferences(rows, size.student), preferences(rows, str(out / "dpo" / "model")), strict=True)
    before, after = zip(*pairs, strict=True)
    gains = [new.total - old.total for old, new in zip(before, after, strict=True)]
    return {
        "held-out pairs": len(after),
        "accuracy (gain of chosen over rejected)": with_interval([float(gain > 0) for gain in gains]),
        "margin (nats)": with_interval(gains),
        "chosen likelier per token, before": with_interval([float(pair.per_token > 0) for pair in before]),
        "chosen likelier per token, after": with_interval([float(pair.per_token > 0) for pair in after]),
    }


class Preference(NamedTuple):
    """log pi(chosen|prefix) - log pi(rejected|prefix) of a pair: of sums, and of means over tokens."""

    total: float
    per_token: float


def preferences(rows: Path, student: str) -> list[Preference]:
    """A student's preference for each held-out pair."""
    import torch

    model: Any = load_causal_lm(student)
    model.eval()
    margins = []
    for pair in pq.read_table(rows / "validation.parquet").to_pylist():
        sides = []
        for name in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([pair["prompt_ids"] + pair[name]])
            with torch.inference_mode():
                logits = model(ids, logits_to_keep=len(pair[name]) + 1).logits[0, :-1].float().log_softmax(-1)
            sides.append(logits.gather(1, torch.tensor(pair[name])[:, None]))
        chosen, rejected = sides
        margins.append(Preference(float(chosen.sum() - rejected.sum()), float(chosen.mean() - rejected.mean())))
    return margins


PARTS: dict[str, Callable[[Path, Path, Size], dict[str, Any]]] = {
    "1": part_1, "2": part_2, "3": part_3, "4": part_4, "5": part_5,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("proof"))
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--student", default="qwen2.5-coder-0.5b")
    parser.add_argument("--teacher", default="qwen2.5-coder-1.5b")
    parser.add_argument("--train", type=int, default=32, help="published records to train on; part 3: 3 times as many")
    parser.add_argument("--test", type=int, default=32, help="test sentences")
    parser.add_argument("--lora", type=int, default=16, help="rank; 0 trains all weights")
    parser.add_argument("--collect", type=int, default=12, help="records to collect with the teacher")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--answer-tokens", type=int, default=512, help="tokens of an answer with its thought")
    parser.add_argument("--corpus", type=int, default=150, help="clean passages of part 4")
    args = parser.parse_args()
    size = Size(**{name: getattr(args, name) for name in Size.__annotations__})
    print(f"{size}; {os.cpu_count()} cores, Python {platform.python_version()}, load before {os.getloadavg()[0]:.1f}")
    for name in args.part or PARTS:
        file = args.out / name / "result.json"
        if not file.exists():
            started = time.perf_counter()
            file.parent.mkdir(parents=True, exist_ok=True)
            result = PARTS[name](args.data, file.parent, size)
            result["seconds"] = round(time.perf_counter() - started)
            file.write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"part {name}: {json.dumps(json.loads(file.read_text(encoding='utf-8')))}")


if __name__ == "__main__":
    main()
