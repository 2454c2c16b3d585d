"""Export to GGUF, with tiny random models in the real embedded engine: llama.cpp computes what the folder says."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agentsys.commands import command, run_app
from agentsys.models import embedded, load_model
from agentsys.models.chat import EndpointChatModel, Served, reply_from_message
from agentsys.models.tokenizers import FolderTokenizer
from agentsys.models.tokens import render
from agentsys.trainers import gguf_file
from agentsys.trainers.export import export, main
from agentsys.trainers.gguf_check import BOUNDS, compare
from agentsys.trainers.gguf_tokenizer import PRE_TOKENIZERS
from agentsys.trainers.loading import TrainerError
from tests.support.tiny import make_tiny

pytestmark = pytest.mark.timeout(300)
T = TypeVar("T")
AWKWARD = (
    " one  two   three",
    "tabs\t\tand\n\n\nlines \n  indented\r\nend ",
    "in 1904 and 20260, 3.14 or ½ and ٣",
    "他说:“走吧。”然后12个人走了",
    "👩‍👩‍👧 naïve ﬁn 𝒳 \u200b|",
    "I'LL don't WE'VE 'tis",
    "<|im_end|> and <|im_start|>user",
    "a<|endoftext|>b",
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`models("llama", tie_word_embeddings=True)`: a tiny model folder with random vectors too."""
    made: dict[str, Path] = {}

    def make(family: str, **changes: Any) -> Path:
        key = json.dumps([family, changes])
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / f"{family}{len(made)}"
            made[key] = _with_vectors(make_tiny(folder, family=family), changes)  # type: ignore[arg-type]
        return made[key]

    return make


def _with_vectors(folder: Path, changes: dict[str, Any]) -> Path:
    """New models have biases of 0, norms of 1 and even probabilities, which would hide a lost tensor."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
        model.model.norm.weight.mul_(2)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def edit(source: Path, target: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a model folder with one JSON file changed."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((target / file).read_text("utf-8"))
    change(content)
    (target / file).write_text(json.dumps(content), encoding="utf-8")
    return target


def with_engine(gguf: Path, work: Callable[[EndpointChatModel, Served], Awaitable[T]]) -> T:
    """The result of `work` with a GGUF file loaded as a user would load it."""

    async def run() -> T:
        model = load_model(f"embedded:{gguf}?slots=1&context=512&temperature=0&max_tokens=12")
        assert isinstance(model, EndpointChatModel)
        try:
            return await work(model, await model.engine.serve())
        finally:
            await model.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}),
    ],
    ids=["qwen2", "qwen2-untied", "llama", "llama-tied", "llama3-rope", "linear-rope"],
)
def test_probabilities_are_the_folders(
    models: Callable[..., Path], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    agreement = export(models(family, **changes), tmp_path / "m.gguf", "f32")
    assert agreement is not None and agreement.positions >= 20
    assert agreement.difference < 1e-3
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_probabilities_are_the_same_without_half_precision_attention(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """llama.cpp's flash attention computes in fp16. Without it only rounding in fp32 is left."""
    import xllamacpp

    running = []

    def start(path: str, slots: int, context: int, projector: str, **threads: Any) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_parallel, params.n_ctx, params.verbosity = path, slots, context, -1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        running.append(xllamacpp.Server(params))
        return running[-1]

    monkeypatch.setattr(embedded, "_start_llamacpp", start)
    agreement = export(models(family), tmp_path / "m.gguf", "f32")
    assert running and agreement is not None and agreement.difference < 1e-5


def test_a_separate_head_is_kept_despite_the_configuration(models: Callable[..., Path], tmp_path: Path) -> None:
    """As transformers does: an embedding and a head that differ are not tied."""
    folder = edit(models("llama"), tmp_path / "folder", "config.json", lambda c: c.update(tie_word_embeddings=True))
    agreement = export(folder, tmp_path / "m.gguf", "f32")
    assert agreement is not None and agreement.difference < 1e-3


@pytest.mark.parametrize("weight_type", ["f16", "q8_0"])
def test_smaller_types_stay_within_their_bounds(
    models: Callable[..., Path], tmp_path: Path, weight_type: gguf_file.WeightType
) -> None:
    agreement = export(models("llama"), tmp_path / "m.gguf", weight_type)
    assert agreement is not None and 0 < agreement.difference <= BOUNDS[weight_type]
    whole = tmp_path / "whole.gguf"
    gguf_file.write_gguf(models("llama"), whole, "f32")
    assert (tmp_path / "m.gguf").stat().st_size < whole.stat().st_size


@pytest.mark.parametrize("damage", ["rows", "rope"])
def test_a_file_that_disagrees_is_refused(
    models: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """The comparison sees what a wrong export does: query rows in transformers' order, another rope base."""
    folder = models("llama")
    if damage == "rows":
        monkeypatch.setattr(gguf_file, "interleave_halves", lambda rows, heads: rows)
    else:
        monkeypatch.setattr(gguf_file, "_add_rope", lambda writer, config, architecture: writer.add_rope_freq_base(9.0))
    with pytest.raises(TrainerError, match="a probability differs by"):
        export(folder, tmp_path / "m.gguf", "f32")
    assert list(tmp_path.iterdir()) == []
    assert export(folder, tmp_path / "m.gguf", "f32", check=False) is None
    assert compare(folder, tmp_path / "m.gguf").difference > BOUNDS["f32"]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS.values()))
