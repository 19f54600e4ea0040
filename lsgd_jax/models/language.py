"""Language models, in Flax NNX: which come next, of the tokens of a vocabulary.

`model(tokens)` evaluates; `model(tokens, rngs=rngs)` trains, with dropout drawn from
the stream `dropout`. Tokens are int[batch, length], logits float32[batch, length,
vocabulary], those at a position for the token after it. What a model carries from one
window of a text to the next is its model state: leaves [batch, ...], zeros where a
text begins. Parameters and the last product are float32; `dtype` is that of the other
products, which sum in float32.
"""

from typing import Any, get_args

import jax
import jax.numpy as jnp

from lsgd_jax.errors import InputError
from lsgd_jax.models import Dtype, FunctionalModel
from lsgd_jax.models.functional import functional_model
from lsgd_jax.models.lstm import Lstm
from lsgd_jax.models.transformer import Remat, Transformer

# Each names its usual width, layers and dropout, and whether it carries a state.
LANGUAGE_MODELS: dict[str, Any] = {"lstm": Lstm, "transformer": Transformer}


def make_language_model(
    name: str,
    vocabulary: int,
    batch_size: int,
    sequence_length: int,
    width: int,
    layers: int,
    dropout: float = 0.0,
    compute_dtype: Dtype = None,
    remat: Remat | None = None,
) -> FunctionalModel:
    """Makes a language model.

    Args:
      name: one of `LANGUAGE_MODELS`.
      vocabulary: how many tokens there are.
      batch_size: rows of the model state that `init` makes; `apply` takes any.
      sequence_length: tokens in a row, at most, for a model with positions.
      width: units of a layer.
      layers: how many.
      dropout: share of units that are dropped in training.
      compute_dtype: of matrix products; None for that of the parameters, float32.
      remat: of a transformer: what is computed again for the gradient, see `Transformer`.

    Returns:
      A model whose `apply` takes tokens in place of images.

    Raises:
      InputError: if there is no such model, or it cannot compute things again.
    """
    check_language_model(name, remat)
    make, more = LANGUAGE_MODELS[name], {} if remat is None else {"remat": remat}
    sizes = (vocabulary, batch_size, sequence_length, width, layers, dropout, compute_dtype)
    return functional_model(lambda rngs: make(*sizes, **more, rngs=rngs), gathers=make.gathers)


def check_language_model(name: str, remat: str | None = None) -> None:
    """Raises InputError if there is no such model, or none that computes again what it is told to."""
    if name not in LANGUAGE_MODELS:
        raise InputError(f"--model={name} is no model of text: choose one of {', '.join(sorted(LANGUAGE_MODELS))}")
    if remat is not None and remat not in get_args(Remat):
        raise InputError(f"unknown --remat={remat}: choose one of {', '.join(get_args(Remat))}")
    if remat is not None and LANGUAGE_MODELS[name] is not Transformer:
        raise InputError(f"--remat={remat} is for blocks of a transformer: leave it out, or use --model=transformer")


def fresh_state(model: FunctionalModel, rows: int) -> Any:
    """The model state where so many texts begin: zeros."""
    _, shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), shapes)
