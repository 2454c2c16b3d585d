"""Families of embedding distributions, with one shared prior, and draws from them (papers file, section 4.2).

Every entry of an embedding is independent. `beta`: Beta(first, second). `gauss`: normal with mean `first` and standard
deviation `second`. `static` is no distribution: the embedding is `first` (a baseline). Positive parameters are
floor + softplus(raw): they cannot become negative, as they can in the released code. After each step every parameter
is moved back to within `spread` of the prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from agentsys.trainers.idfree.options import Task

Family = Literal["beta", "gauss", "static"]
FLOOR: Final = 1e-3
"""The lowest value of a positive parameter."""
_PRIORS: Final[dict[tuple[Family, Task], tuple[float, float]]] = {
    ("beta", "classify"): (2.0, 5.0),
    ("beta", "generate"): (5.0, 6.0),
    ("gauss", "classify"): (0.1, 0.2),
    ("gauss", "generate"): (0.0, 1.375),
    ("static", "classify"): (2 / 7, 0.0),
    ("static", "generate"): (5 / 11, 0.0),
}
"""The initial values of the released code; where it draws them at random, the mean: the prior is the same for all.

A static embedding begins at the mean of the Beta's."""


def _to_raw(value: Tensor) -> Tensor:
    return torch.log(torch.expm1((value - FLOOR).clamp(min=1e-6)))


def _to_value(raw: Tensor) -> Tensor:
    return FLOOR + functional.softplus(raw)


@dataclass(frozen=True)
class Design:
    """A family, its prior, and how far a user may be from it."""

    family: Family
    task: Task
    n_tokens: int
    width: int
    spread: float

    @property
    def prior(self) -> tuple[float, float]:
        """The shared parameters of a new user, the same for each entry."""
        return _PRIORS[self.family, self.task]

    @property
    def trains_second(self) -> bool:
        """The standard deviation is fixed for classification; the static embedding has none."""
        return self.family == "beta" or (self.family == "gauss" and self.task == "generate")

    def prior_parameters(self, users: int) -> tuple[Tensor, Tensor]:
        """The prior as the parameters of some users, each (users, n_tokens, width)."""
        shape = (users, self.n_tokens, self.width)
        return torch.full(shape, self.prior[0]), torch.full(shape, self.prior[1])

    def prior_mean(self) -> Tensor:
        """(n_tokens, width) the mean embedding of a new user."""
        first, second = self.prior_parameters(1)
        return mean(self.family, first, second)[0]

    def bounds(self, index: int) -> tuple[float, float]:
        """The lowest and highest value of a parameter: within the spread, and positive where it has to be."""
        low, high = self.prior[index] - self.spread, self.prior[index] + self.spread
        positive = self.family == "beta" or index == 1
        return (max(low, 2 * FLOOR) if positive else low), high


class UserParameters:
    """The parameters of some users as two tensors, (users, n_tokens, width) each, ready for an optimizer."""

    def __init__(self, design: Design, users: int) -> None:
        self.design = design
        values = design.prior_parameters(users)
        self.raw = [self._raw(index, value).requires_grad_(self._trains(index)) for index, value in enumerate(values)]

    def _trains(self, index: int) -> bool:
        return index == 0 or self.design.trains_second

    def _is_positive(self, index: int) -> bool:
        return self._trains(index) and (self.design.family == "beta" or index == 1)

    def _raw(self, index: int, value: Tensor) -> Tensor:
        return _to_raw(value) if self._is_positive(index) else value.clone()

    def values(self) -> tuple[Tensor, Tensor]:
        """First and second parameter, positive where they have to be."""
        first, second = (_to_value(r) if self._is_positive(index) else r for index, r in enumerate(self.raw))
        return first, second

    @property
    def trained(self) -> list[Tensor]:
        """The tensors for the optimizer."""
        return [raw for index, raw in enumerate(self.raw) if self._trains(index)]

    def move_to_spread(self) -> None:
        """Move each parameter back to within the spread of the prior. A static embedding has no bounds."""
        with torch.no_grad():
            if self.design.family == "static":
                return
            for index, raw in enumerate(self.raw):
                if self._trains(index):
                    low, high = (float(self._raw(index, torch.tensor(value))) for value in self.design.bounds(index))
                    raw.clamp_(low, high)


def mean(family: Family, first: Tensor, second: Tensor) -> Tensor:
    """The mean embedding."""
    return first / (first + second) if family == "beta" else first


def draw(family: Family, first: Tensor, second: Tensor, random: torch.Generator | None = None) -> Tensor:
    """One embedding for each distribution, with gradients to the parameters; all of them (..., n_tokens, width).

    A Beta is drawn from two Gammas, whose gradients torch has (implicit reparameterization).
    """
    if family == "static":
        return first
    if family == "gauss":
        return first + second * torch.randn(first.shape, generator=random, device=first.device)
    one, other = torch._standard_gamma(first, random), torch._standard_gamma(second, random)
    return one / (one + other).clamp(min=torch.finfo(first.dtype).tiny)


def draw_per_user(
    family: Family, first: Tensor, second: Tensor, draws: int, randoms: Sequence[torch.Generator]
) -> Tensor:
    """(users, draws, n_tokens, width) embeddings. Each user has its own generator: others do not change its draws."""
    if family == "static":
        return first[:, None].expand(-1, draws, -1, -1)
    many = [
        draw(family, one.expand(draws, -1, -1), other.expand(draws, -1, -1), random)
        for one, other, random in zip(first, second, randoms, strict=True)
    ]
    return torch.stack(many)
