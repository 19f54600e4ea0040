"""Networks for small images, without batch norm."""

import jax
from flax import nnx

from lsgd_jax.models.dropout import Dropout
from lsgd_jax.models.layers import Dtype, Shape, conv, max_pool_2


class Mlp(nnx.Module):
    """Two hidden layers of 256 with dropout 0.2, for images of any size."""

    min_side = 1

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.hidden1 = nnx.Linear(height * width * channels, 256, dtype=dtype, rngs=rngs)
        self.hidden2 = nnx.Linear(256, 256, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(0.2)
        self.logits = nnx.Linear(256, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        x = images.reshape(len(images), -1)
        x = nnx.relu(self.hidden1(x))
        x = nnx.relu(self.hidden2(x))
        return self.logits(self.dropout(x, rngs))


class Cnn3(nnx.Module):
    """For small images: conv 3×3×32, conv 3×3×64, max-pool 2, dense 128, dropout 0.5, dense classes."""

    min_side = 6

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.conv1 = conv(channels, 32, 3, dtype, rngs)
        self.conv2 = conv(32, 64, 3, dtype, rngs)
        self.dense = nnx.Linear((height - 4) // 2 * ((width - 4) // 2) * 64, 128, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(0.5)
        self.logits = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(max_pool_2(self.conv2(x)))
        x = nnx.relu(self.dense(x.reshape(len(x), -1)))
        return self.logits(self.dropout(x, rngs))


class Cnn7(nnx.Module):
    """The paper's 7-layer CNN, of Zhang, Choromanska and LeCun (2015), without padding.

    Conv 5×5×64, max-pool 2, conv 5×5×128, max-pool 2, conv 3×3×64, dense 256,
    dropout 0.5, dense classes; ReLU. 351,946 parameters for 28×28×3 and 10 classes.
    """

    min_side = 24

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.conv1 = conv(channels, 64, 5, dtype, rngs)
        self.conv2 = conv(64, 128, 5, dtype, rngs)
        self.conv3 = conv(128, 64, 3, dtype, rngs)
        self.dense = nnx.Linear(_cnn7_side(height) * _cnn7_side(width) * 64, 256, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(0.5)
        self.logits = nnx.Linear(256, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        x = nnx.relu(max_pool_2(self.conv1(images)))
        x = nnx.relu(max_pool_2(self.conv2(x)))
        x = nnx.relu(self.conv3(x))
        x = nnx.relu(self.dense(x.reshape(len(x), -1)))
        return self.logits(self.dropout(x, rngs))


def _cnn7_side(side: int) -> int:
    """Rows (or columns) that are left before the dense layers."""
    return ((side - 4) // 2 - 4) // 2 - 2
