"""The model that reads a text and an embedding: any encoder or decoder of transformers.

Classification (papers file, section 4.2): the embedding follows the text, and a linear head reads the last position.
Generation: the embedding precedes the text, and the model's own head predicts the next words.

Where the text cannot see the embedding, its keys and values do not depend on the user: `read` computes them once, and
`measure` computes the embedding's positions alone. That holds for a causal decoder with the embedding after the text.
An encoder is masked for it, which is a departure (`--unmasked` is the published way). Elsewhere the whole input is
computed. Texts are padded on the right, with the embedding directly after their last token; with masks and positions
this is the same as the left padding of the released code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from agentsys.trainers.idfree.data import Data
from agentsys.trainers.idfree.options import Task
from agentsys.trainers.idfree.packing import Packing, additive, hiding_mask, pack, packed_mask, text_mask

TOKENS_PER_ROW: Final = 16
"""Tokens that one pass computes at most, per row that it may have."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts as token ids, padded on the right."""

    ids: Tensor
    """(T, L)"""
    lengths: Tensor
    """(T,)"""
    learned: Tensor
    """(T, L) the tokens to predict, for generation."""

    def order(self, texts: Tensor) -> Tensor:
        """The order of rows by the length of their text, and by text: passes have little padding."""
        return torch.argsort(self.lengths[texts] * len(self.lengths) + texts)

    def passes(self, texts: Tensor, most: int, *, cached: bool = False, shared: bool = True) -> Iterator[Tensor]:
        """Rows (R,) in parts that fit into memory: at most `most` rows and `most` x TOKENS_PER_ROW computed tokens.

        The tokens of a text are computed once for its rows if these are `shared`, and not at all if they are `cached`.
        """
        order = self.order(texts)
        begin, computed, last = 0, 0, -1
        lengths = self.lengths[texts[order]].tolist()
        for place, (text, length) in enumerate(zip(texts[order].tolist(), lengths, strict=True)):
            cost = 0 if cached or (shared and text == last) else length
            if place > begin and (place - begin >= most or computed + cost > most * TOKENS_PER_ROW):
                yield order[begin:place]
                begin, computed = place, 0
                cost = 0 if cached else length
            computed, last = computed + cost, text
        if len(order):
            yield order[begin:]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys and values of texts, per layer (T, heads, L, head width), and the row of each text in them."""

    layers: list[tuple[Tensor, Tensor]]
    row: Tensor
    """(all texts,) the row of a text, -1 where it has not been read."""

    @property
    def width(self) -> int:
        """The padded length of the texts."""
        return int(self.layers[0][0].shape[2])


@dataclass(frozen=True, slots=True)
class Measured:
    """Of each row, (R,): mean loss, correct predictions, their number, and the class (-1 for words)."""

    loss: Tensor
    correct: Tensor
    count: Tensor
    label: Tensor


class Backbone(nn.Module):
    """A network, its tokenizer, and the head of the classes or of the words."""

    def __init__(self, network: Any, tokenizer: Any, task: Task, n_tokens: int, classes: int, unmasked: bool) -> None:
        super().__init__()
        self.network, self.tokenizer, self.task, self.n_tokens = network, tokenizer, task, n_tokens
        self.body = network.base_model
        """The network without its head of words."""
        self.unmasked = unmasked
        self.causal = is_decoder(network.config)
        self.width = int(network.get_input_embeddings().embedding_dim)
        self.head = nn.Linear(self.width, classes) if task == "classify" else None
        self.whole = False
        """Compute the whole input where keys and values could be reused: for benchmarks."""
        self.packing: Packing | None = None
        """Where the rows of the current pass are, for the baseline with adapters; None while texts are read."""
        parameters = inspect.signature(self.body.forward).parameters
        self._cache = next((name for name in ("cache", "past_key_values") if name in parameters), "")
        padding = getattr(getattr(self.body, "embeddings", None), "padding_idx", None)
        self._first_position = 0 if padding is None else padding + 1  # RoBERTa counts from there

    @property
    def reuses(self) -> bool:
        """Whether keys and values of a text are computed once for all embeddings."""
        possible = self.task == "classify" and bool(self._cache) and (self.causal or not self.unmasked)
        return possible and not self.whole

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def key_bytes(self, length: int) -> int:
        """Memory of the keys and values of a text of this padded length."""
        config = self.network.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(config.num_hidden_layers * heads * head * 2 * 4 * length)

    def tokenize(self, texts: Sequence[str], max_length: int) -> Tokens:
        """Token ids of texts, truncated to `max_length`; all are learned. A text without a token becomes one pad."""
        rows = self.tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
        return self.pad([(ids, [1] * len(ids)) for ids in rows], max_length)

    def pad(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int) -> Tokens:
        """Ids and learned masks as tensors; rows longer than `max_length` are truncated."""
        padding = self.tokenizer.pad_token_id
        cut = [(list(ids[:max_length]) or [padding], list(mask[:max_length]) or [0]) for ids, mask in rows]
        width = max(len(ids) for ids, _ in cut)
        ids = torch.tensor([one + [padding] * (width - len(one)) for one, _ in cut])
        learned = torch.tensor([mask + [0] * (width - len(mask)) for _, mask in cut], dtype=torch.bool)
        return Tokens(ids, torch.tensor([len(one) for one, _ in cut]), learned)

    def read(self, tokens: Tokens, texts: Tensor, micro_batch: int = 0) -> Keys:
        """Keys and values of some texts (T,), with gradients where they are on. `micro_batch` 0: in one pass."""
        self.packing = None
        texts = texts[tokens.order(texts)]
        width = int(tokens.lengths[texts].max())
        parts: list[list[tuple[Tensor, Tensor]]] = []
        for some in texts.split(micro_batch or len(texts)):
            length = int(tokens.lengths[some].max())
            cache = DynamicCache()
            mask = text_mask(tokens.lengths[some], length).long()
            self.body(input_ids=tokens.ids[some, :length], attention_mask=mask, use_cache=True, **{self._cache: cache})
            space = (0, 0, 0, width - length)
            parts.append([(functional.pad(one.keys, space), functional.pad(one.values, space)) for one in cache.layers])
        layers = parts[0]
        if len(parts) > 1:
            layers = [
                (torch.cat([part[layer][0] for part in parts]), torch.cat([part[layer][1] for part in parts]))
                for layer in range(len(layers))
            ]
        row = torch.full((len(tokens.lengths),), -1)
        row[texts] = torch.arange(len(texts))
        return Keys(layers, row)

    def logits(self, tokens: Tokens, texts: Tensor, embeddings: Tensor, keys: Keys | None = None) -> Tensor:
        """(R, K) scores of the classes for rows with texts (R,) and embeddings (R, n_tokens, width).

        `keys` are those of the texts, if they have been read before.
        """
        assert self.head is not None
        if not self.reuses:
            return self.head(self._whole(tokens, texts, embeddings))
        keys = keys or self.read(tokens, texts.unique())
        packing = self.packing = pack(texts)
        chunks, n = packing.chunk_text, self.n_tokens
        lengths = tokens.lengths[chunks]
        width = int(lengths.max())
        cache = DynamicCache()
        for layer, (key, value) in enumerate(keys.layers):
            rows = keys.row[chunks]
            cache.update(key[rows, :, :width], value[rows, :, :width], layer)
        packed = embeddings.new_zeros(len(chunks) * packing.rows, n, self.width)
        packed = packed.index_put((packing.slot,), embeddings)
        position = (lengths[:, None] + torch.arange(n).repeat(packing.rows)) + self._first_position
        hidden = self.body(
            inputs_embeds=packed.view(len(chunks), packing.rows * n, self.width),
            attention_mask=additive(packed_mask(lengths, width, packing.rows, n, self.causal), packed.dtype),
            position_ids=position,
            **{self._cache: cache},
        ).last_hidden_state
        return self.head(hidden.reshape(-1, n, self.width)[packing.slot, -1])

    def _whole(self, tokens: Tokens, texts: Tensor, embeddings: Tensor) -> Tensor:
        """(R, width) the last position of text and embedding, with the whole input computed."""
        lengths, n = tokens.lengths[texts], self.n_tokens
        width = int(lengths.max())
        self.packing = Packing(texts, torch.arange(len(texts)), 1)
        words = self.network.get_input_embeddings()(tokens.ids[texts, :width])
        words = functional.pad(words, (0, 0, 0, n))
        rows, places = torch.arange(len(texts))[:, None], lengths[:, None] + torch.arange(n)
        words = words.index_put((rows, places), embeddings)
        if self.causal or self.unmasked:
            mask = text_mask(lengths + n, width + n).long()
        else:
            mask = additive(hiding_mask(lengths, width, n), words.dtype)
        hidden = self.body(inputs_embeds=words, attention_mask=mask).last_hidden_state
        return hidden[torch.arange(len(texts)), lengths + n - 1]

    def measure(
        self, tokens: Tokens, texts: Tensor, labels: Tensor, embeddings: Tensor, keys: Keys | None = None
    ) -> Measured:
        """Cross-entropy and correct predictions of each row; a class of -1 has no loss and is never correct."""
        if self.task == "generate":
            return self._measure_words(tokens, texts, embeddings)
        logits = self.logits(tokens, texts, embeddings, keys)
        loss = functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        predicted = logits.argmax(-1)
        return Measured(loss, (predicted == labels).long(), torch.ones_like(labels), predicted)

    def _measure_words(self, tokens: Tokens, texts: Tensor, embeddings: Tensor) -> Measured:
        """Mean loss over the learned tokens of each row; the first token is predicted from the embedding alone."""
        lengths, n = tokens.lengths[texts], self.n_tokens
        width = int(lengths.max())
        self.packing = Packing(texts, torch.arange(len(texts)), 1)
        ids, learned = tokens.ids[texts, :width], tokens.learned[texts, :width]
        words = torch.cat([embeddings, self.network.get_input_embeddings()(ids)], 1)
        hidden = self.body(inputs_embeds=words, attention_mask=text_mask(lengths + n, width + n).long())
        logits = self.network.get_output_embeddings()(hidden.last_hidden_state[:, n - 1 : -1][learned])
        loss = functional.cross_entropy(logits.float(), ids[learned], reduction="none")
        row = torch.arange(len(texts))[:, None].expand_as(learned)[learned]
        count = learned.sum(1)
        total = loss.new_zeros(len(texts)).index_add(0, row, loss) / count.clamp(min=1)
        correct = torch.zeros_like(count).index_add(0, row, (logits.argmax(-1) == ids[learned]).long())
        return Measured(total, correct, count, torch.full_like(count, -1))


def tokenize_data(backbone: Backbone, data: Data, max_length: int) -> Tokens:
    """The distinct texts of a split as tokens."""
    return backbone.pad(data.tokens, max_length) if data.tokens else backbone.tokenize(data.texts, max_length)


def is_decoder(config: Any) -> bool:
    """Whether a model reads from left to right only."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
