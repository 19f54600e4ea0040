"""VGG16 with batch norm, for small images."""

import jax
import jax.numpy as jnp
from flax import nnx

from lsgd_jax.models.dropout import Dropout
from lsgd_jax.models.layers import ConvNorm, Dtype, Shape, max_pool_2

# Channels of the layers of each block; a pool follows each block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
HIDDEN = 512


class Vgg16(nnx.Module):
    """Configuration D of Simonyan and Zisserman (2015), with batch norm (Ioffe and Szegedy 2015).

    13 convolutions 3×3 in 5 blocks, a max-pool 2 after each; two dense layers of 512 with
    dropout 0.5 before each; dense classes; ReLU. 15,249,354 parameters for 32×32×3 or
    28×28×3 and 10 classes: the paper's network has 4,224 more, biases that batch norm
    takes away.

    An odd last row or column makes windows of its own (as in Caffe, and in Torch's VGG for
    CIFAR-10): 28 → 14 → 7 → 4 → 2 → 1. By leaving it out, the fifth pool would find nothing.
    """

    min_side = 17  # smaller ones are a single pixel before the last pool

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        for block, layers in enumerate(BLOCKS, 1):
            for layer, features in enumerate(layers, 1):
                setattr(self, f"conv{block}_{layer}", ConvNorm(channels, features, 3, dtype, rngs))
                channels = features
        reduction = 2 ** len(BLOCKS)
        inputs = -(-height // reduction) * -(-width // reduction) * channels
        he_normal = nnx.initializers.he_normal()
        self.hidden1 = nnx.Linear(inputs, HIDDEN, kernel_init=he_normal, dtype=dtype, rngs=rngs)
        self.hidden2 = nnx.Linear(HIDDEN, HIDDEN, kernel_init=he_normal, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(0.5)
        self.logits = nnx.Linear(HIDDEN, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        train, x = rngs is not None, images
        for block, layers in enumerate(BLOCKS, 1):
            for layer in range(1, len(layers) + 1):
                x = nnx.relu(getattr(self, f"conv{block}_{layer}")(x, train))
            odd_rows, odd_columns = x.shape[1] % 2, x.shape[2] % 2
            # Zeros change no maximum here: nothing is below zero after ReLU.
            x = max_pool_2(jnp.pad(x, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0))))
        x = x.reshape(len(x), -1)
        for hidden in (self.hidden1, self.hidden2):
            x = nnx.relu(hidden(self.dropout(x, rngs)))
        return self.logits(x)
