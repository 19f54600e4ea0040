"""What the benchmarks of language models train: a model of bytes on a text that is random."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from workload import Training, compiled

import lsgd_jax
from lsgd_jax.data.text_batches import make_text_batches, put_text_on_devices
from lsgd_jax.engine.compiler import compiler_options
from lsgd_jax.engine.state import init_state
from lsgd_jax.engine.topology import Lanes, Topology
from lsgd_jax.engine.train_step import LONGEST_CALL, make_train_step
from lsgd_jax.models.language import LANGUAGE_MODELS, make_language_model
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.tasks.language import language_loss

VOCABULARY = 256  # bytes
BATCH_SIZE = 16  # windows
LENGTH = 128  # bytes of a window
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
METHODS = ("lsgd", "diloco")


class Sizes(NamedTuple):
    """Those of a language model."""

    width: int
    layers: int
    dropout: float


SIZES = {"transformer": Sizes(256, 4, 0.1), "lstm": Sizes(256, 2, 0.1)}


def base_optimizer() -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def method_of(name: str, period: int) -> DistributedOptimizer:
    """LSGD in one group, or DiLoCo with the outer optimizer of its paper."""
    if name == "lsgd":
        return lsgd_jax.lsgd(base_optimizer(), global_period=period)
    if name == "diloco":
        return lsgd_jax.diloco(base_optimizer(), optax.sgd(0.7, momentum=0.9, nesterov=True), period=period)
    raise ValueError(f"unknown method {name}: choose of {', '.join(METHODS)}")


def text_train_step(
    model: str,
    workers: int,
    *,
    method: str = "lsgd",
    compute_dtype: str = "float32",
    lanes: Lanes | None = None,
    devices: Sequence[jax.Device] | None = None,
    period: int = 16,
    length: int = LENGTH,
    size: int = 1_000_000,
) -> Training:
    """Compiles the train step of a language model with its `SIZES`, by default on one device.

    Args:
      model: one of `SIZES`.
      workers: how many, in one group.
      method: one of `METHODS`.
      compute_dtype: of products.
      lanes: how a device computes its workers.
      devices: those to use.
      period: local steps of a round.
      length: bytes of a window.
      size: bytes of the text.

    Raises:
      ValueError: if a round is longer than one call of the step.
    """
    if not 1 <= period <= LONGEST_CALL:
        raise ValueError(f"a round of {period} steps is no single call: use 1 to {LONGEST_CALL}")
    topology = Topology(1, workers, devices or jax.devices()[:1], lanes=lanes)
    communicated = method_of(method, period)
    functional = make_language_model(model, VOCABULARY, BATCH_SIZE, length, *SIZES[model], compute_dtype)
    step = make_train_step(
        communicated,
        topology,
        language_loss(functional),
        make_text_batches("iid", size, BATCH_SIZE, length, carries=LANGUAGE_MODELS[model].carries),
        compiler_options=compiler_options(compute_dtype, topology),
    )
    state = init_state(communicated, topology, functional.init, jax.random.key(0))
    return compiled(step, state, put_text_on_devices(random_text(size), topology, "iid", seed=0))


def parameter_count(model: str) -> int:
    """Parameters of one worker's model."""
    functional = make_language_model(model, VOCABULARY, BATCH_SIZE, LENGTH, *SIZES[model])
    params, _ = jax.eval_shape(functional.init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def random_text(size: int) -> np.ndarray:
    """uint8[size]."""
    return np.random.default_rng(0).integers(0, VOCABULARY, size, dtype=np.uint8)
