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
from lsgd_jax.data.text import Text
from lsgd_jax.data.text_batches import windows_in
from lsgd_jax.engine.topology import Topology
from lsgd_jax.models import FunctionalModel
from lsgd_jax.models.language import fresh_state

# Rows that are read at once: so many, or fewer where their logits would take more numbers than these (1 GiB).
ROWS, LOGITS = 32, 2**28


class EvaluationText(NamedTuple):
    """A text on the devices, in windows of contiguous rows: [windows, rows, length].

    Attributes:
      inputs: unsigned integers, what the model reads.
      targets: likewise, the token after each.
      real: bool, False for padding.
      bytes_per_token: float32[].
    """

    inputs: jax.Array
    targets: jax.Array
    real: jax.Array
    bytes_per_token: jax.Array


def put_evaluation_text(text: Text, length: int, vocabulary: int, topology: Topology) -> EvaluationText:
    """Puts a text where evaluation reads it, rows spread over all devices.

    Each token but the first is a target once. Where rows begin does not depend on the
    devices: more rows of padding are added until they divide them.
    """
    tokens = text.tokens
    windows = windows_in(len(tokens) - 1 + length, length)  # the last may be shorter
    rows = min(ROWS, windows, max(1, LOGITS // (length * vocabulary)))
    windows_in_row = -(-windows // rows)
    shares = topology.sample_shares
    shape = (-(-rows // shares) * shares, windows_in_row, length)

    def in_rows(array: np.ndarray) -> np.ndarray:
        return np.pad(array, (0, math.prod(shape) - len(array))).reshape(shape).swapaxes(0, 1)

    spread = NamedSharding(topology.mesh, PartitionSpec(None, topology.over_samples))
    return EvaluationText(
        inputs=put(in_rows(tokens[:-1]), spread),
        targets=put(in_rows(tokens[1:]), spread),
        real=put(in_rows(np.ones(len(tokens) - 1, bool)), spread),
        bytes_per_token=put(np.array(text.bytes / len(tokens), np.float32), topology.replicated),
    )


def make_evaluate_text(model: FunctionalModel, topology: Topology) -> jax.stages.Wrapped:
    """Makes `evaluate(params, text) -> figures`, jitted.

    A model that carries a state starts from zeros at the beginning of each row and
    carries it from window to window. Others see no further back than their window.

    The figures: `loss`, the mean cross-entropy in nats a token; `error`, the share of
    tokens that were not the likeliest, in [0, 1]; `perplexity`, e to the loss;
    `bits_per_byte`, the loss in bits, over the mean length of a token in UTF-8.
    """

    @jax.jit
    @topology.traced
    def evaluate(params: Any, text: EvaluationText) -> dict[str, jax.Array]:
        def of_window(model_state: Any, window: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            inputs, targets, real = window  # [rows, length] each
            logits, model_state = model.apply(params, model_state, inputs.astype(jnp.int32), None)
            targets = targets.astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            # A model that is not finite is wrong everywhere, whatever argmax makes of NaN.
            right = (logits.argmax(-1) == targets) & jnp.isfinite(logits).all(-1)
            return model_state, (jnp.where(real, losses, 0).sum(), (real & ~right).sum())

        windows = (text.inputs, text.targets, text.real)
        _, (losses, wrong) = lax.scan(of_window, fresh_state(model, text.inputs.shape[1]), windows)
        count = text.real.sum()
        loss = losses.sum() / count
        return {
            "loss": loss,
            "error": wrong.sum() / count,
            "perplexity": jnp.exp(loss),
            "bits_per_byte": loss / math.log(2) / text.bytes_per_token,
        }

    return evaluate
