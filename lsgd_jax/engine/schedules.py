"""How the learning rate changes in a run.

A schedule is a factor on the updates of the base optimizer, the same for all workers:
a function of the step that they share. In the state of a base optimizer it would begin
again with each worker that is lost and starts again.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

Factor = Callable[[Any], jax.Array]
"""From the number of the step, counted from 0, to the factor on the learning rate."""

DROP = 0.1
SCHEDULES = ("constant", "drop", "plateau", "cosine")


def follow_factor() -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by `rate_factor`, an argument of `update`. It goes last in a base optimizer."""

    def update(
        updates: optax.Updates, state: Any, params: Any = None, *, rate_factor: Any = 1.0, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        del params, extra
        return jax.tree.map(lambda u: (rate_factor * u).astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def constant(step: jax.Array) -> jax.Array:
    """The schedule that changes nothing."""
    del step
    return jnp.ones([])


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the learning rate changes.

    Attributes:
      kind: "constant", "drop", "plateau" or "cosine".
      drop_at: of "drop": from each of these steps on a tenth of the rate before it.
      warmup_steps: in which it rises to its value, first.
      patience: of "plateau": a tenth of it after so many evaluations without improvement.
      learning_rate: its value, where the base optimizer has a learning rate of 1; else a factor on that.

    Raises:
      ValueError: for an unknown kind, or drops that cannot be.
    """

    kind: str = "constant"
    drop_at: tuple[int, ...] = ()
    warmup_steps: int = 0
    patience: int = 5
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.kind!r}: choose one of {', '.join(SCHEDULES)}")
        if not isinstance(self.drop_at, tuple | list):
            raise ValueError(f"drop_at is {self.drop_at!r}: give the steps as a tuple, such as (1000, 2000)")
        if (self.kind == "drop") != bool(self.drop_at):
            raise ValueError("the schedule 'drop' and the steps at which it drops go together: give both, or neither")
        if any(after <= before for before, after in itertools.pairwise((0, *self.drop_at))):
            raise ValueError(f"drops at {self.drop_at}: must be numbers of steps, each larger than the one before")


CONSTANT = Schedule()


def make_factor(schedule: Schedule, steps: int) -> Factor:
    """The factor of a schedule, warm-up included; what a plateau does comes on top.

    Warm-up is linear, in equal steps, the last of which reaches the full rate (Goyal et
    al. 2017, arXiv:1706.02677, section 2.2). The cosine falls from its end to 0 at the
    last step.

    Args:
      schedule: how the learning rate changes.
      steps: of the run.
    """
    warmup = schedule.warmup_steps
    decay: Callable[[Any], Any] = constant
    if schedule.kind == "drop":
        decay = optax.piecewise_constant_schedule(1.0, dict.fromkeys(schedule.drop_at, DROP))
    elif schedule.kind == "cosine":
        fall = optax.cosine_decay_schedule(1.0, max(1, steps - warmup))
        decay = lambda step: fall(jnp.maximum(step - warmup, 0))  # noqa: E731
    if warmup <= 1:
        return decay
    warm = optax.linear_schedule(1 / warmup, 1.0, warmup - 1)
    return lambda step: warm(step) * decay(step)


def start_plateau() -> ReduceLROnPlateauState:
    """The state of a run in which nothing has been seen yet: `scale` is 1."""
    return reduce_on_plateau().init(jnp.zeros([]))


def update_plateau(plateau: ReduceLROnPlateauState, validation_loss: float, patience: int) -> ReduceLROnPlateauState:
    """After an evaluation: a tenth of the rate where `patience` of them in a row brought no improvement."""
    # What is not finite is no improvement; as NaN it would become the average that is compared.
    value = jnp.nan_to_num(jnp.float32(validation_loss), nan=jnp.inf)
    _, plateau = reduce_on_plateau(DROP, patience).update(jnp.zeros([]), plateau, value=value)
    return plateau
