"""A recurrent language model: an LSTM with tied embeddings."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn.initializers import zeros

from lsgd_jax.training.models import Dtype


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
        recurrent = self.recurrent[...]
        # Of all time steps in one product: only what depends on the step before stays in the loop.
        inputs = _product(x, self.input[...], self.dtype) + self.bias[...]

        def step(carry: tuple[jax.Array, jax.Array], at: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            hidden, cell = carry
            i, f, g, o = jnp.split(at + _product(hidden, recurrent, self.dtype), 4, axis=-1)
            cell = nnx.sigmoid(f) * cell + nnx.sigmoid(i) * jnp.tanh(g)
            hidden = nnx.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        # Truncated back-propagation: gradients end where the window begins.
        start = lax.stop_gradient((self.hidden[...], self.cell[...]))
        (hidden, cell), outputs = lax.scan(step, start, inputs)
        self.hidden.set_value(hidden)
        self.cell.set_value(cell)
        return outputs


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
        self.drop = nnx.Dropout(dropout, broadcast_dims=(0,))

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, length, vocabulary] of int[batch, length]."""
        embedding = self.embedding[...]
        x = self.drop(embedding[tokens.T], deterministic=rngs is None, rngs=rngs)
        for number in range(self.depth):
            x = self.drop(getattr(self, f"layer{number + 1}")(x), deterministic=rngs is None, rngs=rngs)
        return (x @ embedding.T + self.bias[...]).swapaxes(0, 1)


def _uniform(bound: float) -> nnx.Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _product(x: jax.Array, kernel: jax.Array, dtype: Dtype) -> jax.Array:
    """A matrix product in `dtype`, which sums in float32."""
    dtype = dtype or jnp.float32
    return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
