"""Divergences between a student and a teacher that is given by its k likeliest tokens at each position.

The distributions are over those k tokens and one bucket, the *rest*, for all other tokens: the teacher's rest is the
stored tail mass, the student's is the sum over its other tokens. All five divergences are f-divergences, so merging
tokens into a bucket can only lower them (data-processing inequality): the value is a lower bound of the
full-vocabulary one, and equals it where k is the vocabulary. The gradient determines the mass of the rest, not how it
is divided: the student's logits outside the k move together, each in proportion to its share of the rest.

Chunks. With N positions and a vocabulary of V the student's logits are N x V: 2,048 positions of Qwen2.5 are 1.2 GB
in fp32, and autograd keeps several such tensors. Here the head is applied to a few positions at a time, and as the loss
is one number, each chunk's gradient is computed in the forward pass and its logits are discarded: one fp32 buffer of
chunk x V is overwritten by exponentials and then by gradients. The derivative of the loss by a logit z_v, with g_b the
derivative by the log-probability of bucket b, q the student and s_v the share of token v in its bucket, is

    dL/dz_v = s_v * (g_b - q_b * sum of g)        (s_v = 1 for the k tokens)

which needs no other exponentials than the forward pass. So backward costs two matrix products and keeps only the
gradients of the hidden states (N x H) and, where the head is trained, of the head (V x H).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from agentsys.trainers.loading import TrainerError

Kind = Literal["forward_kl", "reverse_kl", "js", "skewed_forward_kl", "skewed_reverse_kl"]
KINDS: Final[tuple[Kind, ...]] = ("forward_kl", "reverse_kl", "js", "skewed_forward_kl", "skewed_reverse_kl")

CHUNK: Final = 256
"""Positions per chunk: 156 MB of fp32 logits at Qwen2.5's vocabulary (benchmarks/chunked_loss.py)."""
TAIL_FLOOR: Final = 1e-8
"""Lower bound of a stored tail, which rounding may have made zero, so that no divergence is infinite."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """One of KINDS between a teacher p and a student q; the mixtures are those of GKD (js) and DistiLLM (skewed).

    forward_kl         KL(p || q)
    reverse_kl         KL(q || p)
    js                 beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q
    skewed_forward_kl  KL(p || skew p + (1 - skew) q)
    skewed_reverse_kl  KL(q || skew q + (1 - skew) p)
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1

    def __post_init__(self) -> None:
        """Raises TrainerError for an unknown kind, or a mixture weight that is not between 0 and 1."""
        if self.kind not in KINDS:
            raise TrainerError(f"divergence '{self.kind}' is unknown; allowed: {', '.join(KINDS)}")
        for name in ("beta", "skew"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise TrainerError(f"--{name} {getattr(self, name)}: give a number between 0 and 1, both excluded")

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Nats at each position: (N, B) finite log-probabilities of teacher and student over B buckets -> (N,)."""
        match self.kind:
            case "forward_kl":
                return _kl(log_p, log_q)
            case "reverse_kl":
                return _kl(log_q, log_p)
            case "js":
                mixture = _log_mixture(log_p, log_q, self.beta)
                return self.beta * _kl(log_p, mixture) + (1 - self.beta) * _kl(log_q, mixture)
            case "skewed_forward_kl":
                return _kl(log_p, _log_mixture(log_p, log_q, self.skew))
            case "skewed_reverse_kl":
                return _kl(log_q, _log_mixture(log_q, log_p, self.skew))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight p + (1 - weight) q)."""
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log(1 - weight))


class Losses(NamedTuple):
    """Sums over the N positions, fp32 scalars in nats; only `loss` carries a gradient."""

    loss: Tensor
    divergence: Tensor
    cross_entropy: Tensor


@dataclass(frozen=True, slots=True)
class _LossTerms:
    """The divergence and the weights of a loss, and the chunk size."""

    divergence: Divergence
    weight: float
    ce_weight: float
    chunk: int


