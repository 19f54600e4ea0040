"""What the benchmarks train: a model on images of CIFAR-10's shape, which are random."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lsgd_jax
from lsgd_jax.accounting.ahead_of_time import Problem
from lsgd_jax.data.images import Batch, Images, Preprocessing, augmented
from lsgd_jax.data.sampling import make_batches, put_on_devices
from lsgd_jax.engine.compiler import compiler_options
from lsgd_jax.engine.state import TrainState, init_state
from lsgd_jax.engine.topology import Lanes, Topology
from lsgd_jax.engine.train_step import LONGEST_CALL, make_train_step
from lsgd_jax.models import make_model
from lsgd_jax.tasks.classification import classification_loss

BATCH_SIZE = 128
CROP = 28
PREPROCESSING = Preprocessing(mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0), crop=CROP, flip=True)


class Training(NamedTuple):
    """A compiled train step of LSGD and what it needs.

    Attributes:
      step: the compiled `(state, data, steps) -> (state, report)`.
      state: the state of all workers before the first step; the step consumes it.
      data: the training set on the devices.
      compile_seconds: what compiling the step, already traced, took.
    """

    step: Any
    state: TrainState
    data: Any
    compile_seconds: float


def base_optimizer() -> optax.GradientTransformation:
    """Nesterov momentum and weight decay, as in the paper's runs."""
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.02, momentum=0.9, nesterov=True))


def train_step(
    model: str,
    groups: int,
    workers: int,
    *,
    compute_dtype: str = "float32",
    lanes: Lanes | None = None,
    devices: Sequence[jax.Device] | None = None,
    period: int = 16,
    samples: int = 4096,
) -> Training:
    """Compiles the train step of LSGD for a model on random images, by default on one device.

    Raises:
      ValueError: if a round is longer than one call of the step.
    """
    if not 1 <= period <= LONGEST_CALL:
        raise ValueError(f"a round of {period} steps is no single call: use 1 to {LONGEST_CALL}")
    topology = Topology(groups, workers, devices or jax.devices()[:1], lanes=lanes)
    learned = problem(model, compute_dtype, samples)
    method = lsgd_jax.lsgd(base_optimizer(), local_period=period, global_period=4 * period if groups > 1 else period)
    options = compiler_options(compute_dtype, topology)
    step = make_train_step(method, topology, learned.loss, learned.batches, compiler_options=options)
    state = init_state(method, topology, learned.init, jax.random.key(0))
    return compiled(step, state, put_on_devices(learned.data, topology, "iid", seed=0))


def problem(model: str, compute_dtype: str = "float32", samples: int = 4096) -> Problem:
    """What is trained, its images still on the host."""
    functional = make_model(model, (CROP, CROP, 3), 10, compute_dtype)
    batches = make_batches("iid", samples, BATCH_SIZE, augmented(PREPROCESSING))
    return Problem(functional.init, classification_loss(functional), batches, random_images(samples))


def compiled(step: jax.stages.Wrapped, state: TrainState, data: Any) -> Training:
    """Compiles a train step for what it is to be given."""
    lowered = step.lower(state, data, jnp.int32(1))
    start = time.perf_counter()
    return Training(lowered.compile(), state, data, time.perf_counter() - start)


def bare_gradients(model: str, *, batch_size: int = BATCH_SIZE, compute_dtype: str = "float32") -> Any:
    """A function of a number of steps that computes so many gradients of one model, and nothing else.

    Each gradient is taken where the one before, times almost nothing, has led, so that none can be left out.
    """
    topology = Topology(1, 1, jax.devices()[:1])
    functional = make_model(model, (CROP, CROP, 3), 10, compute_dtype)
    params, model_state = functional.init(jax.random.key(0))
    gradient = jax.grad(classification_loss(functional), has_aux=True)
    images, labels = random_images(batch_size)
    batch = Batch(jnp.asarray(images[:, :CROP, :CROP], jnp.float32) / 64 - 2, jnp.asarray(labels))

    def repeat(params: Any, batch: Batch, steps: jax.Array) -> Any:
        def one(i: jax.Array, params: Any) -> Any:
            grads, _ = gradient(params, model_state, batch, jax.random.key(i))
            return jax.tree.map(lambda x, g: x - 1e-9 * g, params, grads)

        return jax.lax.fori_loop(0, steps, one, params)

    options = compiler_options(compute_dtype, topology)
    compiled = jax.jit(repeat, compiler_options=options).lower(params, batch, jnp.int32(1)).compile()
    return lambda steps: compiled(params, batch, jnp.int32(steps))


def parameter_count(model: str) -> int:
    """Parameters of one worker's model."""
    params, _ = jax.eval_shape(make_model(model, (CROP, CROP, 3), 10).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(params))


def random_images(samples: int) -> Images:
    """uint8[samples, 32, 32, 3] and int32[samples]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8)
    return Images(images, rng.integers(0, 10, samples).astype(np.int32))


class Runner:
    """Goes on training, a number of steps at each call."""

    def __init__(self, training: Training) -> None:
        self._training, self._state = training, training.state

    @property
    def state(self) -> TrainState:
        """All workers now."""
        return self._state

    def __call__(self, steps: int) -> Any:
        self._state, report = self._training.step(self._state, self._training.data, jnp.int32(steps))
        return jax.block_until_ready((self._state.step, report))
