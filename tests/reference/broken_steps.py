"""Broken steps, with which claims must fail."""

from typing import Any

import jax
import pytest

import lsgd_jax.optimizers.sending as sending
from lsgd_jax import broadcast_from_leader, elect_leader, leader_pull


def pull_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns the pull of `lsgd` round."""

    def mirrored(params: Any, *args: Any, **kwargs: Any) -> Any:
        return jax.tree.map(lambda x, z: 2 * x - z, params, broadcast_from_leader(params, *args, **kwargs))

    monkeypatch.setattr(sending, "broadcast_from_leader", mirrored)


def follow_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `lsgd` elect the worker with the highest score."""
    monkeypatch.setattr(sending, "elect_leader", lambda score, axis_name: elect_leader(-score, axis_name))


def push(*pulls: Any) -> Any:
    """`leader_pull` turned round."""
    pull = leader_pull(*pulls)

    def update(updates: Any, state: Any, params: Any, *, local_leader: Any, **extra: Any) -> Any:
        return pull.update(updates, state, params, local_leader=2 * params - local_leader, **extra)

    return pull._replace(update=update)
