"""Residual networks, of He, Zhang, Ren and Sun (CVPR 2016)."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from lsgd_jax.models.layers import ConvNorm, Dtype, Shape, max_pool_3


class BasicBlock(nnx.Module):
    """Two convolutions 3×3, the first with the stride, beside a shortcut without parameters.

    The shortcut leaves pixels out where there is a stride, and adds channels of zeros
    (option A of the paper).
    """

    def __init__(self, channels: int, features: int, stride: int, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.stride, self.added = stride, features - channels
        self.conv1 = ConvNorm(channels, features, 3, dtype, rngs, stride=stride)
        self.conv2 = ConvNorm(features, features, 3, dtype, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """float32[batch, height / stride, width / stride, features]."""
        shortcut = x[:, :: self.stride, :: self.stride]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.added)))
        x = nnx.relu(self.conv1(x, train))
        return nnx.relu(self.conv2(x, train) + shortcut)


class Bottleneck(nnx.Module):
    """Convolutions 1×1, 3×3 with the stride, and 1×1 to four times the channels, beside a shortcut.

    The shortcut is a convolution 1×1 where the shape changes. The last scale of batch norm
    starts at zero, so that the block starts as its shortcut (Goyal et al. 2017).
    """

    def __init__(self, channels: int, features: int, stride: int, dtype: Dtype, rngs: nnx.Rngs) -> None:
        self.conv1 = ConvNorm(channels, features, 1, dtype, rngs)
        self.conv2 = ConvNorm(features, features, 3, dtype, rngs, stride=stride)
        self.conv3 = ConvNorm(features, 4 * features, 1, dtype, rngs, scale=0.0)
        self.project = channels != 4 * features
        if self.project:
            self.shortcut = ConvNorm(channels, 4 * features, 1, dtype, rngs, stride=stride)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """float32[batch, height / stride, width / stride, 4 · features]."""
        shortcut = self.shortcut(x, train) if self.project else x
        x = nnx.relu(self.conv1(x, train))
        x = nnx.relu(self.conv2(x, train))
        return nnx.relu(self.conv3(x, train) + shortcut)


class Resnet20(nnx.Module):
    """ResNet20 for CIFAR-10 (section 4.2 of the paper).

    Conv 3×3×16; 3 blocks each of 16, 32 and 64 channels, the second and third three at half
    the size of those before; the mean over pixels; dense classes. 269,722 parameters for
    3 channels and 10 classes.
    """

    min_side = 3  # smaller ones are a single pixel before the last stride
    blocks = (3, 3, 3)

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        self.stem = ConvNorm(input_shape[2], 16, 3, dtype, rngs)
        channels = 16
        for name, stage, stride in _names(self.blocks):
            setattr(self, name, BasicBlock(channels, 16 * 2**stage, stride, dtype, rngs))
            channels = 16 * 2**stage
        self.logits = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        train = rngs is not None
        x = nnx.relu(self.stem(images, train))
        for name, _, _ in _names(self.blocks):
            x = getattr(self, name)(x, train)
        return self.logits(x.mean((1, 2)))


class Resnet50(nnx.Module):
    """ResNet50 for ImageNet (section 4.1 of the paper), with the stride in the 3×3 convolutions.

    Conv 7×7×64 with stride 2, max-pool 3 with stride 2; 3, 4, 6 and 3 bottlenecks of 64, 128,
    256 and 512 channels (four times as many between them); the mean over pixels; dense
    classes. 25,557,032 parameters for 3 channels and 1,000 classes. Strides are where
    Goyal et al. (2017) have them ("v1.5").
    """

    min_side = 17  # smaller ones are a single pixel before the last stride
    blocks = (3, 4, 6, 3)

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        self.stem = ConvNorm(input_shape[2], 64, 7, dtype, rngs, stride=2)
        channels = 64
        for name, stage, stride in _names(self.blocks):
            setattr(self, name, Bottleneck(channels, 64 * 2**stage, stride, dtype, rngs))
            channels = 4 * 64 * 2**stage
        self.logits = nnx.Linear(channels, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        train = rngs is not None
        x = max_pool_3(nnx.relu(self.stem(images, train)))
        for name, _, _ in _names(self.blocks):
            x = getattr(self, name)(x, train)
        return self.logits(x.mean((1, 2)))


def _names(blocks: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """(name, stage, stride) of each block; the first of all stages but the first has a stride of 2."""
    for stage, count in enumerate(blocks):
        for block in range(count):
            yield f"stage{stage + 1}_block{block + 1}", stage, 2 if stage > 0 and block == 0 else 1