def test_text_becomes_the_folders_tokens(models: Callable[..., Path], tmp_path: Path, name: str) -> None:
    [steps] = [steps for steps, known in PRE_TOKENIZERS.items() if known == name]

    def change(tokenizer: dict[str, Any]) -> None:
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_as_json(step) for step in steps]}
        tokenizer["model"]["ignore_merges"] = name == "llama-bpe"

    folder = edit(models("llama"), tmp_path / "folder", "tokenizer.json", change)
    export(folder, tmp_path / "m.gguf", "f32", check=False)
    ours = FolderTokenizer(folder)

    async def tokens(model: EndpointChatModel, served: Served) -> None:
        assert served.tokenizer is not None
        for text in AWKWARD:
            for special in (False, True):
                expected = await ours.encode(text, special=special)
                assert await served.tokenizer.encode(text, special=special) == expected, (text, special)

    with_engine(tmp_path / "m.gguf", tokens)


def _as_json(step: tuple[Any, ...]) -> dict[str, Any]:
    names = {
        "Split": ("pattern", "behavior", "invert"),
        "Digits": ("individual_digits",),
        "ByteLevel": ("add_prefix_space", "use_regex"),
    }[step[0]]
    spec = {"type": step[0], **dict(zip(names, step[1:], strict=True)), "trim_offsets": True}
    return spec | ({"pattern": {"Regex": step[1]}} if step[0] == "Split" else {})


def test_a_role_talks_to_it_in_token_mode(models: Callable[..., Path], tmp_path: Path) -> None:
    """The template, the special tokens and the stop token arrive: rendered on either side, a chat has the same ids."""
    from gguf import GGUFReader

    folder = models("qwen2")
    export(folder, tmp_path / "m.gguf", "f16", check=False)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say <|im_end|> twice."}]
    ours = FolderTokenizer(folder)

    async def ask(model: EndpointChatModel, served: Served) -> list[int] | None:
        assert served.tokenizer is not None and served.tokenizer.template == ours.template
        assert served.tokenizer.stop_ids == ours.stop_ids
        reply = reply_from_message(await model.ainvoke(messages))
        assert reply.ids and len(reply.ids) == reply.completion_tokens
        return reply.prompt_ids

    assert with_engine(tmp_path / "m.gguf", ask) == asyncio.run(render(ours, messages))
    fields = GGUFReader(tmp_path / "m.gguf").fields
    [end] = ours.stop_ids
    assert fields["tokenizer.ggml.eot_token_id"].contents() == fields["tokenizer.ggml.eos_token_id"].contents() == end


def _no_such_split(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}


def _too_many_tokens(tokenizer: dict[str, Any]) -> None:
    last = tokenizer["added_tokens"][-1]
    extra = [{**last, "id": last["id"] + i, "content": f"<|extra{i}|>"} for i in range(1, 514 - last["id"])]
    tokenizer["added_tokens"] += extra


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM cannot be exported"),
        ("config.json", {"hidden_act": "gelu"}, "activation gelu"),
        ("config.json", {"num_hidden_layers": 3}, r"config\.json: .*num_hidden_layers"),
        ("config.json", {"num_hidden_layers": 3, "layer_types": None}, r"model\.layers\.2\.\S+ is missing"),
        ("config.json", {"num_hidden_layers": 1, "layer_types": None}, r"model\.layers\.1\.\S+ is unknown"),
        ("config.json", {"use_sliding_window": True, "sliding_window": 64}, "sliding-window attention"),
        (
            "config.json",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            "rope scaling 'dynamic'",
        ),
        ("tokenizer.json", _no_such_split, "its pre-tokenizer"),
        ("tokenizer.json", _too_many_tokens, "resize the embeddings"),
    ],
)
def test_models_that_cannot_be_exported_get_one_line(
    models: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    change: Any,
    message: str,
) -> None:
    apply = change if callable(change) else lambda content: content.update(change)
    # transformers splits text for every Qwen2 folder in its own way, whatever the file says
    family = "llama" if file == "tokenizer.json" else "qwen2"
    folder = edit(models(family), tmp_path / "folder", file, apply)
    with pytest.raises(TrainerError, match=message):
        export(folder, tmp_path / "out" / "m.gguf")
    assert not list((tmp_path / "out").glob("*"))
    capsys.readouterr()
    assert run_app(command(main), [str(folder), "--out", str(tmp_path / "out" / "m.gguf")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")


def test_an_adapter_is_refused_with_the_merged_folder(models: Callable[..., Path], tmp_path: Path) -> None:
    edit(models("qwen2"), tmp_path / "merged", "config.json", lambda config: None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(TrainerError, match=rf"is a LoRA adapter: export the merged model, {tmp_path / 'merged'}"):
        export(adapter, tmp_path / "m.gguf")


def test_the_command_prints_the_comparison(
    models: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.gguf"
    assert run_app(command(main), [str(models("qwen2")), "--out", str(out), "--type", "q8_0"]) == 0
    printed = capsys.readouterr().out
    assert f"embedded:{out}" in printed and "largest difference" in printed
    assert run_app(command(main), [str(models("qwen2")), "--out", str(out), "--no-check"]) == 0
    assert "largest difference" not in capsys.readouterr().out
    assert run_app(command(main), [str(models("qwen2")), "--out", str(tmp_path / "model.bin")]) == 2


def test_help_needs_no_torch() -> None:
    code = "import sys, trainers.export; print([m for m in ('torch', 'transformers', 'gguf') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
