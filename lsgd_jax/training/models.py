"""Models, in Flax NNX.

`model(images)` evaluates; `model(images, rngs=rngs)` trains, with dropout drawn
from the stream `dropout`. Images are float32[batch, height, width, channels].
Parameters and the last layer are float32; `dtype` is that of the other products,
which sum in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lsgd_jax.training.convolution import conv_general_dilated
from lsgd_jax.training.errors import InputError

Shape = tuple[int, int, int]
Dtype = DTypeLike | None


class Mlp(nnx.Module):
    """Two hidden layers of 256 with dropout 0.2, for images of any size."""

    min_side = 1

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.hidden1 = nnx.Linear(height * width * channels, 256, dtype=dtype, rngs=rngs)
        self.hidden2 = nnx.Linear(256, 256, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)
        self.logits = nnx.Linear(256, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        x = images.reshape(len(images), -1)
        x = nnx.relu(self.hidden1(x))
        x = nnx.relu(self.hidden2(x))
        return self.logits(self.dropout(x, deterministic=rngs is None, rngs=rngs))


class Cnn3(nnx.Module):
    """For small images: conv 3×3×32, conv 3×3×64, max-pool 2, dense 128, dropout 0.5, dense classes."""

    min_side = 6

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.conv1 = _conv(channels, 32, 3, dtype, rngs)
        self.conv2 = _conv(32, 64, 3, dtype, rngs)
        self.dense = nnx.Linear((height - 4) // 2 * ((width - 4) // 2) * 64, 128, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.logits = nnx.Linear(128, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(max_pool_2(self.conv2(x)))
        x = nnx.relu(self.dense(x.reshape(len(x), -1)))
        return self.logits(self.dropout(x, deterministic=rngs is None, rngs=rngs))


class Cnn7(nnx.Module):
    """The paper's 7-layer CNN, of Zhang, Choromanska and LeCun (2015), without padding.

    Conv 5×5×64, max-pool 2, conv 5×5×128, max-pool 2, conv 3×3×64, dense 256,
    dropout 0.5, dense classes; ReLU. 351,946 parameters for 28×28×3 and 10 classes.
    """

    min_side = 24

    def __init__(self, input_shape: Shape, classes: int, dtype: Dtype = None, *, rngs: nnx.Rngs) -> None:
        height, width, channels = input_shape
        self.conv1 = _conv(channels, 64, 5, dtype, rngs)
        self.conv2 = _conv(64, 128, 5, dtype, rngs)
        self.conv3 = _conv(128, 64, 3, dtype, rngs)
        self.dense = nnx.Linear(_cnn7_side(height) * _cnn7_side(width) * 64, 256, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)
        self.logits = nnx.Linear(256, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """float32[batch, classes]."""
        x = nnx.relu(max_pool_2(self.conv1(images)))
        x = nnx.relu(max_pool_2(self.conv2(x)))
        x = nnx.relu(self.conv3(x))
        x = nnx.relu(self.dense(x.reshape(len(x), -1)))
        return self.logits(self.dropout(x, deterministic=rngs is None, rngs=rngs))


MODELS: dict[str, Any] = {"mlp": Mlp, "cnn3": Cnn3, "cnn7": Cnn7}


def max_pool_2(images: jax.Array) -> jax.Array:
    """Max-pooling over 2×2 windows with stride 2; an odd last row or column is left out.

    By maxima of pairs, whose gradient needs no scatter over windows. Where two are equal
    each gets half of the gradient.
    """
    batch, height, width, channels = images.shape
    images = images[:, : height // 2 * 2, : width // 2 * 2]
    images = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(images[:, :, 0], images[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class FunctionalModel(NamedTuple):
    """A model as pure functions of plain dictionaries of arrays.

    Attributes:
      init: `key -> (params, model_state)`.
      apply: `(params, model_state, images, key) -> (logits, model_state)`; `key`
        None evaluates.
      module: `(params, model_state) -> nnx.Module`, ready to call.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[[Any, Any, jax.Array, jax.Array | None], tuple[jax.Array, Any]]
    module: Callable[[Any, Any], nnx.Module]


def make_model(name: str, input_shape: Shape, classes: int, compute_dtype: Dtype = None) -> FunctionalModel:
    """Makes a model for images of a shape (height, width, channels).

    Args:
      name: one of `MODELS`.
      input_shape: (height, width, channels).
      classes: the number of classes.
      compute_dtype: of matrix products and convolutions; None for that of the parameters, float32.

    Raises:
      InputError: if there is no such model, or it does not fit the image size.
    """
    check_model(name, input_shape)

    def init(key: jax.Array) -> tuple[Any, Any]:
        return _split(MODELS[name](input_shape, classes, compute_dtype, rngs=nnx.Rngs(key)))

    graph = nnx.graphdef(nnx.eval_shape(lambda: MODELS[name](input_shape, classes, compute_dtype, rngs=nnx.Rngs(0))))

    def module(params: Any, model_state: Any) -> nnx.Module:
        return nnx.merge(graph, nnx.State(params), nnx.State(model_state))

    def apply(params: Any, model_state: Any, images: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Any]:
        model = module(params, model_state)
        logits = model(images, rngs=None if key is None else nnx.Rngs(dropout=key))
        return logits.astype(jnp.float32), _split(model)[1]

    return FunctionalModel(init, apply, module)


def check_model(name: str, input_shape: Shape) -> None:
    """Raises InputError if there is no such model or it does not fit the image size."""
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}: choose one of {', '.join(sorted(MODELS))}")
    needed, side = MODELS[name].min_side, min(input_shape[:2])
    if side < needed:
        fits = ", ".join(sorted(other for other in MODELS if MODELS[other].min_side <= side))
        raise InputError(
            f"model {name!r} needs images of at least {needed}×{needed}, these are "
            f"{input_shape[0]}×{input_shape[1]}: choose one of {fits}"
        )


def _split(model: nnx.Module) -> tuple[Any, Any]:
    """(params, model_state) as plain dictionaries."""
    params, rest = nnx.state(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def _conv(channels: int, features: int, side: int, dtype: Dtype, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        channels,
        features,
        (side, side),
        padding="VALID",
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
    )


def _cnn7_side(side: int) -> int:
    """Rows (or columns) that are left before the dense layers."""
    return ((side - 4) // 2 - 4) // 2 - 2
