"""trainers/vision_rows.py: calls that show pictures as rows for a vision student; refused for one of text only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from agentsys.collect import RunOptions, collect
from agentsys.targets import TargetError, masked
from agentsys.traces import read_traces
from agentsys.trainers.loading import TrainerError
from agentsys.trainers.row_filter import Filters
from agentsys.trainers.rows import TargetOptions, make_rows
from agentsys.trainers.vision_rows import read_vision_rows
from tests.support.images import DescriberContext, describer, png
from tests.support.tiny import make_tiny
from tests.support.tiny_vision import make_tiny_vision
from tests.support.toys import write_lines


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision(tmp_path_factory.mktemp("vision") / "student")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rules = write_lines(folder / "rules.jsonl", [{"replies": ["red and blue"]}])
    records = [{"id": str(n), "image": png(n), "caption": f"caption {n}"} for n in range(4)]
    context = DescriberContext(model=f"scripted:{rules}")
    collect(describer, records, folder / "run", context=context, options=RunOptions(no_cache=True))
    return folder / "run"


FILTERS = Filters(near_duplicates=1, validation=0.25)


def test_a_row_has_the_messages_and_the_files_of_its_pictures(run: Path, student: Path, tmp_path: Path) -> None:
    report = make_rows([run], TargetOptions(student=str(student), out=tmp_path / "rows"), FILTERS)
    assert {kind for kind, _ in report.rows} == {"vision"} and report.rows.total() == 4 and not report.dropped
    rows = read_vision_rows(tmp_path / "rows" / "vision")
    digests = set()
    for row in [*rows["train"], *rows["validation"]]:
        system, user, assistant = row["messages"]
        assert [block["type"] for block in user["content"]] == ["image", "text"]
        assert system["content"] == [{"type": "text", "text": "Be brief."}]
        assert assistant["content"] == [{"type": "text", "text": "red and blue"}]
        [image] = row["images"]
        assert image.size == (60, 40)
        number = int(user["content"][1]["text"].rpartition(" ")[2])
        digests.add(hashlib.sha256(png(number)).hexdigest())
    assert {file.stem for file in (tmp_path / "rows" / "vision" / "images").iterdir()} == digests


def test_a_text_student_is_told(run: Path, tmp_path: Path) -> None:
    text_only = make_tiny(tmp_path / "text")
    with pytest.raises(TrainerError) as caught:
        make_rows([run], TargetOptions(student=str(text_only), out=tmp_path / "rows"), FILTERS)
    assert str(caught.value) == (
        f"no rows: 4 role: the request shows a picture, and the student {text_only} takes text only; "
        "name a vision model"
    )


def test_a_picture_that_was_removed(run: Path, student: Path, tmp_path: Path) -> None:
    trace = next(iter(read_traces(run)))
    sha256 = trace.input["image"]["sha256"]
    file = run / "images" / f"{sha256}.png"
    content = file.read_bytes()
    file.unlink()
    try:
        report = make_rows([run], TargetOptions(student=str(student), out=tmp_path / "rows"), FILTERS)
    finally:
        file.write_bytes(content)
    assert report.dropped == {("role", f"the picture {sha256[:16]} is not in the run's folder images"): 1}


def test_an_sft_target_has_no_pictures() -> None:
    reference = {"type": "image", "sha256": "0" * 64, "width": 1, "height": 1}
    with pytest.raises(TargetError, match="the prompt shows a picture, which an sft target cannot have"):
        masked([{"role": "user", "content": [reference]}])


def test_trl_trains_a_step_on_the_rows(run: Path, student: Path, tmp_path: Path) -> None:
    """A real step of SFTTrainer with the pictures: the loss is finite and weights of the vision tower change."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import SFTConfig, SFTTrainer

    make_rows([run], TargetOptions(student=str(student), out=tmp_path / "rows"), FILTERS)
    rows = read_vision_rows(tmp_path / "rows" / "vision")
    model: Any = AutoModelForImageTextToText.from_pretrained(student)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    settings = SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, learning_rate=1e-2,
        report_to=[], use_cpu=True, save_strategy="no", max_length=None, bf16=False,
    )  # fmt: skip
    trainer: Any = SFTTrainer(
        model, args=settings, train_dataset=rows["train"], processing_class=AutoProcessor.from_pretrained(student)
    )
    result = trainer.train()
    assert result.training_loss > 0 and torch.isfinite(torch.tensor(result.training_loss))
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("vision" in name for name in changed) and any("language" in name for name in changed)
