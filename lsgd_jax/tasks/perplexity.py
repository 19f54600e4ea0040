"""How well a language model predicts a text."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lsgd_jax.cluster.processes import put
from lsgd_jax.data.text_batches import windows_in
from lsgd_jax.engine.topology import Topology
from lsgd_jax.models import FunctionalModel
from lsgd_jax.models.language import fresh_state

ROWS = 32


class EvaluationText(NamedTuple):
    """A text on the devices, in windows of contiguous rows: [windows, rows, length].

    Attributes:
      inputs: uint8, what the model reads.
      targets: uint8, the byte after each.
      real: bool, False for padding.
    """

    inputs: jax.Array
    targets: jax.Array
    real: jax.Array


def put_evaluation_text(text: np.ndarray, length: int, topology: Topology) -> EvaluationText:
    """Puts a text, uint8[bytes], where evaluation reads it, rows spread over all devices.

    Each byte but the first is a target once. Where rows begin does not depend on the
    devices: more rows of padding are added until they divide them.
    """
    windows = windows_in(len(text) - 1 + length, length)  # the last may be shorter
    rows = min(ROWS, windows)
    windows_in_row = -(-windows // rows)
    shares = topology.sample_shares
    shape = (-(-rows // shares) * shares, windows_in_row, length)

    def in_rows(array: np.ndarray) -> np.ndarray:
        return np.pad(array, (0, math.prod(shape) - len(array))).reshape(shape).swapaxes(0, 1)

    spread = NamedSharding(topology.mesh, PartitionSpec(None, topology.over_samples))
    arrays = (text[:-1], text[1:], np.ones(len(text) - 1, bool))
    return EvaluationText(*[put(in_rows(array), spread) for array in arrays])


def make_evaluate_text(model: FunctionalModel, topology: Topology) -> jax.stages.Wrapped:
    """Makes `evaluate(params, text) -> figures`, jitted.

    A model that carries a state starts from zeros at the beginning of each row and
    carries it from window to window. Others see no further back than their window.

    The figures: `loss`, the mean cross-entropy in nats a byte; `error`, the share of
    bytes that were not the likeliest, in [0, 1]; `perplexity`, e to the loss;
    `bits_per_byte`, the loss in bits.
    """

    @jax.jit
    @topology.traced
    def evaluate(params: Any, text: EvaluationText) -> dict[str, jax.Array]:
        def of_window(model_state: Any, window: EvaluationText) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            logits, model_state = model.apply(params, model_state, window.inputs.astype(jnp.int32), None)
            targets = window.targets.astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            # A model that is not finite is wrong everywhere, whatever argmax makes of NaN.
            right = (logits.argmax(-1) == targets) & jnp.isfinite(logits).all(-1)
            return model_state, (jnp.where(window.real, losses, 0).sum(), (window.real & ~right).sum())

        _, (losses, wrong) = lax.scan(of_window, fresh_state(model, text.inputs.shape[1]), text)
        count = text.real.sum()
        loss = losses.sum() / count
        return {
            "loss": loss,
            "error": wrong.sum() / count,
            "perplexity": jnp.exp(loss),
            "bits_per_byte": loss / math.log(2),
        }

    return evaluate
