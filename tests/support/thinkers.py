"""Reasoning models of four families behind a server in token mode: their turn tokens, templates and replies.

The tokenizer is a byte-level one, or the packaged Qwen2.5 vocabulary, with the added tokens of the family: their texts
and `special` flags are those of its published tokenizer. The templates do in short what the published ones do with
plain conversations; the published ones, as trl's package has them, are tested beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from tokenizers import AddedToken, Tokenizer

from tests.support.servers import toy_tokenizer

THOUGHT = "The kettle is a 水壶, and it sang."
ANSWER = "水壶唱起歌来。"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Family:
    """A family of reasoning models; `added` are texts and `special` flags of its added tokens."""

    name: str
    template: str
    added: tuple[tuple[str, bool], ...]
    end_of_turn: str
    open: str = "<think>"
    close: str = "</think>"
    opened_by_template: bool = False
    answer_start: str = "\n\n"
    trl: str = ""
    """Name of the published template in trl's package."""

    @property
    def thought(self) -> str:
        """What the model writes as its thought, with the tags that its template does not write."""
        opening = "" if self.opened_by_template else f"{self.open}\n"
        return f"{opening}{THOUGHT}\n{self.close}{self.answer_start}"


QWEN3 = Family(
    "qwen3",
    _CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    (
        ("<|endoftext|>", True),
        ("<|im_start|>", True),
        ("<|im_end|>", True),
        ("<think>", False),
        ("</think>", False),
        ("<tool_call>", False),
    ),
    "<|im_end|>",
    trl="qwen3",
)
R1_DISTILL = Family(
    "deepseek-r1-distill",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<｜User｜>{{ m.content }}{% else %}<｜Assistant｜>{{ m.content }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "<｜Assistant｜><think>\n",
    (
        ("<｜begin▁of▁sentence｜>", True),
        ("<｜end▁of▁sentence｜>", True),
        ("<｜User｜>", False),
        ("<｜Assistant｜>", False),
        ("<think>", False),
        ("</think>", False),
    ),
    "<｜end▁of▁sentence｜>",
    opened_by_template=True,
    trl="deepseek_r1_distill",
)
SMOLLM3 = Family(
    "smollm3",
    "<|im_start|>system\nReasoning Mode: {{ '/no_think' if enable_thinking is defined and not enable_thinking else "
    "'/think' }}\n\n{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|im_end|>\n"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'assistant' %}{% generation %}"
    "<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>user\n{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}",
    (("<|im_start|>", True), ("<|im_end|>", True), ("<think>", False), ("</think>", False)),
    "<|im_end|>",
)
GPT_OSS = Family(
    "gpt-oss",
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}\n\n# Valid channels: analysis, "
    "commentary, final.<|end|>{# <|channel|>analysis<|message|> is dropped from earlier turns #}{% if "
    "'<|channel|>analysis<|message|>' in messages[-1].content %}{{ raise_exception('tags') }}{% endif %}"
    "{% for m in messages %}<|start|>{{ 'developer' if m.role == 'system' else m.role }}"
    "{{ '<|channel|>final' if m.role == 'assistant' }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant",
    tuple((f"<|{name}|>", True) for name in ("start", "end", "message", "channel", "return", "call", "constrain")),
    "<|return|>",
    open="<|channel|>analysis<|message|>",
    close="<|end|>",
    answer_start="<|start|>assistant<|channel|>final<|message|>",
    trl="gptoss",
)
FAMILIES = (QWEN3, R1_DISTILL, SMOLLM3, GPT_OSS)


def family_tokenizer(family: Family, base: Path | None = None) -> Tokenizer:
    """The tokenizer of a family, on the vocabulary of a model folder or on single bytes."""
    content = (base / "tokenizer.json").read_text() if base else toy_tokenizer(True).to_str()
    plain = json.loads(content) | {"added_tokens": [], "post_processor": None}
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in family.added])
    return tokenizer


def write_folder(family: Family, folder: Path, tokenizer: Tokenizer, template: str = "") -> Path:
    """A model folder of the family, as vLLM's `root` names it."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": template or family.template, "eos_token": family.end_of_turn}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@dataclass
class Thinker:
    """A server with the completions routes of vLLM or llama.cpp, whose model is `write(prompt) -> completion`.

    It keeps to the limit, stops at stop strings and stop ids, and leaves special tokens out of its text, as vLLM does;
    `shows_special`: as llama.cpp does with the tokens of gpt-oss, it shows them.
    """

    family: Family
    tokenizer: Tokenizer
    dialect: str
    root: Path | None = None
    template: str = ""
    write: Callable[[str], str] = lambda prompt: ""
    shows_special: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    written: list[list[int]] = field(default_factory=list)
    """The ids of each completion, with the token that ended it."""
    address: str = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/props", self._props)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_post("/completion", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = "http://{}:{}".format(*self._runner.addresses[0][:2])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    @property
    def eos(self) -> int:
        """The id that ends a turn."""
        return int(self.tokenizer.token_to_id(self.family.end_of_turn))

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which added tokens are tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": self.dialect, "root": str(self.root)}]})

    async def _props(self, request: web.Request) -> web.Response:
        template = self.template or self.family.template
        return web.json_response({"chat_template": template, "bos_token": "", "eos_token": self.family.end_of_turn})

    async def _tokenize(self, request: web.Request) -> web.Response:
        """As llama.cpp: tokens that are not special are found with and without parse_special."""
        body = await request.json()
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.encode_special_tokens = not body["parse_special"]
        return web.json_response({"tokens": tokenizer.encode(body["content"], add_special_tokens=False).ids})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"content": self.decode((await request.json())["tokens"])})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        limit = body.get("n_predict") or body["max_tokens"]
        ids, finish = [*self.encode(self.write(self.decode(body["prompt"]))), self.eos], "stop"
        stops = {self.eos, *body.get("stop_token_ids", ())}
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids)) + 1
        ids = ids[:end]
        if len(ids) > limit:
            ids, finish = ids[:limit], "length"
        shown = ids[:-1] if finish == "stop" else ids
        text = str(self.tokenizer.decode(shown, skip_special_tokens=not self.shows_special))
        for stop in body.get("stop") or ():
            if stop in text:
                text, finish = text[: text.index(stop)], "stop"
                while stop in self.decode(ids[:-1]):
                    ids = ids[:-1]
        self.written.append(ids)
        logprobs = [-0.25] * len(ids)
        if self.dialect == "llamacpp":
            entries = [
                {"id": i, "token": "", "logprob": p, "top_logprobs": []} for i, p in zip(ids, logprobs, strict=True)
            ]
            kind = "limit" if finish == "length" else "eos"
            return web.json_response({
                "content": text, "tokens": ids, "stop": True, "stop_type": kind, "completion_probabilities": entries,
                "tokens_evaluated": len(body["prompt"]), "tokens_predicted": len(ids),
            })  # fmt: skip
        choice = {
            "index": 0, "text": text, "finish_reason": finish, "token_ids": ids, "prompt_token_ids": body["prompt"],
            "logprobs": {"token_logprobs": logprobs},
        }  # fmt: skip
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return web.json_response({"choices": [choice], "usage": usage})
