"""The GGUF file of a transformers folder: shape, rope, tokenizer, weights, for Qwen2 and Llama.

What llama.cpp would compute differently is refused here: another architecture, another way to split text, a rope
scaling that was not compared with transformers. Weights are read, converted and
written one tensor at a time; matrices are stored in the given type, vectors (norms, biases) always in fp32.

Llama's query and key rows are reordered: transformers rotates the two halves of a head, llama.cpp (for this
architecture) neighboring pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from agentsys.trainers.gguf_tokenizer import add_tokenizer
from agentsys.trainers.loading import TrainerError, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

WeightType = Literal["f16", "f32", "q8_0"]

ARCHITECTURES: Final = {"Qwen2ForCausalLM": "QWEN2", "LlamaForCausalLM": "LLAMA"}
"""Class name in config.json -> name in gguf.MODEL_ARCH, of the architectures that were compared with transformers."""

_LAYER: Final = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
    *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
)
_QWEN2_BIASES: Final = tuple(f"self_attn.{x}_proj.bias" for x in "qkv")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the file; `read` returns its values in fp32."""

    name: str
    shape: tuple[int, ...]
    stored: GGMLQuantizationType
    read: Callable[[], np.ndarray[Any, Any]]


def write_gguf(folder: str | Path, path: str | Path, weight_type: WeightType) -> None:
    """Write the model in `folder` to `path`. Raises TrainerError for a model that cannot be exported."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType

    folder = Path(folder)
    config = _config(folder)
    architecture = _architecture(config, folder)
    arch = MODEL_ARCH[architecture]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    file_types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_name(folder.resolve().name)
    writer.add_file_type(file_types[weight_type])
    _add_shape(writer, config)
    _add_rope(writer, config, architecture)
    add_tokenizer(writer, load_tokenizer(str(folder)), config.vocab_size)
    tensors = [*_rope_factors(config), *_tensors(folder, config, architecture, weight_type)]
    try:
        _write_tensors(writer, tensors)
    finally:
        writer.close()


def check_model(folder: Path) -> None:
    """Raises TrainerError for a folder without weights, or an architecture that cannot be exported."""
    _architecture(_config(folder), folder)
    _tensor_files(folder)


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as err:  # the errors of config classes share no base class
        raise TrainerError(f"{folder / 'config.json'}: {' '.join(str(err).split())[:300]}") from None


def _architecture(config: Any, folder: Path) -> str:
    name = (config.architectures or ["(none)"])[0]
    if name not in ARCHITECTURES:
        raise TrainerError(f"{folder}: architecture {name} cannot be exported; {', '.join(ARCHITECTURES)} can")
    if config.hidden_act != "silu":
        raise TrainerError(f"{folder}: activation {config.hidden_act} cannot be exported; only silu can")
    if getattr(config, "use_sliding_window", False):
        raise TrainerError(f"{folder}: sliding-window attention cannot be exported; set use_sliding_window to false")
    return ARCHITECTURES[name]


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_shape(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_rope(writer: GGUFWriter, config: Any, architecture: str) -> None:
    """Add base frequency and scaling; Llama 3's scaling is a separate tensor (see _rope_factors)."""
    from gguf import RopeScalingType

    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind != "default" and (kind, architecture) != ("llama3", "LLAMA"):
        raise TrainerError(f"rope scaling '{kind}' cannot be exported; default and linear can, and llama3 for Llama")


def _rope_factors(config: Any) -> Iterator[_Tensor]:
    """The factor by which Llama 3 divides each frequency: the plain ones over those of transformers."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if config.rope_parameters.get("rope_type") != "llama3":
        return
    size = _head_size(config)  # one frequency per pair
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, size, 2) / size)
    factors = (plain / scaled.numpy()).astype(np.float32)
    yield _Tensor("rope_freqs.weight", factors.shape, GGMLQuantizationType.F32, lambda: factors)


def _tensors(folder: Path, config: Any, architecture: str, weight_type: WeightType) -> Iterator[_Tensor]:
    """The model's tensors under their GGUF names. Raises TrainerError if one is missing or unknown."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors import safe_open

    names = get_tensor_name_map(MODEL_ARCH[architecture], config.num_hidden_layers)
    files = _tensor_files(folder)
    tied = config.tie_word_embeddings and not _has_own_head(files)
    expected = _expected_names(config.num_hidden_layers, architecture, tied)
    ignored = {"lm_head.weight"} if tied else set()
    names_in_files = {name for name in files if not name.endswith("rotary_emb.inv_freq")} - ignored
    if wrong := sorted(names_in_files.symmetric_difference(expected)):
        fault = "is missing in" if wrong[0] in expected else "is unknown in"
        raise TrainerError(f"{wrong[0]} {fault} {folder} ({len(wrong)} such tensors): export a complete, merged model")
    for name in expected:
        with safe_open(files[name], "pt") as opened:
            shape = tuple(opened.get_slice(name).get_shape())
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, "every expected name has one"
        yield _Tensor(
            target, shape, _storage_type(shape, weight_type), _make_reader(files[name], name, config, architecture)
        )


def _expected_names(layers: int, architecture: str, tied: bool) -> list[str]:
    layer = (*_LAYER, *_QWEN2_BIASES) if architecture == "QWEN2" else _LAYER
    blocks = [f"model.layers.{i}.{part}" for i in range(layers) for part in layer]
    return ["model.embed_tokens.weight", *blocks, "model.norm.weight", *([] if tied else ["lm_head.weight"])]


def _has_own_head(files: dict[str, Path]) -> bool:
    """Whether the head differs from the embedding; transformers then does not tie them, despite config.json."""
    names = ("lm_head.weight", "model.embed_tokens.weight")
    if any(name not in files for name in names):
        return False
    head, embedding = (_load(files[name], name) for name in names)
    return not (head.shape == embedding.shape and bool((head == embedding).all()))


def _load(file: Path, name: str) -> np.ndarray[Any, Any]:
    """A tensor in fp32."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        values: np.ndarray[Any, Any] = opened.get_tensor(name).float().numpy()
    return values


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> safetensors file, from a single file or the index of several."""
    from safetensors import safe_open

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        with safe_open(single, "pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    if index.exists():
        return {name: folder / file for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    raise TrainerError(f"{folder} has no model.safetensors: load the model and save it again with save_pretrained")


def _storage_type(shape: tuple[int, ...], weight_type: WeightType) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[weight_type.upper()]
    return kind if shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _make_reader(file: Path, name: str, config: Any, architecture: str) -> Callable[[], np.ndarray[Any, Any]]:
    def read() -> np.ndarray[Any, Any]:
        values = _load(file, name)
        if architecture == "LLAMA" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleave_halves(values, heads=values.shape[0] // _head_size(config))
        return values

    return read


def interleave_halves(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows (heads x size, width), with rows i and i + size/2 of each head moved to 2 i and 2 i + 1."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _write_tensors(writer: GGUFWriter, tensors: list[_Tensor]) -> None:
    """Write the header, the metadata, and one tensor after another."""
    import numpy as np
    from gguf import quants

    for tensor in tensors:
        shape = quants.quant_shape_to_byte_shape(tensor.shape, tensor.stored)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), prod(shape), tensor.stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        with np.errstate(over="ignore"):  # overflow is detected in the next line
            data = quants.quantize(np.ascontiguousarray(tensor.read()), tensor.stored)
        if data.dtype != np.uint8 and not np.isfinite(data).all():
            raise TrainerError(f"{tensor.name}: a weight is not finite, or too large for fp16 (use --type f32)")
        writer.write_tensor_data(data)
