"""The optimizer of the local steps, as a method needs it whose communications move parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# States of optax's optimizers that compute where to go from parameters they keep, not from where the worker is.
ANCHORED = frozenset({"ScheduleFreeState", "MechanicState", "MadgradState", "COCOBState", "SAMState"})


def movable(base: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A base optimizer whose steps go on from wherever a communication has put the worker.

    A communication moves a worker's parameters and not its base optimizer's state. Optimizers that
    keep parameters there and compute the next ones from them, as `optax.contrib.schedule_free` does,
    would take the move back in their next steps.

    Args:
      base: an optax optimizer.

    Returns:
      The same, taking extra arguments. Its `init` raises ValueError for optax's `schedule_free`,
      `mechanize`, `madgrad`, `cocob` and `sam`, also inside of others. Where a gradient is None so
      that its base gives no update, the update is 0.
    """
    base = optax.with_extra_args_support(base)

    def init(params: optax.Params) -> optax.OptState:
        state = base.init(params)
        if anchored := sorted({_kind(part) for part in jax.tree.leaves(state, is_leaf=_is_anchored)} & ANCHORED):
            raise ValueError(
                f"the base optimizer computes from parameters that it keeps ({anchored[0]}), and these would not move "
                "with the worker in a communication: use another base, such as optax.sgd or optax.adamw"
            )
        return state

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = base.update(grads, state, params, **extra)
        return jax.tree.map(lambda x, u: jnp.zeros_like(x) if u is None else u, params, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _kind(state: Any) -> str:
    return type(state).__name__


def _is_anchored(state: Any) -> bool:
    return _kind(state) in ANCHORED
