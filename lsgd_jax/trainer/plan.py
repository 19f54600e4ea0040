"""What a run does with its task and its method, in numbers."""

import dataclasses

import jax.numpy as jnp

from lsgd_jax.engine.schedules import CONSTANT, Schedule, make_factor


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run is, what happens on its way, and how its workers begin and step.

    Attributes:
      steps: local steps of each worker (of those that differ in speed, on average).
      seed: the run is a function of it.
      evaluation_period: local steps between two evaluations.
      checkpoint_period: local steps between two checkpoints.
      schedule: how the learning rate changes.
      same_init: whether all workers start from the same parameters.
      speeds: simulated, of each worker in steps a second, in the order of ranks; None for workers in step.
      asynchronous: whether each of several processes steps at its own pace.
      compute_dtype: of products, which the compiler is told of.
    """

    steps: int
    seed: int = 0
    evaluation_period: int = 1
    checkpoint_period: int = 1
    schedule: Schedule = CONSTANT
    same_init: bool = True
    speeds: tuple[float, ...] | None = None
    asynchronous: bool = False
    compute_dtype: str = "float32"


def what_changes(before: Plan, now: Plan, step: int) -> str | None:
    """What another number of steps does to the learning rate of a run that goes on at a step, in a line; or None."""
    if before.schedule.kind == "cosine" and before.steps != now.steps:
        then, soon = (float(make_factor(plan.schedule, plan.steps)(jnp.asarray(step))) for plan in (before, now))
        return (
            f"--steps was {before.steps}, is {now.steps}: the cosine ends there, "
            f"and the learning rate jumps from {then:.3g} to {soon:.3g} of its value"
        )
    if before.schedule.kind == "plateau" and before.evaluation_period != now.evaluation_period:
        return (
            f"evaluations were {before.evaluation_period} steps apart, are {now.evaluation_period}: "
            f"--plateau_patience={now.schedule.patience} counts them; --eval_every={before.evaluation_period} keeps it"
        )
    return None
