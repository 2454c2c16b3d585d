"""Text and embedding in a model: what the text sees, and that reused keys and values change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentsys.trainers.idfree.backbone import load_backbone
from agentsys.trainers.idfree.network import Backbone, Tokens
from agentsys.trainers.idfree.packing import hiding_mask, pack, packed_mask
from agentsys.trainers.loading import TrainerError

TEXTS = ("the cat", "a much longer text about a dog and an owl", "fig")


@pytest.fixture(params=["encoder", "decoder"])
def backbone(request: Any) -> Backbone:
    return load_backbone(str(request.getfixturevalue(request.param)), "classify", 2, 3, max_length=32).eval()


def rows(backbone: Backbone) -> tuple[Tokens, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    embeddings = torch.rand(7, 2, backbone.width, generator=random, requires_grad=True)
    return backbone.tokenize(TEXTS, 32), torch.tensor([0, 1, 1, 2, 1, 0, 1]), embeddings


def test_reused_keys_give_the_scores_and_gradients_of_the_whole_input(backbone: Backbone) -> None:
    tokens, texts, embeddings = rows(backbone)
    assert backbone.reuses
    keys = backbone.read(tokens, torch.arange(3), micro_batch=2)
    reused = [backbone.logits(tokens, texts, embeddings), backbone.logits(tokens, texts, embeddings, keys)]
    backbone.whole = True
    whole = backbone.logits(tokens, texts, embeddings)
    gradients = [torch.autograd.grad(one.square().sum(), embeddings)[0] for one in (*reused, whole)]
    assert whole.std() > 0.01 and gradients[2].abs().max() > 1e-4
    for one, gradient in zip(reused, gradients, strict=False):
        assert torch.allclose(one, whole, atol=1e-5) and torch.allclose(gradient, gradients[2], atol=1e-5)


def test_a_row_depends_on_its_own_embedding_alone(backbone: Backbone) -> None:
    tokens, texts, embeddings = rows(backbone)
    before = backbone.logits(tokens, texts, embeddings).detach()
    changed = embeddings.detach().clone()
    changed[1] = torch.rand(2, backbone.width, generator=torch.Generator().manual_seed(1))
    after = backbone.logits(tokens, texts, changed).detach()
    same = torch.arange(7) != 1
    assert torch.allclose(before[same], after[same], atol=1e-6) and not torch.allclose(before[1], after[1], atol=1e-4)


def test_an_unmasked_encoder_computes_the_whole_input_and_its_text_sees_the_embedding(encoder: Path) -> None:
    masked = load_backbone(str(encoder), "classify", 1, 2, max_length=32).eval()
    unmasked = load_backbone(str(encoder), "classify", 1, 2, unmasked=True, max_length=32).eval()
    assert masked.reuses and not unmasked.reuses
    tokens, texts = masked.tokenize(TEXTS, 32), torch.arange(3)
    embeddings = torch.rand(3, 1, masked.width)
    assert not torch.allclose(
        masked.logits(tokens, texts, embeddings), unmasked.logits(tokens, texts, embeddings), atol=1e-5
    )


def test_words_are_predicted_with_the_embedding_before_the_text(decoder: Path) -> None:
    backbone = load_backbone(str(decoder), "generate", 3, max_length=32).eval()
    assert not backbone.reuses and backbone.head is None
    tokens = backbone.pad([([5, 6, 7, 8], [0, 0, 1, 1]), ([9], [1]), ([4, 5], [0, 0])], 32)
    measured = backbone.measure(tokens, torch.arange(3), torch.zeros(3).long(), torch.rand(3, 3, backbone.width))
    assert measured.count.tolist() == [2, 1, 0] and measured.loss[2] == 0 and measured.correct[2] == 0
    assert (measured.loss[:2] > 0).all() and measured.label.tolist() == [-1, -1, -1]


def test_a_class_unseen_in_training_is_never_correct(backbone: Backbone) -> None:
    tokens, texts, embeddings = rows(backbone)
    measured = backbone.measure(tokens, texts, torch.full((7,), -1), embeddings)
    assert measured.correct.sum() == 0 and measured.loss.sum() == 0


def test_packing_gives_each_row_a_place_of_its_own_in_a_chunk_of_its_text() -> None:
    texts = torch.tensor([4, 1, 4, 4, 1, 4, 4, 9])
    packing = pack(texts)
    assert packing.rows == 3 and packing.slot.unique().numel() == len(texts)
    assert packing.chunk_text[packing.slot // packing.rows].equal(texts)
    assert packing.row_of_place()[packing.slot].equal(torch.arange(len(texts)))


def test_masks_hide_the_embedding_from_the_text_and_rows_from_each_other() -> None:
    hidden = hiding_mask(torch.tensor([2]), 3, 1)[0, 0].int().tolist()
    assert hidden == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    packed = packed_mask(torch.tensor([1]), 2, 2, 2, causal=True)[0, 0].int().tolist()
    assert packed == [[1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]]


def test_passes_cover_all_rows_and_bound_rows_and_tokens(encoder: Path) -> None:
    backbone = load_backbone(str(encoder), "classify", 1, 2, max_length=32)
    tokens = backbone.tokenize([*TEXTS] * 4, 32)
    texts = torch.arange(12).repeat(5)
    passes = list(tokens.passes(texts, 4))
    assert torch.cat(passes).sort().values.equal(torch.arange(60)) and max(map(len, passes)) <= 4
    whole = list(tokens.passes(texts, 8, shared=False))
    assert max(int(tokens.lengths[texts[one]].sum()) for one in whole) <= 8 * 16
    assert list(tokens.passes(texts[:0], 4)) == []


@pytest.mark.parametrize(
    ("task", "kind", "length", "message"),
    [
        ("generate", "encoder", 16, "an encoder predicts no next words; give a decoder, or --task classify"),
        ("classify", "encoder", 500, "has 128 positions; give at most 127"),
    ],
)
def test_a_model_that_cannot_do_the_task_is_refused(
    task: Any, kind: str, length: int, message: str, request: Any
) -> None:
    with pytest.raises(TrainerError, match=message):
        load_backbone(str(request.getfixturevalue(kind)), task, 1, 2, max_length=length)
