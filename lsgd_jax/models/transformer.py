"""A small decoder of the kind of GPT-2."""

from typing import Any, Literal

import jax
from flax import nnx
from jax import lax
from jax.nn.initializers import normal

from lsgd_jax.collectives.partition import gathered, split_samples
from lsgd_jax.engine.platform import platform
from lsgd_jax.models import Dtype
from lsgd_jax.models.attention import causal_attention
from lsgd_jax.models.dropout import Dropout
from lsgd_jax.models.gelu import gelu
from lsgd_jax.models.layer_norm import LayerNorm

HEAD = 64  # the width of a head, at least

# What is computed again for the gradient of a block: nothing, all but its products, or all from its input on.
Remat = Literal["none", "products", "full"]
POLICIES: dict[str, Any] = {
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
# On CPU so many blocks stand one after the other: looping over them takes a quarter longer (results/compiled.md), but
# programs compile for longer with each.
UNROLLED_ON_CPU = 8


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
        attended = causal_attention(*(heads[:, :, i] for i in range(3))).reshape(x.shape)
        x = x + self.drop(self.project(attended), rngs)
        hidden = gelu(self.expand(self.norm2(x)))
        return x + self.drop(self.contract(hidden), rngs)


class Transformer(nnx.Module):
    """Blocks between an embedding and its transpose, with learned positions.

    Layers, initial values and dropout are those of GPT-2 (Radford et al. 2019), but
    that attention weights are not dropped, so that fused attention can be used. With
    width 768, 12 layers, 1,024 positions and 50,257 tokens it has the 124,439,808
    parameters of GPT-2 small.

    Parameters of blocks are [layers, ...], over which one compiled block loops. Those of a
    block are gathered when its turn comes, where a worker spans several devices. With
    `remat` a block keeps less for its gradient, and computes the rest again: all but its
    "products", or the "full" block from its input on.
    """

    width, layers, dropout = 256, 4, 0.1
    carries, gathers = False, True

    def __init__(
        self,
        vocabulary: int,
        batch_size: int,
        sequence_length: int,
        width: int,
        layers: int,
        dropout: float,
        dtype: Dtype = None,
        remat: Remat = "none",
        *,
        rngs: nnx.Rngs,
    ) -> None:
        del batch_size  # any will do
        self.dtype, self.remat = dtype, remat
        self.embedding = nnx.Param(normal(0.02)(rngs.params(), (vocabulary, width)))
        self.positions = nnx.Param(normal(0.02)(rngs.params(), (sequence_length, width)))
        self.depth = layers
        self.blocks = _stacked(lambda rngs: Block(width, layers, dropout, dtype, rngs=rngs), layers, rngs)
        self.norm = LayerNorm(width)
        self.drop = Dropout(dropout)

    def __call__(self, tokens: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, length, vocabulary] of int[batch, length]."""
        embedding, positions = gathered((self.embedding[...], self.positions[...]))
        length = tokens.shape[1]
        if length > len(positions):
            raise ValueError(
                f"a sequence of {length} tokens is longer than the {len(positions)} positions of the model"
            )
        x = self.drop(split_samples(embedding[tokens]) + positions[:length], rngs)
        x = x.reshape(-1, x.shape[-1])  # a matrix: products with weights need no copies in another layout
        x = self._through_blocks(x, length, rngs)
        return (self.norm(x) @ embedding.T).reshape(*tokens.shape, -1)

    def _through_blocks(self, x: jax.Array, length: int, rngs: nnx.Rngs | None) -> jax.Array:
        """float32[batch * length, width] to the same."""
        graph, params, *rest = nnx.split(self.blocks, nnx.Param, ...)
        keys = None if rngs is None else jax.random.split(rngs.dropout(), self.depth)

        def through_block(x: jax.Array, of_block: Any) -> tuple[jax.Array, None]:
            params, rest, key = of_block
            block = nnx.merge(graph, gathered(params, dtype=self.dtype), *rest)
            dropout = None if key is None else nnx.Rngs(dropout=key)
            return split_samples(block(split_samples(x), length, dropout)), None

        if self.remat != "none":
            through_block = jax.checkpoint(through_block, policy=POLICIES[self.remat], prevent_cse=False)
        unroll = self.depth if platform() == "cpu" and self.depth <= UNROLLED_ON_CPU else 1
        return lax.scan(through_block, x, (params, rest, keys), unroll=unroll)[0]


def _stacked(make: Any, layers: int, rngs: nnx.Rngs) -> Any:
    """A module whose leaves are those of so many, [layers, ...], each made with random numbers of its own."""

    @nnx.split_rngs(splits=layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def made(rngs: nnx.Rngs) -> Any:
        return make(rngs)

    return made(rngs)


def heads_of(width: int) -> int:
    """As many as divide the width and are at least `HEAD` wide; one if it is less."""
    return max(heads for heads in range(1, max(1, width // HEAD) + 1) if width % heads == 0)


def _linear(inputs: int, outputs: int, deviation: float, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, kernel_init=normal(deviation), dtype=dtype, rngs=rngs)
