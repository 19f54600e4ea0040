"""A model of Hugging Face's, made from its configuration, is trained further by a task of a few lines."""

import pathlib
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

from lsgd_jax import Task, Topology, Trainer, from_arrays, lsgd

PAGE = (pathlib.Path(__file__).parents[2] / "docs/own_model.md").read_text()


@pytest.mark.slow
def test_a_transformer_of_theirs_is_trained_further() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    gpt2 = pytest.importorskip("transformers.models.gpt2.modeling_flax_gpt2", reason="these transformers have no Flax")
    sizes = {"vocab_size": 17, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = gpt2.FlaxGPT2LMHeadModel(transformers.GPT2Config(**sizes), seed=0, input_shape=(1, 8))
    start = jax.tree.map(np.asarray, model.params)
    tokens = np.random.default_rng(0).integers(17, size=(192, 1)) + np.arange(9) * 3
    tokens = (tokens % 17).astype(np.int32)  # the next one is known from the last

    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "model.params" in block)
    names: dict[str, Any] = {"model": model, "optax": optax}
    exec(code, names)
    task = Task(names["init"], names["loss"], train=from_arrays(tokens[:128], 16), validation=tokens[128:])
    method = lsgd(optax.adam(1e-2), global_period=4, global_pull=0.5)
    result = Trainer(task, method, Topology(1, 2), eval_every=8).fit(32)
    losses = [row["validation_loss"] for row in result.metrics]
    assert losses[-1] < 0.7 * losses[0]
    assert jax.tree.structure(result.center[0]) == jax.tree.structure(start)
