"""The optimizer of the local steps, and what a method whose communications move parameters asks of it."""

from typing import Any

import jax
import optax


def movable(base: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A base optimizer, refused where it keeps parameters in its state.

    A communication moves a worker's parameters and not its base optimizer's state. One that
    keeps parameters there, as `optax.contrib.schedule_free` and `mechanize` do, takes the move
    back in its next steps, or measures from where the worker no longer is.

    Args:
      base: an optax optimizer. Its state may depend on the shapes of the parameters that it
        begins with, not on their values.

    Returns:
      The same, taking extra arguments. Its `init` raises ValueError if it is such a one.
    """
    base = optax.with_extra_args_support(base)

    def init(params: optax.Params) -> optax.OptState:
        state = base.init(params)
        if _depends_on_values(base, params):
            raise ValueError(
                "the base optimizer keeps parameters in its state (schedule_free does, say), and these would not move "
                "with the worker in a communication: use another base, such as optax.sgd or optax.adamw"
            )
        return state

    return optax.GradientTransformationExtraArgs(init, base.update)


def _depends_on_values(base: optax.GradientTransformation, params: optax.Params) -> bool:
    """Whether the state that a base begins with depends on the values of the parameters."""
    if not jax.tree.leaves(params):
        return False
    lanes: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)
    try:  # what depends on them would differ between lanes
        jax.eval_shape(jax.vmap(base.init, out_axes=None), lanes)
    except ValueError as error:
        if "out_axes" not in str(error):
            raise
        return True
    return False
