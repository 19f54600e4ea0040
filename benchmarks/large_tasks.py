"""Tasks of real size whose data are made up: for experiments/compile_for.py --task=FILE:NAME, not to be learned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsgd_jax import Task, from_arrays
from lsgd_jax.data.images import Images, Preprocessing, augmented
from lsgd_jax.models import FunctionalModel, make_model
from lsgd_jax.models.language import make_language_model
from lsgd_jax.tasks.classification import classification_loss


def resnet50() -> Task:
    """ResNet-50 on 64 images of 224 × 224, in bfloat16."""
    model = make_model("resnet50", (224, 224, 3), 1000, jnp.bfloat16)
    loss = classification_loss(model)

    def of_raw(params: Any, model_state: Any, batch: Images, key: jax.Array) -> Any:
        images = batch.images.astype(jnp.float32) / 255
        return loss(params, model_state, batch._replace(images=images), key)

    data = Images(np.zeros((128, 224, 224, 3), np.uint8), np.zeros(128, np.int32))
    return Task(model.init, of_raw, train=from_arrays(data, 64, sampling="iid"), gathers=True, name="resnet50")


def cnn7(compute_dtype: str = "float32") -> Task:
    """The paper's net on 128 images of CIFAR-10's shape, flipped and cropped."""
    model = make_model("cnn7", (28, 28, 3), 10, compute_dtype)
    data = Images(np.zeros((50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int32))
    how = Preprocessing(mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0), crop=28, flip=True)
    train = from_arrays(data, 128, sampling="iid", augment=augmented(how))
    return Task(model.init, classification_loss(model), train=train, gathers=True, name="cnn7")


def cnn7_bfloat16() -> Task:
    """The same in bfloat16."""
    return cnn7("bfloat16")


def gpt2_small() -> Task:
    """GPT-2 small (50,257 tokens, 124,439,808 parameters) on 8 rows of 1,024 tokens, in bfloat16."""
    return _text(make_language_model("transformer", 50_257, 8, 1024, 768, 12, 0.1, jnp.bfloat16, "products"), 8, "gpt2")


def _text(model: FunctionalModel, batch_size: int, name: str) -> Task:
    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        logits, model_state = model.apply(params, model_state, batch[:, :-1], key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean(), model_state

    data = np.zeros((64, 1025), np.int32)
    return Task(model.init, loss, train=from_arrays(data, batch_size, sampling="iid"), gathers=True, name=name)
