"""Image models, in Flax NNX, and their functional form.

`model(images)` evaluates; `model(images, rngs=rngs)` trains, with dropout drawn
from the stream `dropout` and batch norm by the batch's own moments. Images are
float32[batch, height, width, channels]. Parameters, batch norm and the last layer
are float32; `dtype` is that of the other products, which sum in float32.
"""

from typing import Any

from lsgd_jax.errors import InputError
from lsgd_jax.models.functional import FunctionalModel, functional_model
from lsgd_jax.models.layers import Dtype, Shape
from lsgd_jax.models.resnet import Resnet20, Resnet50
from lsgd_jax.models.small import Cnn3, Cnn7, Mlp
from lsgd_jax.models.vgg import Vgg16

__all__ = ["MODELS", "FunctionalModel", "Shape", "check_model", "make_model"]

MODELS: dict[str, Any] = {
    "mlp": Mlp,
    "cnn3": Cnn3,
    "cnn7": Cnn7,
    "vgg16": Vgg16,
    "resnet20": Resnet20,
    "resnet50": Resnet50,
}


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
    return functional_model(lambda rngs: MODELS[name](input_shape, classes, compute_dtype, rngs=rngs))


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
