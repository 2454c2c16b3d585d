"""A projector of random weights (LLaVA's) in GGUF, with which llama.cpp shows pictures to a text model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE, PATCH = 28, 14
TOKENS = (SIDE // PATCH) ** 2
"""Tokens of a picture."""


def make_projector(path: Path, width: int, embedding: int = 32, layers: int = 2) -> Path:
    """Write a vision encoder of two layers and a projection to `width`, the text model's embedding size."""
    import gguf
    import numpy as np

    rng = np.random.default_rng(0)
    writer: Any = gguf.GGUFWriter(str(path), "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_text_encoder", False)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)
    numbers = {
        "image_size": SIDE, "patch_size": PATCH, "embedding_length": embedding, "feed_forward_length": 2 * embedding,
        "projection_dim": width, "attention.head_count": 4, "block_count": layers,
    }  # fmt: skip
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for name in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{name}", [0.5] * 3)

    def add(name: str, *shape: int, scale: float = 0.2) -> None:
        """A weight of a layer norm is ones."""
        values = np.ones(shape) if "ln" in name and name.endswith("weight") else rng.normal(0, scale, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("v.patch_embd.weight", embedding, 3, PATCH, PATCH)
    add("v.class_embd", embedding)
    add("v.position_embd.weight", TOKENS + 1, embedding)
    for end, shape in (("weight", (embedding,)), ("bias", (embedding,))):
        add(f"v.pre_ln.{end}", *shape)
    for layer in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"v.blk.{layer}.{part}.weight", embedding, embedding)
            add(f"v.blk.{layer}.{part}.bias", embedding)
        for part in ("ln1", "ln2"):
            add(f"v.blk.{layer}.{part}.weight", embedding)
            add(f"v.blk.{layer}.{part}.bias", embedding)
        for part, rows, columns in (("ffn_up", 2 * embedding, embedding), ("ffn_down", embedding, 2 * embedding)):
            add(f"v.blk.{layer}.{part}.weight", rows, columns)
            add(f"v.blk.{layer}.{part}.bias", rows)
    for number, columns in ((0, embedding), (2, width)):
        add(f"mm.{number}.weight", width, columns, scale=0.02)
        add(f"mm.{number}.bias", width, scale=0.01)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
