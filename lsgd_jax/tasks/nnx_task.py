"""A task from a Flax NNX module."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lsgd_jax.data.sources import TrainingData
from lsgd_jax.engine.numerics import run_key
from lsgd_jax.tasks.batch_statistics import STATISTICS_SAMPLES, batch_norms, measured, measured_again
from lsgd_jax.tasks.evaluation import SampleMetric
from lsgd_jax.tasks.task import Task, sample_loss

ModuleMetric = Callable[[Any, Any], jax.Array]
"""`(module, batch) -> float[batch]`, a figure of each sample."""


def nnx_task(
    make: Callable[[nnx.Rngs], nnx.Module],
    loss: Callable[[Any, Any, nnx.Rngs], jax.Array],
    *,
    train: TrainingData,
    metrics: Mapping[str, ModuleMetric] | None = None,
    **more: Any,
) -> Task:
    """A task of training a Flax NNX module.

    Batch statistics are each worker's own; those of a center are measured again, over training data.
    Random streams that the module holds (of its dropout, say) are drawn anew in each step.

    A result's `(params, model_state)` are dictionaries, which `nnx.update(module, params, model_state)` puts into a
    module that `make` has made.

    Args:
      make: `rngs -> module`.
      loss: `(module, batch, rngs) -> float scalar`; the module is in training mode.
      train: where minibatches come from.
      metrics: by name, `(module, batch) -> float[batch]`; the module is in evaluation mode. By default
        the loss of each sample on its own, in evaluation mode.
      **more: further arguments of `Task`.
    """
    template = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphs = {}
    for mode in ("train", "eval"):
        getattr(template, mode)()
        graphs[mode] = nnx.graphdef(template)
    streams = nnx.state(template, nnx.RngState)

    def module_of(mode: str, params: Any, model_state: Any, key: jax.Array) -> Any:
        return nnx.merge(graphs[mode], nnx.State(params), nnx.State(model_state), _streams(streams, key))

    def init(key: jax.Array) -> tuple[Any, Any]:
        return _split(make(nnx.Rngs(key)))

    def loss_of(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        own_key, loss_key = jax.random.split(key)
        module = module_of("train", params, model_state, own_key)
        value = loss(module, batch, nnx.Rngs(loss_key))
        return value, _split(module)[1]

    def eval_loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        return loss(module_of("eval", params, model_state, key), batch, nnx.Rngs(key)), model_state

    def metric_of(metric: ModuleMetric) -> SampleMetric:
        return lambda params, model_state, batch: metric(module_of("eval", params, model_state, run_key(0)), batch)

    def state_of(params: Any, model_state: Any, batches: Any, key: jax.Array) -> Any:
        def forward(module: Any, batch: Any, key: jax.Array) -> None:
            augment_key, loss_key = jax.random.split(key)
            loss(module, batch if augment is None else augment(batch, augment_key), nnx.Rngs(loss_key))

        return _split(measured(lambda: module_of("train", params, model_state, key), forward, batches, key))[1]

    own = {name: metric_of(metric) for name, metric in metrics.items()} if metrics else {"loss": sample_loss(eval_loss)}
    some, augment = train.some, train.augment
    prepare_center = None
    if some is not None and batch_norms(template):
        prepare_center = measured_again(lambda: some(STATISTICS_SAMPLES), state_of)
    return Task(init, loss_of, train=train, metrics=own, prepare_center=prepare_center, **more)


def _split(module: nnx.Module) -> tuple[Any, Any]:
    """(params, model_state) as plain dictionaries, without random streams."""
    params, _, rest = nnx.state(module, nnx.Param, nnx.RngState, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def _streams(template: Any, key: jax.Array) -> Any:
    """Random streams that begin with a key."""
    leaves, tree = jax.tree.flatten(template)

    def begun(number: int, leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(key, number)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.unflatten(tree, [begun(number, leaf) for number, leaf in enumerate(leaves)])
