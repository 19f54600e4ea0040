"""A small decoder of the kind of GPT-2."""

import jax
from flax import nnx
from jax.nn.initializers import normal

from lsgd_jax.models import Dtype
from lsgd_jax.models.attention import causal_attention
from lsgd_jax.models.dropout import Dropout
from lsgd_jax.models.gelu import gelu
from lsgd_jax.models.layer_norm import LayerNorm

HEAD = 64  # the width of a head, at least


class Block(nnx.Module):
    """Attention to what came before, then an MLP of 4 × width, each on a normalized copy of what it adds to."""

    def __init__(self, width: int, layers: int, dropout: float, dtype: Dtype, *, rngs: nnx.Rngs) -> None:
        self.heads = heads_of(width)
        # Each layer adds twice to the same sum.
        onto_sum = 0.02 / (2 * layers) ** 0.5
        self.norm1 = LayerNorm(width)
        self.attend = _linear(width, 3 * width, 0.02, dtype, rngs)
        self.project = _linear(width, width, onto_sum, dtype, rngs)
        self.norm2 = LayerNorm(width)
        self.expand = _linear(width, 4 * width, 0.02, dtype, rngs)
        self.contract = _linear(4 * width, width, onto_sum, dtype, rngs)
        self.drop = Dropout(dropout)

    def __call__(self, x: jax.Array, length: int, rngs: nnx.Rngs | None) -> jax.Array:
        """float32[batch * length, width] to the same."""
        heads = self.attend(self.norm1(x)).reshape(-1, length, 3, self.heads, x.shape[-1] // self.heads)
        attended = causal_attention(*heads.transpose(2, 0, 3, 1, 4)).swapaxes(1, 2).reshape(x.shape)
        x = x + self.drop(self.project(attended), rngs)
        hidden = gelu(self.expand(self.norm2(x)))
        return x + self.drop(self.contract(hidden), rngs)


class Transformer(nnx.Module):
    """Blocks between an embedding and its transpose, with learned positions.

    Layers, initial values and dropout are those of GPT-2 (Radford et al. 2019), but
    that attention weights are not dropped, so that fused attention can be used. With
    width 768, 12 layers, 1,024 positions and 50,257 tokens it has the 124,439,808
    parameters of GPT-2 small.
    """

    width, layers, dropout = 256, 4, 0.1
    carries = False

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
        del batch_size  # any will do
        self.embedding = nnx.Param(normal(0.02)(rngs.params(), (vocabulary, width)))
        self.positions = nnx.Param(normal(0.02)(rngs.params(), (sequence_length, width)))
        self.depth = layers
        for number in range(layers):
            setattr(self, f"block{number + 1}", Block(width, layers, dropout, dtype, rngs=rngs))
        self.norm = LayerNorm(width)
        self.drop = Dropout(dropout)

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, length, vocabulary] of int[batch, length]."""
        embedding, positions = self.embedding[...], self.positions[...]
        length = tokens.shape[1]
        if length > len(positions):
            raise ValueError(
                f"a sequence of {length} tokens is longer than the {len(positions)} positions of the model"
            )
        x = self.drop(embedding[tokens] + positions[:length], rngs)
        x = x.reshape(-1, x.shape[-1])  # a matrix: products with weights need no copies in another layout
        for number in range(self.depth):
            x = getattr(self, f"block{number + 1}")(x, length, rngs)
        return (self.norm(x) @ embedding.T).reshape(*tokens.shape, -1)


def heads_of(width: int) -> int:
    """As many as divide the width and are at least `HEAD` wide; one if it is less."""
    return max(heads for heads in range(1, max(1, width // HEAD) + 1) if width % heads == 0)


def _linear(inputs: int, outputs: int, deviation: float, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=normal(deviation), dtype=dtype, rngs=rngs)
