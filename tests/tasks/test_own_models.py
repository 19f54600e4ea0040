"""Models of other libraries, as tasks of a few lines each."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from thorough import thorough

from lsgd_jax import Result, Task, Topology, Trainer, from_arrays, lsgd, nnx_task

RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 7)).astype(np.float32)
DATA = {"x": X, "y": (X.sum(1) > 0).astype(np.int32)}
HELD_OUT = jax.tree.map(lambda x: x[:32], DATA)


def fitted(task: Task) -> Result:
    return Trainer(task, lsgd(optax.sgd(0.3), global_period=4, global_pull=0.5), Topology(1, 4), eval_every=16).fit(48)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class Net(nnx.Module):
    """With batch norm, and dropout that holds its own random stream."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(7, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(16, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.dropout(jax.nn.relu(self.norm(self.first(x)))))


def nnx_loss(net: Net, batch: Any, rngs: nnx.Rngs) -> jax.Array:
    del rngs
    return cross_entropy(net(batch["x"]), batch["y"]).mean()


def nnx_error(net: Net, batch: Any) -> jax.Array:
    return (net(batch["x"]).argmax(-1) != batch["y"]).astype(jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("metrics", [{"error": nnx_error}, thorough(None)])
def test_a_module_of_flax_nnx_learns_with_batch_statistics_of_its_own(metrics: Any) -> None:
    result = fitted(nnx_task(Net, nnx_loss, train=from_arrays(DATA, 8), validation=HELD_OUT, metrics=metrics))
    name = "validation_error" if metrics else "validation_loss"
    assert result.metrics[-1][name] < 0.5 * result.metrics[0][name] or result.metrics[-1][name] < 0.15
    params, model_state = result.center
    assert params.keys() == {"first", "last", "norm"}
    inputs = X[: 128 // 8 * 8].reshape(-1, 8, 7) @ params["first"]["kernel"] + params["first"]["bias"]
    np.testing.assert_allclose(model_state["norm"]["mean"], np.asarray(inputs).mean((0, 1)), atol=1e-4)
    moments = np.asarray(inputs).var((0, 1))
    np.testing.assert_allclose(model_state["norm"]["var"], moments, rtol=1e-3)


@pytest.mark.slow
def test_a_module_of_flax_linen_is_a_task() -> None:
    net = nn.Sequential([nn.Dense(16), jnp.tanh, nn.Dense(2)])

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del key
        return cross_entropy(net.apply(params, batch["x"]), batch["y"]).mean(), model_state

    result = fitted(Task(lambda key: (net.init(key, X[:1]), {}), loss, train=from_arrays(DATA, 8), validation=HELD_OUT))
    assert result.metrics[-1]["validation_loss"] < 0.5


@pytest.mark.slow
def test_a_module_of_equinox_is_a_task() -> None:
    _, static = eqx.partition(eqx.nn.MLP(7, 2, 16, 1, key=jax.random.key(0)), eqx.is_array)

    def init(key: jax.Array) -> tuple[Any, Any]:
        return eqx.filter(eqx.nn.MLP(7, 2, 16, 1, key=key), eqx.is_array), {}

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        del key
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch["x"]), batch["y"]).mean(), model_state

    result = fitted(Task(init, loss, train=from_arrays(DATA, 8), validation=HELD_OUT))
    assert result.metrics[-1]["validation_loss"] < 0.5
