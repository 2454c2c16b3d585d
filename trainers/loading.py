"""Load models by name: a folder, a hub name, or a catalog name whose GGUF file is converted once."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentsys.display import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16"]


class TrainerError(ValueError):
    """User-fixable error: one line that names the fix."""


def folder_of(name: str) -> str:
    """The folder or hub name that transformers loads for a name; a catalog name becomes a converted folder.

    The first use of a catalog name (`qwen2.5-coder-0.5b`) reads the quantized file and writes bfloat16 weights into
    the user's cache folder: about a minute and 1.3 GB for 0.5B. Raises TrainerError for a folder without a model,
    WeightsError for a catalog model that is not available.
    """
    from agentsys.models.weights import CATALOG, WeightsError, find
    from agentsys.paths import cache_folder

    if name in CATALOG:
        target = cache_folder() / "folders" / name
        if not (target / "config.json").exists():
            try:
                weights = find(name)
            except WeightsError as err:
                raise TrainerError(str(err)) from None
            say(f"converting {name} to a transformers folder: {target}")
            convert(weights, target)
        return str(target)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            adapter = (Path(name) / "adapter_config.json").exists()
            fix = "this is a LoRA adapter; give the merged folder next to it" if adapter else "give a model folder"
            raise TrainerError(f"{name} has no config.json: {fix}")
        return name
    if name.startswith((".", "/")) or name.count("/") != 1:
        raise TrainerError(f"{name}: no such folder; catalog names are {', '.join(CATALOG)}, hub names owner/name")
    return name


def convert(gguf: str | Path, folder: str | Path) -> None:
    """Convert a GGUF file to a transformers folder in bfloat16, atomically.

    transformers reads a GGUF file but refuses to save that model, so the weights are copied into a new one.
    """
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from agentsys.paths import make_private_folder

    gguf, folder = Path(gguf), Path(folder)
    make_private_folder(folder.parent)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").exists():
            return
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        fresh.load_state_dict(read.state_dict())
        fresh.save_pretrained(part)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)
        os.replace(part, folder)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises TrainerError if there is none, or no fast one."""
    from transformers import AutoTokenizer

    folder = folder_of(name)  # outside of `try`: its errors name their own fix
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as err:
        raise TrainerError(f"no tokenizer in {name}: {' '.join(str(err).split())[:300]}") from None
    if not tokenizer.is_fast:
        raise TrainerError(f"{name} has no tokenizer.json; save it with a fast tokenizer first")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str) -> Any:
    """A model's configuration. Raises TrainerError if there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder_of(name))
    except (OSError, ValueError) as err:
        raise TrainerError(f"no model in {name}: {' '.join(str(err).split())[:300]}") from None


def head_width(name: str) -> int:
    """The number of ids of a model's head, padding included, read from its configuration. Raises TrainerError."""
    return int(load_config(name).get_text_config().vocab_size)


def load_causal_lm(name: str, dtype: DType = "float32") -> PreTrainedModel:
    """A model in `dtype`, on the CPU. Raises TrainerError if it cannot be loaded."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    folder = folder_of(name)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as err:  # a SafetensorError is a truncated file
        raise TrainerError(f"no model in {name}: {' '.join(str(err).split())[:300]}") from None


def load_token_classifier(name: str, dtype: DType = "float32") -> PreTrainedModel:
    """A model with one number per token in place of the next token's logits, on the CPU.

    The head of a model that has none is new: its weights are random. Raises TrainerError if it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForTokenClassification

    folder = folder_of(name)
    try:
        return AutoModelForTokenClassification.from_pretrained(folder, dtype=dtype, num_labels=1)
    except (OSError, ValueError, SafetensorError, RuntimeError) as err:  # RuntimeError: a head for more classes
        raise TrainerError(
            f"no process reward model can be made of {name}: {' '.join(str(err).split())[:300]}"
        ) from None


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of the (token, id) pairs: equal for tokenizers whose ids have the same meaning."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    return hashlib.sha256("\n".join(f"{token}\t{index}" for token, index in pairs).encode()).hexdigest()


def vocabulary_difference(student: Any, teacher: Any) -> str | None:
    """Describe how the ids of two tokenizers differ, or return None if they agree.

    The heads of the two models may differ in width by padding rows without a token (Qwen2.5: 151,936 and 152,064).
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return None
    token = next((t for t in ours if ours[t] != theirs.get(t)), None) or next(t for t in theirs if t not in ours)
    return (
        f"the tokenizers differ ({len(ours)} and {len(theirs)} tokens; {token!r} is id {ours.get(token)} in one and "
        f"{theirs.get(token)} in the other): take a teacher of the student's family, or SFT on the teacher's texts"
    )
