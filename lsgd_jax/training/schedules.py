"""How the learning rate changes in a run.

A schedule is a factor on the updates of the base optimizer, the same for all workers:
a function of the step that they share. In the state of a base optimizer it would begin
again with each worker that is lost and starts again.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import ReduceLROnPlateauState, reduce_on_plateau

from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import InputError

Factor = Callable[[jax.Array], jax.Array]
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


def make_factor(config: Config) -> Factor:
    """The schedule of the settings, warm-up included; what a plateau does comes on top.

    Warm-up is linear, in equal steps, the last of which reaches the full rate (Goyal et
    al. 2017, arXiv:1706.02677, section 2.2). The cosine falls from its end to 0 at the
    last step.

    Raises:
      InputError: for an unknown schedule, or drops that cannot be.
    """
    if config.schedule not in SCHEDULES:
        raise InputError(f"unknown --schedule={config.schedule}: choose one of {', '.join(SCHEDULES)}")
    drops = drop_steps(config)
    decay: Callable[[Any], Any] = constant
    if config.schedule == "drop":
        decay = optax.piecewise_constant_schedule(1.0, dict.fromkeys(drops, DROP))
    elif config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(1.0, max(1, config.steps - config.warmup_steps))
        decay = lambda step: fall(jnp.maximum(step - config.warmup_steps, 0))  # noqa: E731
    if config.warmup_steps <= 1:
        return decay
    warm = optax.linear_schedule(1 / config.warmup_steps, 1.0, config.warmup_steps - 1)
    return lambda step: warm(step) * decay(step)


def what_changes(before: Config, now: Config, step: int) -> str | None:
    """What another number of steps does to the learning rate of a run that goes on at a step, in a line; or None."""
    if before.schedule == "cosine" and before.steps != now.steps:
        then, soon = (float(make_factor(config)(jnp.asarray(step))) for config in (before, now))
        return (
            f"--steps was {before.steps}, is {now.steps}: the cosine ends there, "
            f"and the learning rate jumps from {then:.3g} to {soon:.3g} of its value"
        )
    if before.schedule == "plateau" and before.evaluation_period != now.evaluation_period:
        return (
            f"evaluations were {before.evaluation_period} steps apart, are {now.evaluation_period}: "
            f"--plateau_patience={now.plateau_patience} counts them; --eval_every={before.evaluation_period} keeps it"
        )
    return None


def drop_steps(config: Config) -> tuple[int, ...]:
    """The steps of --drop_at: each is the first with a tenth of the rate before it.

    Raises:
      InputError: if they are no rising whole numbers inside the run, or there are none where there should be.
    """
    if (config.schedule == "drop") != bool(config.drop_at):
        raise InputError("--schedule=drop and --drop_at=STEP,STEP go together: give both, or neither")
    try:
        steps = tuple(int(text) for text in config.drop_at.split(",")) if config.drop_at else ()
    except ValueError as error:
        raise InputError(f"--drop_at={config.drop_at}: must be whole numbers, separated by commas") from error
    if any(after <= before for before, after in itertools.pairwise((0, *steps))):
        raise InputError(f"--drop_at={config.drop_at}: must be numbers of steps, each larger than the one before")
    return steps


def start_plateau() -> ReduceLROnPlateauState:
    """The state of a run in which nothing has been seen yet: `scale` is 1."""
    return reduce_on_plateau().init(jnp.zeros([]))


def see(plateau: ReduceLROnPlateauState, validation_loss: float, patience: int) -> ReduceLROnPlateauState:
    """After an evaluation: a tenth of the rate where `patience` of them in a row brought no improvement."""
    # What is not finite is no improvement; as NaN it would become the average that is compared.
    value = jnp.nan_to_num(jnp.float32(validation_loss), nan=jnp.inf)
    _, plateau = reduce_on_plateau(DROP, patience).update(jnp.zeros([]), plateau, value=value)
    return plateau
