"""A vision model of random weights (LLaVA's architecture) whose processor needs Pillow and no torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.tiny import make_tokenizer

TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% for block in message.content %}{% if block.type == "image" %}<image>
{% else %}{{ block.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SIDE, PATCH = 28, 14
"""Pixels of the side of the picture that the model sees, and of one of its patches."""


def make_tiny_vision(folder: Path) -> Path:
    """Save the model and its processor in a folder."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
    )

    tokenizer: Any = make_tokenizer(512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = Qwen2Config(
        vocab_size=len(tokenizer) + 8, num_key_value_heads=2, max_position_embeddings=512, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **size,
    )  # fmt: skip
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, projection_dim=32, **size)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), vision_feature_layer=-1,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_select_strategy="default",
        )
    )  # fmt: skip
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
