"""A recurrent language model: an LSTM with tied embeddings."""

import functools
import math
from typing import Any, NamedTuple

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
        # Truncated back-propagation: gradients end where the window begins.
        start = lax.stop_gradient((self.hidden[...], self.cell[...]))
        weights = Weights(self.input[...], self.recurrent[...], self.bias[...])
        outputs, cell = through_layer(self.dtype, x, weights, start)
        self.hidden.set_value(outputs[-1])
        self.cell.set_value(cell)
        return outputs


class Weights(NamedTuple):
    """Those of a layer: float32[width, 4 * width] twice, and float32[4 * width]."""

    input: jax.Array
    recurrent: jax.Array
    bias: jax.Array


State = tuple[jax.Array, jax.Array]
"""(hidden, cell), float32[batch, width] each."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def through_layer(dtype: Dtype, x: jax.Array, weights: Weights, start: State) -> tuple[jax.Array, jax.Array]:
    """A window through a layer.

    Its gradient is written out: the loops keep and read few arrays, and the gradient of each matrix is one product
    after them (differentiated as it stands, an array of its size is added up at every time step).

    Args:
      dtype: of the products with the weights.
      x: float32[length, batch, width].
      weights: of the layer.
      start: before the first time step.

    Returns:
      (outputs, cell): float32[length, batch, width], and float32[batch, width] at the end.
    """
    return _forward(dtype, x, weights, start)[0]


def _forward(dtype: Dtype, x: jax.Array, weights: Weights, start: State) -> Any:
    # Of all time steps in one product: only what depends on the step before stays in the loop.
    entering = _product(x, weights.input, dtype)
    recurrent = weights.recurrent.astype(dtype or jnp.float32)

    def step(carry: State, entering: jax.Array) -> tuple[State, Any]:
        hidden, cell = carry
        gates = _activated(entering + _product(hidden, recurrent, dtype) + weights.bias)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = f * cell + i * g
        hidden = o * jnp.tanh(cell)
        return (hidden, cell), (hidden, cell, gates)

    (_, cell), (outputs, cells, gates) = lax.scan(step, start, entering)
    return (outputs, cell), (x, weights, start, outputs, cells, gates)


def _backward(dtype: Dtype, kept: Any, cotangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Weights, State]:
    x, weights, start, outputs, cells, gates = kept
    of_outputs, of_last = cotangents
    hidden_before, cells_before = (
        jnp.concatenate([first[None], at[:-1]]) for first, at in zip(start, (outputs, cells), strict=True)
    )
    recurrent = lax.optimization_barrier(weights.recurrent.T.astype(dtype or jnp.float32))  # once, not in every turn

    def step(carry: State, at: Any) -> tuple[State, jax.Array]:
        of_hidden, of_cell = carry
        of_output, cell, before, gates = at
        of_hidden = of_hidden + of_output
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        squashed = jnp.tanh(cell)
        of_cell = of_cell + of_hidden * o * (1 - squashed**2)
        of_i, of_f = of_cell * g * i * (1 - i), of_cell * before * f * (1 - f)
        of_g, of_o = of_cell * i * (1 - g**2), of_hidden * squashed * o * (1 - o)
        entering = jnp.concatenate([of_i, of_f, of_g, of_o], axis=-1)
        return (_product(entering, recurrent, dtype), of_cell * f), entering

    last = (jnp.zeros_like(of_last), of_last)
    of_start, entering = lax.scan(step, last, (of_outputs, cells, cells_before, gates), reverse=True)
    of_weights = Weights(
        _product_of_rows(x, entering, dtype), _product_of_rows(hidden_before, entering, dtype), entering.sum((0, 1))
    )
    return _product(entering, weights.input.T, dtype), of_weights, of_start


through_layer.defvjp(_forward, _backward)


def _activated(gates: jax.Array) -> jax.Array:
    """Logistic sigmoids, but the hyperbolic tangent of the cell gate, all in one pass: σ(x) = (1 + tanh(x / 2)) / 2."""
    width = gates.shape[-1] // 4
    of_cell = lax.broadcasted_iota(jnp.int32, gates.shape, gates.ndim - 1) // width == 2
    squashed = jnp.tanh(jnp.where(of_cell, gates, gates / 2))
    return jnp.where(of_cell, squashed, (squashed + 1) / 2)


class Lstm(nnx.Module):
    """Layers of one width between an embedding and its transpose.

    By default the "variational LSTM (tied)" with 650 units of Inan, Khosravi and
    Socher (2016, arXiv:1611.01462), but for dropout between time steps: a mask
    is the same for all of a window (Gal and Ghahramani 2016), and acts on embeddings,
    between layers, and on outputs, where Zaremba, Sutskever and Vinyals (2014) have it
    with the same rate and width.
    """

    width, layers, dropout = 650, 2, 0.5
    carries, gathers = True, False

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


def _product(x: jax.Array, kernel: jax.Array, dtype: Dtype) -> jax.Array:
    """A matrix product in `dtype`, which sums in float32, and is rounded to `dtype`."""
    dtype = dtype or jnp.float32
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype)).astype(jnp.float32)


def _product_of_rows(left: jax.Array, right: jax.Array, dtype: Dtype) -> jax.Array:
    """The sum of outer products over time and batch, [units of left, units of right], as `_product`."""
    dtype = dtype or jnp.float32
    left, right = (x.reshape(-1, x.shape[-1]).astype(dtype) for x in (left, right))
    return lax.dot_general(left, right, (((0,), (0,)), ((), ()))).astype(jnp.float32)
