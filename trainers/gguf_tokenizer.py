"""The tokenizer part of a GGUF file: tokens, types, merges, special tokens, chat template, for byte-level BPE.

llama.cpp does not read tokenizer.json: it has a fixed set of named pre-tokenizers. So the steps of the tokenizer's
pre-tokenizer are looked up in a short list of those that were compared with llama.cpp, and any other is refused. One
difference is accepted, as in the publisher's Qwen files: Qwen's tokenizer composes characters first (NFC) and llama.cpp
does not, so a text with decomposed characters has other tokens there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from agentsys.trainers.loading import TrainerError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES: Final = ("ByteLevel", False, False)

PRE_TOKENIZERS: Final = {
    (("Split", _WORDS % "", "Isolated", False), _BYTES): "qwen2",
    (("Split", _WORDS % "{1,3}", "Isolated", False), _BYTES): "llama-bpe",
    (("Digits", True), ("ByteLevel", False, True)): "smollm",
    (("ByteLevel", False, True),): "gpt-2",
}
"""Steps of a pre-tokenizer (see _step) -> llama.cpp's name for them."""

_MARK: Final = "\ue000"


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Write the tokenizer of a model with `rows` embedding rows. Raises TrainerError for another kind of tokenizer."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer_name(spec))
    tokens, types = _tokens(spec, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_add_bos_token(_adds_bos(tokenizer))
    for name in ("bos", "eos", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    if (end := find_turn_end(tokenizer)) is not None:
        writer.add_eot_token_id(end)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_name(spec: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way a tokenizer.json splits text. Raises TrainerError if there is none."""
    model = spec["model"]
    plain = not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
    if model["type"] != "BPE" or not plain:
        raise TrainerError("this tokenizer cannot be exported: it is not a byte-level BPE")
    if (normalizer := spec.get("normalizer")) and normalizer["type"] != "NFC":
        raise TrainerError(f"this tokenizer cannot be exported: llama.cpp has no normalizer {normalizer['type']}")
    outer = spec.get("pre_tokenizer") or {"type": "none"}
    steps = tuple(_step(step) for step in outer.get("pretokenizers", [outer]))
    name = PRE_TOKENIZERS.get(steps)
    if name is None:
        own, allowed = " + ".join(str(step[0]) for step in steps), ", ".join(PRE_TOKENIZERS.values())
        raise TrainerError(f"this tokenizer cannot be exported: its pre-tokenizer ({own}) is none of {allowed}")
    if model.get("ignore_merges", False) != (name == "llama-bpe"):
        raise TrainerError(f"this tokenizer cannot be exported: its ignore_merges differs from llama.cpp's {name}")
    return name


def _step(step: Mapping[str, Any]) -> tuple[Any, ...]:
    """A step of a pre-tokenizer, with the settings that change its result."""
    match step["type"]:
        case "Split":
            return ("Split", step["pattern"].get("Regex"), step["behavior"], step["invert"])
        case "Digits":
            return ("Digits", step["individual_digits"])
        case "ByteLevel":
            return ("ByteLevel", step["add_prefix_space"], step.get("use_regex", True))
    return (step["type"],)


def _tokens(spec: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Text and type of every row of the embedding; rows without a token get a name that is never matched."""
    from gguf import TokenType

    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    added = {token["id"]: token for token in spec["added_tokens"]}
    vocabulary = {index: text for text, index in spec["model"]["vocab"].items()}
    if (last := max([*vocabulary, *added])) >= rows:
        raise TrainerError(f"the tokenizer has id {last} and the model {rows} embedding rows: resize the embeddings")
    for index, text in vocabulary.items():
        tokens[index], types[index] = text, int(TokenType.NORMAL)
    for index, token in added.items():
        if token["single_word"] or token["lstrip"] or token["rstrip"]:
            raise TrainerError(
                f"this tokenizer cannot be exported: {token['content']} strips whitespace or matches whole words"
            )
        kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        tokens[index], types[index] = token["content"], int(kind)
    return tokens, types


def _adds_bos(tokenizer: Any) -> bool:
    """Whether a text gets a beginning-of-sequence token. Raises TrainerError if any other token is added."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    if whole not in (plain, [tokenizer.bos_token_id, *plain]):
        raise TrainerError("this tokenizer cannot be exported: it adds other tokens than a beginning-of-sequence token")
    return bool(whole != plain)


def find_turn_end(tokenizer: Any) -> int | None:
    """The id of the special token after an answer in the chat template, or None."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    roles = ("user", "assistant", "user")
    contents = ("a", _MARK, "b")
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    after = tokenizer.apply_chat_template(messages, tokenize=False).partition(_MARK)[2]
    ids = tokenizer(after, add_special_tokens=False).input_ids
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None
