"""NNX modules as pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lsgd_jax.collectives.partition import gathered


class FunctionalModel(NamedTuple):
    """A model as pure functions of plain dictionaries of arrays.

    Attributes:
      init: `key -> (params, model_state)`.
      apply: `(params, model_state, images, key) -> (logits, model_state)`; `key`
        None evaluates.
      module: `(params, model_state) -> nnx.Module`, ready to call.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[[Any, Any, jax.Array, jax.Array | None], tuple[jax.Array, Any]]
    module: Callable[[Any, Any], nnx.Module]


def functional_model(make: Callable[[nnx.Rngs], nnx.Module], *, gathers: bool = False) -> FunctionalModel:
    """The functional form of the module that `make` makes, called as `module(images, rngs=None)`.

    Args:
      make: makes it.
      gathers: whether the module itself gathers its parameters, where a worker spans several devices.
    """

    def init(key: jax.Array) -> tuple[Any, Any]:
        return params_and_state(make(nnx.Rngs(key)))

    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def module(params: Any, model_state: Any) -> nnx.Module:
        whole = params if gathers else gathered(params)
        return nnx.merge(graph, nnx.State(whole), nnx.State(model_state))

    def apply(params: Any, model_state: Any, images: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        model: Any = module(params, model_state)
        logits = model(images, rngs=None if key is None else nnx.Rngs(dropout=key))
        return logits.astype(jnp.float32), params_and_state(model)[1]

    return FunctionalModel(init, apply, module)


def params_and_state(module: nnx.Module) -> tuple[Any, Any]:
    """(params, model_state) as plain dictionaries."""
    params, rest = nnx.state(module, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)
