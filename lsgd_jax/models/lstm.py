"""A recurrent language model: an LSTM with tied embeddings."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import zeros

from lsgd_jax.models import Dtype
from lsgd_jax.models.dropout import Dropout


class Carry(nnx.Variable):
    """What a layer remembers of the text so far: not trained."""


class LstmLayer(nnx.Module):
    """One layer. Gates lie side by side in the order input, forget, cell, output, with one bias vector."""

    def __init__(self, width: int, batch_size: int, dtype: Dtype, *, rngs: nnx.Rngs) -> None:
        init = _uniform(1 / math.sqrt(width))
        self.input = nnx.Param(init(rngs.params(), (width, 4 * width)))
        self.recurrent = nnx.Param(init(rngs.params(), (width, 4 * width)))
        # A forget gate that starts open (Jozefowicz, Zaremba, Sutskever 2015).
        self.bias = nnx.Param(jnp.zeros(4 * width).at[width : 2 * width].set(1.0))
        self.hidden = Carry(jnp.zeros((batch_size, width)))
        self.cell = Carry(jnp.zeros((batch_size, width)))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32[length, batch, width] to the same; goes on from the carry, and leaves it where it ends."""
        # Of all time steps in one product: only what depends on the step before stays in the loop.
        inputs = _product(x, self.input[...], self.dtype) + self.bias[...]
        # Truncated back-propagation: gradients end where the window begins.
        start = lax.stop_gradient((self.hidden[...], self.cell[...]))
        outputs, cell = recur(self.dtype, inputs, self.recurrent[...], start)
        self.hidden.set_value(outputs[-1])
        self.cell.set_value(cell)
        return outputs


State = tuple[jax.Array, jax.Array]
"""(hidden, cell), float32[batch, width] each."""


def over_time(dtype: Dtype, inputs: jax.Array, recurrent: jax.Array, start: State) -> tuple[jax.Array, jax.Array]:
    """The recurrence of a layer.

    Args:
      dtype: of the products with the weights.
      inputs: float32[length, batch, 4 * width], what enters the gates from below.
      recurrent: the weights, float32[width, 4 * width].
      start: before the first time step.

    Returns:
      (outputs, cell): float32[length, batch, width], and float32[batch, width] at the end.
    """

    def step(carry: State, at: jax.Array) -> tuple[State, jax.Array]:
        hidden, cell = carry
        i, f, g, o = jnp.split(at + _product(hidden, recurrent, dtype), 4, axis=-1)
        cell = nnx.sigmoid(f) * cell + nnx.sigmoid(i) * jnp.tanh(g)
        hidden = nnx.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    (_, cell), outputs = lax.scan(step, start, inputs)
    return outputs, cell


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(dtype: Dtype, inputs: jax.Array, recurrent: jax.Array, start: State) -> tuple[jax.Array, jax.Array]:
    """`over_time`, with the gradient of the weights in one product after the loop.

    Differentiated as it stands, the loop adds an array of the size of the weights up at every time step.
    """
    return over_time(dtype, inputs, recurrent, start)


def _forward(dtype: Dtype, inputs: jax.Array, recurrent: jax.Array, start: State) -> Any:
    results, pull_back = jax.vjp(lambda inputs, start: over_time(dtype, inputs, recurrent, start), inputs, start)
    return results, (pull_back, start[0], results[0])


def _backward(dtype: Dtype, kept: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, State]:
    pull_back, first, outputs = kept
    of_inputs, of_start = pull_back(cotangents)
    # The weights' product enters where the inputs do: it has their cotangent.
    before = jnp.concatenate([first[None], outputs[:-1]])
    of_recurrent = _product(_rows(before).T, _rows(of_inputs), dtype)
    return of_inputs, of_recurrent, of_start


recur.defvjp(_forward, _backward)


class Lstm(nnx.Module):
    """Layers of one width between an embedding and its transpose.

    By default the "variational LSTM (tied)" with 650 units of Inan, Khosravi and
    Socher (2016, arXiv:1611.01462), but for dropout between time steps: a mask
    is the same for all of a window (Gal and Ghahramani 2016), and acts on embeddings,
    between layers, and on outputs, where Zaremba, Sutskever and Vinyals (2014) have it
    with the same rate and width.
    """

    width, layers, dropout = 650, 2, 0.5
    carries = True

    def __init__(
        self,
        vocabulary: int,
        batch_size: int,
        sequence_length: int,
        width: int,
        layers: int,
        dropout: float,
        dtype: Dtype = None,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        del sequence_length  # any will do
        self.embedding = nnx.Param(_uniform(0.1)(rngs.params(), (vocabulary, width)))
        self.depth = layers
        for number in range(layers):
            setattr(self, f"layer{number + 1}", LstmLayer(width, batch_size, dtype, rngs=rngs))
        self.bias = nnx.Param(zeros(rngs.params(), (vocabulary,)))
        self.drop = Dropout(dropout, broadcast_dims=(0,))

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, length, vocabulary] of int[batch, length]."""
        embedding = self.embedding[...]
        x = self.drop(embedding[tokens.T], rngs)
        for number in range(self.depth):
            x = self.drop(getattr(self, f"layer{number + 1}")(x), rngs)
        return (x @ embedding.T + self.bias[...]).swapaxes(0, 1)


def _uniform(bound: float) -> nnx.Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _rows(x: jax.Array) -> jax.Array:
    """[length, batch, units] as a matrix."""
    return x.reshape(-1, x.shape[-1])


def _product(x: jax.Array, kernel: jax.Array, dtype: Dtype) -> jax.Array:
    """A matrix product in `dtype`, which sums in float32."""
    dtype = dtype or jnp.float32
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
