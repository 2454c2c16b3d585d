"""The scripted policy in place of every model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.maths_policy import Author, Policy, pupil

Start = Callable[..., Policy]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """`start(author)` makes every model spec give a policy with this author."""

    def load_policy(author: Author = pupil, kind: type[Policy] = Policy, **settings: Any) -> Policy:
        model = kind(author=author, calls=[], **settings)
        for module in ("agentsys.systems", "agentsys.collect.fingerprint"):
            monkeypatch.setattr(f"{module}.load_model", lambda *spec, **about: model)
        return model

    return load_policy
