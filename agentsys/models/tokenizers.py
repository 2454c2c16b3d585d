"""Tokenizers of models: from a model's folder, and over HTTP from a llama.cpp server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentsys.display import say
from agentsys.models.endpoint import Endpoint
from agentsys.models.errors import ModelError
from agentsys.models.fields import BadReply, excerpt, read_ids
from agentsys.models.plain import LOOKS_LIKE_A_TOKEN, PlainEncoder, split_inside
from agentsys.models.tokens import Tokenizer


class FolderTokenizer:
    """The tokenizer and chat template of a model folder (tokenizer.json and tokenizer_config.json)."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError if a file is missing and ValueError for a damaged one or no chat template."""
        config = _read_object(folder / "tokenizer_config.json")
        separate = folder / "chat_template.jinja"
        template = separate.read_text(encoding="utf-8") if separate.exists() else config.get("chat_template")
        if not isinstance(template, str):
            raise ValueError(f"{folder} has no chat template")
        self.template = template
        self.special = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token")}
        content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self._special = _read_encoder(content)
        self._plain = PlainEncoder(content)
        self.stop_ids = frozenset(self._read_stop_ids(folder))
        self._encode_plain = lru_cache(maxsize=2048)(lambda text: self._plain.encode(text)[0])
        self._encode_special = lru_cache(maxsize=2048)(
            lambda text: self._special.encode(text, add_special_tokens=False).ids
        )

    def _read_stop_ids(self, folder: Path) -> list[int]:
        generation = folder / "generation_config.json"
        value = _read_object(generation).get("eos_token_id") if generation.exists() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int for i in ids):
            raise ValueError(f"{generation}: eos_token_id is {excerpt(value)}")
        eos = self._special.token_to_id(self.special["eos_token"])
        return [*ids, *([] if eos is None else [eos])]

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """See Tokenizer.encode. Takes about 0.1 ms per 300 tokens; results are cached."""
        return list(self._encode_special(text) if special else self._encode_plain(text))

    async def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer.decode."""
        return str(self._special.decode(list(ids), skip_special_tokens=False))


def _read_object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


def _read_encoder(content: str) -> Any:
    """The encoder of a tokenizer.json. Raises ValueError for a damaged one."""
    from tokenizers import Tokenizer as Encoder

    try:
        return Encoder.from_str(content)
    except Exception as err:  # the library raises Exception itself
        raise ValueError(f"tokenizer.json: {err}") from None


def _token_text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token or "")


class LlamaCppTokenizer:
    """The tokenizer of a llama.cpp server, called over HTTP; results are cached."""

    def __init__(self, endpoint: Endpoint, template: str, special: dict[str, str]) -> None:
        self._endpoint = endpoint
        self._ids: dict[tuple[str, bool], list[int]] = {}
        self._texts: dict[int, str] = {}
        self.template = template
        self.special = special
        self.stop_ids: frozenset[int] = frozenset()

    async def encode(self, text: str, *, special: bool) -> list[int]:
        """See tokens.Tokenizer.encode. A new text costs one request of about a millisecond."""
        ids = self._ids.get((text, special))
        if ids is None:
            ids = await (self._tokenize(text, special=True) if special else self._encode_plain(text))
            if len(self._ids) > 4096:
                self._ids.clear()
            self._ids[text, special] = ids
        return ids

    async def _tokenize(self, text: str, *, special: bool) -> list[int]:
        body = {"content": text, "parse_special": special, "add_special": False}
        return await self._endpoint.post("/tokenize", body, parse=_read_tokens) if text else []

    async def _encode_plain(self, text: str) -> list[int]:
        """The ids of a text that is not ours. llama.cpp finds user-defined tokens in it also without parse_special.

        Raises ModelError.
        """
        ids = await self._tokenize(text, special=False)
        suspects = [name for name in set(LOOKS_LIKE_A_TOKEN.findall(text)) if await self._added_id(name) in ids]
        if not suspects:
            return ids
        halves = split_inside(text, suspects, [(0, text)])
        ids = [i for _, half in halves for i in await self._tokenize(half, special=False)]
        if remaining := [name for name in suspects if await self._added_id(name) in ids]:
            raise ModelError(f"llama.cpp cannot encode {remaining[0]!r} as plain text")
        return ids

    async def _added_id(self, text: str) -> int | None:
        """The id of the token that a text is as a whole, None if it is no token."""
        ids = await self.encode(text, special=True)
        return ids[0] if len(ids) == 1 else None

    async def decode(self, ids: Sequence[int]) -> str:
        """See Tokenizer.decode. Costs one request of about a millisecond; single tokens are cached."""
        if len(ids) == 1 and ids[0] in self._texts:
            return self._texts[ids[0]]
        text = await self._endpoint.post("/detokenize", {"tokens": list(ids)}, parse=_read_content) if ids else ""
        if len(ids) == 1:
            self._texts[ids[0]] = text
        return text


def _read_tokens(reply: Any) -> list[int]:
    """The ids in a reply of /tokenize. Raises BadReply."""
    if not isinstance(reply, dict):
        raise BadReply(f"not a reply: {excerpt(reply)}")
    return read_ids(reply.get("tokens"))


def _read_content(reply: Any) -> str:
    """The text in a reply of /detokenize. Raises BadReply."""
    if not isinstance(reply, dict) or not isinstance(reply.get("content"), str):
        raise BadReply(f"not a reply: {excerpt(reply)}")
    return str(reply["content"])


def find_tokenizer(root: str) -> Tokenizer | None:
    """Load the tokenizer of a model folder or hub name (local copy, or the hub if reachable); None if unavailable."""
    folder = Path(root)
    if not folder.is_dir():
        try:
            from huggingface_hub import snapshot_download

            patterns = ["tokenizer*", "chat_template*", "generation_config.json"]
            folder = Path(snapshot_download(root, allow_patterns=patterns))
        except Exception as err:  # whatever the hub's client raises: without a tokenizer, chat mode is used
            say(f"{root}: tokenizer not available ({type(err).__name__}); using the chat route")
            return None
    try:
        return FolderTokenizer(folder)
    except (OSError, ValueError) as err:
        say(f"{root}: no usable tokenizer ({err}); using the chat route")
        return None
