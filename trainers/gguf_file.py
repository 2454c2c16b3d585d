"""The GGUF file of a transformers folder: shape, rope, tokenizer, weights, for Qwen2 and Llama.

llama.cpp computes what the file says, so everything that it could not honor is refused here: another architecture,
another way to split text, a rope scaling that was not compared with transformers. Weights are read, converted and
written one tensor at a time; a matrix is stored in the type asked for, vectors (norms, biases) in fp32 always.

Llama's query and key rows change places: transformers rotates the two halves of a head, llama.cpp (for this
architecture) neighbouring pairs.
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
"""Class name in config.json -> name in gguf.MODEL_ARCH: those whose probabilities were compared with transformers."""

_LAYER: Final = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{x}_proj.weight" for x in "qkvo"),
    *(f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
)
_QWEN2_BIASES: Final = tuple(f"self_attn.{x}_proj.bias" for x in "qkv")


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the file; `read` gives its values in fp32."""

    name: str
    shape: tuple[int, ...]
    stored: GGMLQuantizationType
    read: Callable[[], np.ndarray[Any, Any]]


def write_gguf(folder: Path, path: Path, weight_type: WeightType) -> None:
    """Write the model in `folder` to `path`, a file that no engine has open. Raises TrainerError for another model."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, LlamaFileType

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
        _write(writer, tensors)
    finally:
        writer.close()


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as err:  # what config classes raise for a bad value, a bad file or a bad name shares no base class
        raise TrainerError(f"{folder / 'config.json'}: {' '.join(str(err).split())[:300]}") from None


def _architecture(config: Any, folder: Path) -> str:
    named = (config.architectures or ["none named"])[0]
    if named not in ARCHITECTURES:
        raise TrainerError(f"{folder}: architecture {named} cannot be exported; {', '.join(ARCHITECTURES)} can")
    if config.hidden_act != "silu":
        raise TrainerError(f"{folder}: activation {config.hidden_act} cannot be exported; llama.cpp computes silu here")
    if getattr(config, "use_sliding_window", False):
        raise TrainerError(f"{folder}: sliding-window attention cannot be exported; set use_sliding_window to false")
    return ARCHITECTURES[named]


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
    """Base frequency and scaling; Llama 3's scaling is a tensor of its own (see _rope_factors)."""
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
    """By what Llama 3 divides each frequency: transformers' own frequencies against the plain ones."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if config.rope_parameters.get("rope_type") != "llama3":
        return
    size = _head_size(config)  # one frequency for two of them
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, size, 2) / size)
    factors = (plain / scaled.numpy()).astype(np.float32)
    yield _Tensor("rope_freqs.weight", factors.shape, GGMLQuantizationType.F32, lambda: factors)


def _tensors(folder: Path, config: Any, architecture: str, weight_type: WeightType) -> Iterator[_Tensor]:
    """The model's tensors under their names in the file. Raises TrainerError if one is missing or unknown."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from safetensors import safe_open

    names = get_tensor_name_map(MODEL_ARCH[architecture], config.num_hidden_layers)
    files = _files(folder)
    tied = config.tie_word_embeddings and not _own_head(files)
    wanted = _wanted(config.num_hidden_layers, architecture, tied)
    left_out = {"lm_head.weight"} if tied else set()
    found = {name for name in files if not name.endswith("rotary_emb.inv_freq")} - left_out
    if odd := sorted(found.symmetric_difference(wanted)):
        what = "is missing in" if odd[0] in wanted else "is not known in"
        raise TrainerError(f"{odd[0]} {what} {folder} ({len(odd)} such tensors): export a whole, merged model")
    for name in wanted:
        with safe_open(files[name], "pt") as opened:
            shape = tuple(opened.get_slice(name).get_shape())
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, "every wanted name has one"
        yield _Tensor(target, shape, _stored(shape, weight_type), _reader(files[name], name, config, architecture))


def _wanted(layers: int, architecture: str, tied: bool) -> list[str]:
    layer = (*_LAYER, *_QWEN2_BIASES) if architecture == "QWEN2" else _LAYER
    blocks = [f"model.layers.{i}.{part}" for i in range(layers) for part in layer]
    return ["model.embed_tokens.weight", *blocks, "model.norm.weight", *([] if tied else ["lm_head.weight"])]


def _own_head(files: dict[str, Path]) -> bool:
    """Whether there is a head unlike the embedding: transformers then ties nothing, whatever config.json says."""
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


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> safetensors file, from the one file or from the index of several."""
    from safetensors import safe_open

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        with safe_open(single, "pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    if index.exists():
        return {name: folder / file for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    raise TrainerError(f"{folder} has no model.safetensors: load the model and save it again with save_pretrained")


def _stored(shape: tuple[int, ...], weight_type: WeightType) -> GGMLQuantizationType:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[weight_type.upper()]
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _reader(file: Path, name: str, config: Any, architecture: str) -> Callable[[], np.ndarray[Any, Any]]:
    def read() -> np.ndarray[Any, Any]:
        values = _load(file, name)
        if architecture == "LLAMA" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = neighbours(values, heads=values.shape[0] // _head_size(config))
        return values

    return read


def neighbours(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows (heads x size, width), row i and row i + size/2 of each head side by side: at 2 i and 2 i + 1."""
    halves = rows.reshape(heads, 2, -1, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _write(writer: GGUFWriter, tensors: list[_Tensor]) -> None:
    """The whole file: what is in it first, then one tensor after another."""
    import numpy as np
    from gguf import quants

    for tensor in tensors:
        shape = quants.quant_shape_to_byte_shape(tensor.shape, tensor.stored)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), prod(shape), tensor.stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        with np.errstate(over="ignore"):  # what overflows is found in the next line
            data = quants.quantize(np.ascontiguousarray(tensor.read()), tensor.stored)
        if data.dtype != np.uint8 and not np.isfinite(data).all():
            raise TrainerError(f"{tensor.name}: a weight is no number, or too large for fp16 (then take --type f32)")
        writer.write_tensor_data(data)