def divergence_from_topk(
    hidden: Tensor,
    head_weight: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    tail: Tensor,
    divergence: Divergence,
    *,
    weight: float = 1.0,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
    chunk: int = CHUNK,
) -> Losses:
    """weight x divergence + ce_weight x cross-entropy, summed over N positions, in one pass over the head.

    `hidden` (N, H) are the student's last hidden states in fp32, bf16 or fp16, and `head_weight` (V, H) its head, which
    is applied in the dtype of `hidden` and without a bias; either may require a gradient. `top_ids` (N, k),
    `top_logprobs` (N, k) and `tail` (N,) are the teacher's as trainers/teacher.py stores them, at temperature 1; they
    are normalized over the k + 1 buckets, as rounding has made their sum differ from one by about 1e-4. Ids must be
    below V: heads of one family differ only in padding rows, and the teacher's are never stored. `labels` (N,) are
    needed for the cross-entropy, which is 0 in the result without them. All positions have the same weight: leave out
    those that are not learned. Logits of at most `chunk` positions exist at a time.

    Raises TrainerError for shapes that do not fit, and RuntimeError for a second backward pass through one result.
    """
    _check_shapes(hidden, head_weight, top_ids, top_logprobs, tail, labels)
    if chunk < 1:
        raise TrainerError(f"chunk {chunk}: at least 1 position is needed")
    if labels is None and ce_weight:
        raise TrainerError(f"a cross-entropy weight of {ce_weight} needs labels")
    log_p = teacher_buckets(top_logprobs, tail, head_weight.shape[0])
    terms = _LossTerms(divergence, weight, ce_weight, chunk)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad)
    return Losses(*_Chunked.apply(hidden, head_weight, top_ids, log_p, labels, terms, needs_grad))


def teacher_buckets(top_logprobs: Tensor, tail: Tensor, width: int) -> Tensor:
    """The teacher's normalized log-probabilities over its k tokens and the rest, (N, k + 1) in fp32.

    If k is the vocabulary size `width`, there is no rest and the result is (N, k).
    """
    buckets = top_logprobs.float()
    if buckets.shape[1] < width:
        buckets = torch.cat([buckets, tail.float().clamp_min(TAIL_FLOOR).log()[:, None]], dim=1)
    return buckets.log_softmax(-1)


def plain_divergence(
    hidden: Tensor,
    head_weight: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    tail: Tensor,
    divergence: Divergence,
    *,
    weight: float = 1.0,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
) -> Losses:
    """The plain version of `divergence_from_topk`: all logits at once, gradients by autograd."""
    logits = (hidden @ head_weight.to(hidden.dtype).t()).float()
    log_p = teacher_buckets(top_logprobs, tail, logits.shape[1])
    total = logits.logsumexp(-1, keepdim=True)
    log_q = logits.gather(1, top_ids.long()) - total
    if log_q.shape[1] < logits.shape[1]:
        others = logits.scatter(1, top_ids.long(), -torch.inf)
        log_q = torch.cat([log_q, others.logsumexp(-1, keepdim=True) - total], dim=1)
    value = divergence(log_p, log_q).sum()
    ce = logits.new_zeros(()) if labels is None else torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return Losses(weight * value + ce_weight * ce, value.detach(), ce.detach())


