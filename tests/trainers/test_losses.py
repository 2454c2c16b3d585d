"""Losses against the formulas written out over the whole vocabulary, and the memory they really use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agentsys.trainers.loading import TrainerError
from agentsys.trainers.losses import (
    KINDS,
    TAIL_FLOOR,
    Divergence,
    Kind,
    Losses,
    divergence_from_topk,
    plain_divergence,
    teacher_buckets,
)

N, H, V = 13, 24, 97


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


BETA, SKEW = 0.3, 0.1
FORMULAS: dict[Kind, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "js": lambda p, q: BETA * kl(p, BETA * p + (1 - BETA) * q) + (1 - BETA) * kl(q, BETA * p + (1 - BETA) * q),
    "skewed_forward_kl": lambda p, q: kl(p, SKEW * p + (1 - SKEW) * q),
    "skewed_reverse_kl": lambda p, q: kl(q, (1 - SKEW) * p + SKEW * q),
}
"""The formulas of GKD and DistiLLM: p the teacher's probabilities, q the student's."""


class Case:
    """A student (hidden states and head) and a teacher's distribution, of which only the top k are given."""

    def __init__(self, k: int, *, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 2.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(N, H, generator=draw, dtype=dtype).requires_grad_()
        self.head = torch.randn(V, H, generator=draw, dtype=dtype).mul_(spread / H**0.5).requires_grad_()
        self.log_p = (torch.randn(N, V, generator=draw, dtype=dtype) * spread).log_softmax(-1)
        self.labels = torch.randint(V, (N,), generator=draw)
        top = self.log_p.topk(k)
        self.ids, self.top = top.indices.int(), top.values
        self.tail = self.log_p.scatter(1, top.indices, -torch.inf).exp().sum(1)

    def given(self, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        return self.hidden[rows], self.head, self.ids[rows], self.top[rows], self.tail[rows]

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        return torch.autograd.grad(loss, (self.hidden, self.head))


def near(a: Tensor, b: Tensor, within: float = 1e-5) -> bool:
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= within * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
def test_with_k_the_vocabulary_it_is_the_whole_formula(kind: Kind) -> None:
    case = Case(k=V)
    losses = divergence_from_topk(*case.given(), Divergence(kind, BETA, SKEW), chunk=5)
    logits = case.hidden.double() @ case.head.double().t()
    exact = FORMULAS[kind](case.log_p.double().exp(), logits.softmax(-1))
    assert exact > 0.5 and near(losses.loss, exact)
    for ours, theirs in zip(case.gradients(losses.loss), case.gradients(exact), strict=True):
        assert theirs.abs().max() > 0.01 and near(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 8, V - 1])
def test_with_fewer_it_is_the_formula_over_the_tokens_and_one_bucket(kind: Kind, k: int) -> None:
    case = Case(k=k)
    losses = divergence_from_topk(*case.given(), Divergence(kind, BETA, SKEW), chunk=5)
    q = (case.hidden.double() @ case.head.double().t()).softmax(-1)
    outside = torch.ones(N, V).scatter(1, case.ids.long(), 0.0).bool()

    def merged(full: Tensor) -> Tensor:
        return torch.cat([full.gather(1, case.ids.long()), (full * outside).sum(1, keepdim=True)], dim=1)

    exact = FORMULAS[kind](merged(case.log_p.double().exp()), merged(q))
    assert near(losses.loss, exact)
    for ours, theirs in zip(case.gradients(losses.loss), case.gradients(exact), strict=True):
        assert near(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_top_k_bound_the_divergence_from_below(kind: Kind) -> None:
    values = [divergence_from_topk(*Case(k=k).given(), Divergence(kind)).loss.item() for k in (1, 4, 16, 64, V)]
    assert values == sorted(values) and values[0] < 0.7 * values[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 4, N, 10 * N])
def test_chunks_change_nothing(kind: Kind, chunk: int) -> None:
    case, divergence = Case(k=6), Divergence(kind)
    mix: dict[str, Any] = {"weight": 0.7, "labels": case.labels, "ce_weight": 0.3}
    ours = divergence_from_topk(*case.given(), divergence, **mix, chunk=chunk)
    plain = plain_divergence(*case.given(), divergence, **mix)
    assert all(near(a, b) for a, b in zip(ours, plain, strict=True))
    upstream = 0.25
    pairs = zip(case.gradients(ours.loss * upstream), case.gradients(plain.loss * upstream), strict=True)
    assert all(near(a, b) for a, b in pairs)


def test_cross_entropy_in_the_same_pass() -> None:
    case = Case(k=6)
    logits = case.hidden @ case.head.t()
    exact = torch.nn.functional.cross_entropy(logits, case.labels, reduction="sum")
    alone = divergence_from_topk(*case.given(), Divergence(), weight=0.0, labels=case.labels, ce_weight=1.0, chunk=4)
    assert near(alone.loss, exact) and near(alone.cross_entropy, exact)
    assert all(near(a, b) for a, b in zip(case.gradients(alone.loss), case.gradients(exact), strict=True))
    both = divergence_from_topk(*case.given(), Divergence(), weight=0.9, labels=case.labels, ce_weight=0.1)
    assert near(both.loss, 0.9 * both.divergence + 0.1 * both.cross_entropy)
    assert not both.divergence.requires_grad and not both.cross_entropy.requires_grad


def test_the_loss_of_a_batch_is_the_sum_over_its_positions() -> None:
    case = Case(k=6)
    whole = divergence_from_topk(*case.given(), Divergence("js")).loss
    parts = sum(divergence_from_topk(*case.given(slice(t, t + 1)), Divergence("js")).loss for t in range(N))
    assert isinstance(parts, Tensor) and near(whole, parts)
    assert all(near(a, b) for a, b in zip(case.gradients(whole), case.gradients(parts), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_sure_keeps_its_small_rest(kind: Kind) -> None:
    """Rest masses around 1e-12: one minus the sum of the k would be noise or negative in fp32."""
    case = Case(k=3, spread=0.5)
    with torch.no_grad():
        case.head.mul_(0.1)
        case.head[case.ids[0].long()] += 30 * case.hidden[0] / case.hidden[0].square().sum()
    one = [part[:1] if i != 1 else part for i, part in enumerate(case.given())]
    student = (case.hidden[0].double() @ case.head.double().t()).softmax(-1)
    rest = 1.0 - student[case.ids[0].long()].sum()
    assert 0 < rest < 1e-10
    in_double = [part.double() if part.is_floating_point() else part for part in one]
    logits = in_double[0] @ in_double[1].t()
    outside = logits.scatter(1, case.ids[:1].long(), -torch.inf).logsumexp(-1, keepdim=True)
    log_q = torch.cat([logits.gather(1, case.ids[:1].long()), outside], 1).log_softmax(-1)
    log_p = teacher_buckets(one[3], one[4], V).double()
    assert near(divergence_from_topk(*one, Divergence(kind)).loss, Divergence(kind)(log_p, log_q).sum(), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_that_rounding_made_zero_is_finite(kind: Kind) -> None:
    case = Case(k=6)
    case.tail.zero_()
    losses = divergence_from_topk(*case.given(), Divergence(kind))
    assert losses.loss.isfinite() and all(g.isfinite().all() for g in case.gradients(losses.loss))
    assert teacher_buckets(case.top, case.tail, V)[:, -1].exp().max() < 10 * TAIL_FLOOR


def test_stored_in_fp16_the_teacher_is_still_a_distribution() -> None:
    case = Case(k=8)
    stored = teacher_buckets(case.top.half(), case.tail, V)
    assert near(stored.exp().sum(-1), torch.ones(N), 1e-6)
    exact = divergence_from_topk(*case.given(), Divergence()).loss
    case.top = case.top.half()
    rounded = divergence_from_topk(*case.given(), Divergence()).loss
    assert rounded != exact and abs(rounded / exact - 1) < 1e-3


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_one() -> None:
    case = Case(k=6)
    plain = plain_divergence(*case.given(), Divergence())
    expected, _ = case.gradients(plain.loss)
    case.head.requires_grad_(False)
    divergence_from_topk(*case.given(), Divergence()).loss.backward()
    assert case.head.grad is None and case.hidden.grad is not None and near(case.hidden.grad, expected)


def test_without_gradients_none_are_made() -> None:
    case = Case(k=6)
    with torch.no_grad(), Record() as record:
        losses = divergence_from_topk(*case.given(), Divergence(), chunk=4)
    assert not losses.loss.requires_grad
    assert "aten.scatter_.src" not in record.names


def test_bf16_hidden_states_and_an_fp32_head() -> None:
    """As under autocast: the product is in bf16, the head's gradient is summed in fp32."""
    case = Case(k=6)
    exact = divergence_from_topk(*case.given(), Divergence()).loss
    expected, expected_head = case.gradients(exact)
    low = case.hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = divergence_from_topk(low, *case.given()[1:], Divergence(), chunk=4).loss
    assert loss.dtype == torch.float32 and loss != exact and near(loss, exact, 0.02)
    to_hidden, to_head = torch.autograd.grad(loss, (low, case.head))
    assert to_hidden.dtype == torch.bfloat16 and to_head.dtype == torch.float32
    assert near(to_hidden.float(), expected, 0.03) and near(to_head, expected_head, 0.03)


class Record(TorchDispatchMode):
    """Records the name of every operation and the size of its largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(str(func))
        sizes = [part.untyped_storage().nbytes() // 4 for part in tree_leaves(result) if isinstance(part, Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_no_logits_of_more_than_a_chunk_exist_forward_or_backward(kind: Kind) -> None:
    count, width, size, chunk = 64, 2000, 4, 8
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, size, generator=draw).requires_grad_()
    head = torch.randn(width, size, generator=draw).requires_grad_()
    top = torch.randn(count, width, generator=draw).log_softmax(-1).topk(4)
    tail = 1 - top.values.exp().sum(1)
    labels = torch.randint(width, (count,), generator=draw)

    def run(loss: Callable[..., Losses], **settings: Any) -> int:
        arguments = (hidden, head, top.indices, top.values, tail, Divergence(kind))
        with Record() as record:
            loss(*arguments, labels=labels, ce_weight=0.5, **settings).loss.backward()
        return record.largest

    assert run(plain_divergence) == count * width
    assert run(divergence_from_topk, chunk=chunk) == chunk * width


def test_a_second_backward_pass_is_refused() -> None:
    case = Case(k=6)
    loss = divergence_from_topk(*case.given(), Divergence()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_no_positions_are_no_loss() -> None:
    case = Case(k=6)
    losses = divergence_from_topk(*case.given(slice(0, 0)), Divergence(), labels=case.labels[:0], ce_weight=1.0)
    to_hidden, to_head = case.gradients(losses.loss)
    assert losses.loss == 0 and not to_hidden.any() and not to_head.any()


def test_bad_arguments_get_one_line() -> None:
    case = Case(k=6)
    with pytest.raises(TrainerError, match="'tv' is unknown; allowed: forward_kl"):
        Divergence("tv")  # type: ignore[arg-type]
    with pytest.raises(TrainerError, match=r"--beta 1\.0: give a number between 0 and 1"):
        Divergence("js", beta=1.0)
    with pytest.raises(TrainerError, match="needs labels"):
        divergence_from_topk(*case.given(), Divergence(), ce_weight=0.5)
    with pytest.raises(TrainerError, match=r"got \(13, 24\), \(97, 24\), \(13, 6\), \(13, 6\), \(12,\)"):
        divergence_from_topk(*case.given()[:-1], case.tail[1:], Divergence())
    with pytest.raises(TrainerError, match="chunk 0"):
        divergence_from_topk(*case.given(), Divergence(), chunk=0)
