"""Batch norm's moments of a model that no worker has trained, such as the center.

The running moments of batch norm belong to the parameters they were gathered with. Those
of a mean of parameters are no mean of moments; here they are measured, in one pass over
training data, as in the paper's experiments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lsgd_jax.cluster.processes import put
from lsgd_jax.engine.numerics import run_key
from lsgd_jax.engine.topology import Topology
from lsgd_jax.models.functional import FunctionalModel, params_and_state
from lsgd_jax.tasks.task import Candidate, PrepareCenter

# Training samples that they are measured on. Each moment is that of all pixels of a channel, so ten thousand images
# leave it an error far below that of a trained model.
STATISTICS_SAMPLES = 10_000


class Moments(NamedTuple):
    """Of one layer's inputs, by channel: float32[channels], or [batches, channels]."""

    mean: jax.Array
    var: jax.Array


def has_batch_statistics(model: FunctionalModel) -> bool:
    """Whether there is anything for `reestimate` to do; computes nothing."""
    return bool(batch_norms(model.module(*jax.eval_shape(model.init, jax.random.key(0)))))


def reestimate(
    model: FunctionalModel,
    params: Any,
    model_state: Any,
    batches: Any,
    key: jax.Array,
    inputs: Callable[[Any, jax.Array], jax.Array] = lambda batch, key: batch,
) -> Any:
    """Measures the moments of all batch-norm layers for given parameters.

    Each layer normalizes by its batch's own moments, and dropout drops, as in training.
    With mean μ_b and variance v_b of a layer's inputs in batch b, its moments become

        mean = avg μ_b,    var = avg (v_b + μ_b²) − mean²,

    those of all batches taken together (of the first such layer, that is, those of all its
    inputs at once). One batch at a time is in memory. What the model has before does
    not matter, be it finite or not.

    Args:
      model: the model; its compute dtype is that of the pass.
      params: its parameters.
      model_state: its state, for what is no batch statistic.
      batches: a pytree of arrays with the leading axes [batches, batch], such as raw images
        uint8[batches, batch, height, width, channels].
      key: the randomness of the pass, for `inputs` and dropout.
      inputs: `(batch, key) -> float32[batch, height, width, channels]`, the model's input
        from one batch, such as its random crops; by default the batch itself.

    Returns:
      The model state with those moments; the rest of it unchanged, and all of it for a
      model without batch norm.
    """
    if not batch_norms(model.module(params, model_state)):
        return model_state

    def forward(module: Any, batch: Any, key: jax.Array) -> None:
        input_key, dropout_key = jax.random.split(key)
        module(inputs(batch, input_key), rngs=nnx.Rngs(dropout=dropout_key))

    return params_and_state(measured(lambda: model.module(params, model_state), forward, batches, key))[1]


def measured(
    module_of: Callable[[], nnx.Module],
    forward: Callable[[nnx.Module, Any, jax.Array], Any],
    batches: Any,
    key: jax.Array,
) -> nnx.Module:
    """A module whose batch-norm layers have the moments of some batches, as `reestimate` says.

    Args:
      module_of: makes it, ready to train.
      forward: `(module, batch, key)`, calls it as in training.
      batches: a pytree of arrays with the leading axes [batches, batch].
      key: the randomness of the pass.
    """

    def of_batch(drawn: tuple[Any, jax.Array]) -> list[Moments]:
        module = module_of()
        for layer in batch_norms(module):
            layer.momentum = 0.0  # the running moments become the batch's own, once they are finite
            layer.mean[...] = layer.var[...] = jnp.zeros_like(layer.mean[...])
        forward(module, *drawn)
        return [Moments(layer.mean[...], layer.var[...]) for layer in batch_norms(module)]

    count = len(jax.tree.leaves(batches)[0])
    found = lax.map(of_batch, (batches, jax.random.split(key, count)))
    module = module_of()
    for layer, moments in zip(batch_norms(module), found, strict=True):
        mean = moments.mean.mean(0)
        layer.mean[...] = mean
        # The same as avg (v + μ²) − mean², without its cancellation.
        layer.var[...] = (moments.var + jnp.square(moments.mean - mean)).mean(0)
    return module


def measured_again(
    read: Callable[[], Any], state_of: Callable[[Any, Any, Any, jax.Array], Any]
) -> Callable[[Topology, int], PrepareCenter]:
    """Makes a task's `prepare_center`: a center's state is measured on training data, the same ones each time.

    A center without a state is left as it is, and nothing is read.

    Args:
      read: gives them, NumPy arrays with the leading axes [batches, batch]; called once, if at all.
      state_of: `(params, model_state, batches, key) -> model_state`.
    """

    def on(topology: Topology, seed: int) -> PrepareCenter:
        @functools.cache
        def batches() -> Any:
            return jax.tree.map(lambda x: put(x, topology.replicated), read())

        @jax.jit
        @topology.traced
        def prepare_center(center: Candidate, batches: Any) -> Candidate:
            params, model_state = center
            return params, state_of(params, model_state, batches, run_key(seed))

        return lambda center: prepare_center(center, batches()) if jax.tree.leaves(center[1]) else center

    return on


def batch_norms(module: nnx.Module) -> list[nnx.BatchNorm]:
    """Its batch-norm layers, in an order that is the same for all modules of a model."""
    return [layer for _, layer in nnx.iter_modules(module) if isinstance(layer, nnx.BatchNorm)]