class _Chunked(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head_weight: Tensor,
        top_ids: Tensor,
        log_p: Tensor,
        labels: Tensor | None,
        terms: _LossTerms,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_hidden = torch.empty_like(hidden) if needs_grad and hidden.requires_grad else None
        to_head = torch.zeros_like(head_weight) if needs_grad and head_weight.requires_grad else None
        sums = torch.zeros(2, dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            head = head_weight.to(hidden.dtype)
            for start in range(0, hidden.shape[0], terms.chunk):
                part = slice(start, start + terms.chunk)
                states = hidden[part]
                targets = None if labels is None else labels[part, None]
                values, slopes = _one_chunk(states, head, top_ids[part].long(), log_p[part], targets, terms, needs_grad)
                sums += values
                if slopes is None:
                    continue
                slopes = slopes.to(hidden.dtype)
                if to_hidden is not None:
                    torch.matmul(slopes, head, out=to_hidden[part])
                if to_head is not None:
                    _add_product(to_head, slopes, states)
        ctx.gradients = (to_hidden, to_head) if needs_grad else None
        divergence, cross_entropy = sums.unbind()
        ctx.mark_non_differentiable(divergence, cross_entropy)
        return terms.weight * divergence + terms.ce_weight * cross_entropy, divergence, cross_entropy

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("second backward pass through a loss whose gradients are freed; compute the loss again")
        scaled = [None if gradient is None else gradient.mul_(upstream) for gradient in ctx.gradients]
        ctx.gradients = None  # scaled in place: the head's gradient is too large to hold twice
        return (*scaled, None, None, None, None, None)


def _add_product(total: Tensor, slopes: Tensor, states: Tensor) -> None:
    """total (V, H) += slopes (C, V)^T states (C, H); a head in fp32 is summed in fp32."""
    if total.dtype == slopes.dtype:
        total.addmm_(slopes.t(), states)
    else:
        total += slopes.t() @ states


def _one_chunk(
    states: Tensor, head: Tensor, ids: Tensor, log_p: Tensor, labels: Tensor | None, terms: _LossTerms, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of divergence and cross-entropy (2,), and the gradient of the weighted loss by logit (C, V) if needed."""
    logits = (states @ head.t()).float()  # the one buffer of this size: overwritten twice below
    k = ids.shape[1]
    parts = logits.gather(1, ids)
    own = None if labels is None else logits.gather(1, labels)
    whole = k == logits.shape[1]
    mass = None if whole else _rest(logits, ids)
    if mass is not None:
        parts = torch.cat([parts, mass.log_sum], dim=1)
    total = parts.logsumexp(1, keepdim=True)
    log_q = parts - total
    value, slope = _value_and_slope(terms.divergence, log_p, log_q, needs_grad)
    ce = logits.new_zeros(()) if own is None else (total - own).sum()
    values = torch.stack([value, ce])
    if slope is None:
        return values, None
    q = log_q.exp()
    pull = terms.weight * (slope - q * slope.sum(1, keepdim=True)) + terms.ce_weight * q
    if mass is not None:
        logits.mul_(pull[:, k:] / mass.scale)
    logits.scatter_(1, ids, pull[:, :k])
    if labels is not None and terms.ce_weight:
        logits.scatter_add_(1, labels, torch.full_like(labels, -terms.ce_weight, dtype=logits.dtype))
    return values, logits


class _Rest(NamedTuple):
    """The student's mass outside the k tokens, (C, 1) each."""

    log_sum: Tensor
    scale: Tensor


def _rest(logits: Tensor, ids: Tensor) -> _Rest:
    """The log of the sum of exp over logits outside `ids`; `logits` become exp(z - max), 0 at `ids`.

    Summed directly: one minus the sum of the k loses all digits where the k have nearly all the mass.
    """
    logits.scatter_(1, ids, -torch.inf)
    peak = logits.amax(1, keepdim=True)
    scale = logits.sub_(peak).exp_().sum(1, keepdim=True)
    return _Rest(peak + scale.log(), scale)


def _value_and_slope(
    divergence: Divergence, log_p: Tensor, log_q: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """The divergence summed over positions and, if needed, its derivative by log_q (C, B) as free variables."""
    if not needs_grad:
        return divergence(log_p, log_q).sum(), None
    with torch.enable_grad():
        free = log_q.detach().requires_grad_()
        value = divergence(log_p, free).sum()
    return value.detach(), torch.autograd.grad(value, free)[0]


def _check_shapes(
    hidden: Tensor, head_weight: Tensor, top_ids: Tensor, top_logprobs: Tensor, tail: Tensor, labels: Tensor | None
) -> None:
    count, k = top_ids.shape
    fits = (
        hidden.shape == (count, head_weight.shape[1])
        and top_logprobs.shape == (count, k)
        and tail.shape == (count,)
        and (labels is None or labels.shape == (count,))
        and 1 <= k <= head_weight.shape[0]
    )
    if not fits:
        shapes = ", ".join(str(tuple(t.shape)) for t in (hidden, head_weight, top_ids, top_logprobs, tail))
        raise TrainerError(f"hidden (N, H), head (V, H), top ids and log-probabilities (N, k), tail (N): got {shapes}")
