"""What evaluated models get right, against NumPy, on one device and on many."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lsgd_jax import Axes, Topology, data_parallel, lsgd
from lsgd_jax.data.images import Images, Preprocessing
from lsgd_jax.engine.schedules import start_plateau
from lsgd_jax.engine.state import TrainState, state_shardings
from lsgd_jax.models import FunctionalModel
from lsgd_jax.optimizers.window import Window
from lsgd_jax.tasks import evaluation
from lsgd_jax.tasks.classification import classification_figures
from lsgd_jax.tasks.evaluation import make_evaluate, put_evaluation_set
from lsgd_jax.trainer.candidates import Candidates, every_worker, make_candidates

GROUPS, WORKERS, WINDOW = 2, 4, 3
DEVICES = (1, 2, 8)
RAW = Preprocessing(mean=(3.0,), std=(2.0,))
NAN = float("nan")


def linear() -> FunctionalModel:
    """Logits are the flat image times a matrix, plus the model state."""

    def init(key: jax.Array) -> Any:
        raise NotImplementedError

    def apply(params: Any, model_state: Any, images: jax.Array, key: jax.Array | None) -> Any:
        assert key is None, "an evaluation draws nothing"
        return images.reshape(len(images), -1) @ params["matrix"] + model_state["shift"], model_state

    def module(params: Any, model_state: Any) -> nnx.Module:
        raise NotImplementedError

    return FunctionalModel(init, apply, module)


def split_of(count: int) -> Images:
    rng = np.random.default_rng(count)
    return Images(rng.integers(0, 9, (count, 2, 3, 1), dtype=np.uint8), rng.integers(0, 4, count, dtype=np.int32))


MODEL: Any = (
    {"matrix": np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)},
    {"shift": np.array([0.5, -0.5, 0.0, 1.0], np.float32)},
)


def expected_figures(model: Any, split: Images) -> tuple[float, float]:
    """(loss, error) in float64."""
    params, model_state = model
    inputs = (split.images.astype(np.float64) - RAW.mean) / RAW.std
    logits = inputs.reshape(len(inputs), -1) @ params["matrix"].astype(np.float64) + model_state["shift"]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    loss = -np.log(chances[np.arange(len(logits)), split.labels]).mean()
    return float(loss), float((logits.argmax(1) != split.labels).mean())


@functools.cache
def evaluate_on(topology: Topology) -> Any:
    return make_evaluate(classification_figures(linear(), RAW), topology)


def figures(model: Any, split: Images, devices: int) -> dict[str, float]:
    topology = Topology(GROUPS, WORKERS, jax.devices()[:devices])
    replicated = jax.device_put(model, topology.replicated)
    got = evaluate_on(topology)(replicated, put_evaluation_set(split, topology))
    return {name: float(x) for name, x in got.items()}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("count", [1, 37, 48])
def test_loss_and_error_are_those_of_numpy_whatever_the_size(
    devices: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 16)
    split = split_of(count)
    loss, error = expected_figures(MODEL, split)
    got = figures(MODEL, split, devices)
    assert sorted(got) == ["error", "loss"]
    np.testing.assert_allclose(got["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(got["error"], error, rtol=1e-6)
    assert 0 < error <= 1


@pytest.mark.parametrize("devices", DEVICES)
def test_every_image_is_in_one_batch_and_padding_has_no_weight(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 12)
    split = split_of(37)
    topology = Topology(GROUPS, WORKERS, jax.devices()[:devices])
    (images, labels), weights = put_evaluation_set(split, topology)
    assert images.shape[:2] == labels.shape == weights.shape
    assert labels.shape[1] % devices == 0
    assert {shard.data.shape[1] for shard in labels.addressable_shards} == {labels.shape[1] // devices}
    real = np.asarray(weights).ravel() > 0
    assert real.sum() == weights.sum() == 37
    np.testing.assert_array_equal(np.asarray(labels).ravel()[real], split.labels)
    np.testing.assert_array_equal(np.asarray(images).reshape(-1, 2, 3, 1)[real], split.images)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("broken", [NAN, np.inf])
def test_a_model_that_is_not_finite_is_wrong_everywhere(devices: int, broken: float) -> None:
    split = split_of(37)._replace(labels=np.zeros(37, np.int32))  # what argmax makes of NaN
    everything = jax.tree.map(lambda x: np.full_like(x, broken), MODEL)
    assert figures(everything, split, devices)["error"] == 1
    one_logit = (MODEL[0], {"shift": np.array([0, 0, 0, broken], np.float32)})
    assert figures(one_logit, split, devices)["error"] == 1


LOSSES = np.array([[5.0, 3.0, 9.0, 4.0], [8.0, 2.0, 6.0, 7.0]])
BEST = 5


def state_of(topology: Topology, method: Any, losses: np.ndarray, lost: tuple[tuple[int, int], ...] = ()) -> TrainState:
    """A state whose workers all differ; one number of the lost ones is NaN."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(*topology.shape, 6, 4)).astype(np.float32)
    for at in lost:
        matrix[(*at, 5, 3)] = NAN
    params = {"matrix": matrix}
    window = np.zeros((*topology.shape, WINDOW), np.float32)
    window[..., 0] = -100  # forgotten: only two of three are recorded
    window[..., 1], window[..., 2] = losses - 0.5, losses + 0.5
    filled = np.full(topology.shape, 2, np.int32)
    state = TrainState(
        params=params,
        model_state={"shift": rng.normal(size=(*topology.shape, 4)).astype(np.float32)},
        opt_state=jax.vmap(jax.vmap(lambda params: method.init(params, Axes())))(jax.tree.map(jnp.asarray, params)),
        losses=Window(window, filled),
        keys=jax.random.split(jax.random.key(0), topology.shape),
        step=jnp.int32(8),
        own_steps=jnp.full(topology.shape, 8, jnp.int32),
        learning_rate=jnp.ones([]),
        plateau=start_plateau(),
    )
    return jax.device_put(state, state_shardings(topology, state))


METHOD = lsgd(optax.sgd(0.1), local_period=2, global_period=4, window=WINDOW)


@functools.cache
def on(devices: int) -> tuple[Topology, Any]:
    """(a topology, its function that gathers candidates), compiled once."""
    topology = Topology(GROUPS, WORKERS, jax.devices()[:devices])
    return topology, make_candidates(METHOD, topology)


def candidates_of(devices: int, losses: np.ndarray, lost: tuple[tuple[int, int], ...] = ()) -> tuple[Candidates, Any]:
    """(the candidates, params and model state of all workers as NumPy arrays)."""
    topology, gather = on(devices)
    state = state_of(topology, METHOD, losses, lost)
    return jax.device_get((gather(state), (state.params, state.model_state)))


def assert_same(tree: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), tree, expected)


@pytest.mark.slow
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("lost", [(), ((0, 2),), ((1, 1), (0, 0))], ids=str)
def test_the_center_is_the_mean_of_finite_workers_and_the_leader_the_best_of_them(
    devices: int, lost: tuple[tuple[int, int], ...]
) -> None:
    candidates, workers = candidates_of(devices, LOSSES, lost)
    finite = np.ones((GROUPS, WORKERS), bool)
    for at in lost:
        finite[at] = False
    assert_same(candidates.center, jax.tree.map(lambda x: x[finite].mean(0), workers))
    best = int(np.where(finite, LOSSES, np.inf).argmin())
    assert candidates.leader_rank == best
    assert best == (1 if (1, 1) in lost else BEST)
    assert_same(candidates.leader, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[best], workers))


@pytest.mark.parametrize("devices", DEVICES)
def test_a_worker_with_a_loss_that_is_not_finite_cannot_lead_but_enters_the_center(devices: int) -> None:
    losses = LOSSES.copy()
    losses[1, 1], losses[0, 1] = NAN, -np.inf
    candidates, workers = candidates_of(devices, losses)
    assert candidates.leader_rank == 3
    assert_same(candidates.center, jax.tree.map(lambda x: x.mean((0, 1)), workers))


@pytest.mark.parametrize("devices", DEVICES)
def test_without_anybody_who_can_lead_the_rank_is_minus_one_and_the_leader_worker_0(devices: int) -> None:
    candidates, workers = candidates_of(devices, np.full((GROUPS, WORKERS), NAN))
    assert candidates.leader_rank == -1
    assert_same(candidates.leader, jax.tree.map(lambda x: x[0, 0], workers))
    assert_same(candidates.center, jax.tree.map(lambda x: x.mean((0, 1)), workers))


def test_every_device_holds_the_same_leader_even_without_anybody_who_can_lead() -> None:
    topology, gather = on(4)
    state = state_of(topology, METHOD, np.full((GROUPS, WORKERS), NAN))
    for leaf in jax.tree.leaves(gather(state).leader):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        assert all(np.array_equal(copy, copies[0]) for copy in copies)


def test_equal_scores_make_the_lowest_rank_the_leader() -> None:
    assert candidates_of(8, np.full((GROUPS, WORKERS), 2.0))[0].leader_rank == 0
    losses = LOSSES.copy()
    losses[0, 3] = losses[1, 1]
    assert candidates_of(2, losses)[0].leader_rank == 3


def test_a_method_without_scores_has_a_leader_too() -> None:
    topology, method = Topology(GROUPS, WORKERS), data_parallel(optax.sgd(0.1))
    state = state_of(topology, method, LOSSES)
    candidates = jax.device_get(make_candidates(method, topology)(state))
    assert candidates.leader_rank == BEST
    assert_same(candidates.center, jax.tree.map(lambda x: x.mean((0, 1)), (state.params, state.model_state)))


@pytest.mark.parametrize("devices", DEVICES)
def test_candidates_can_be_evaluated_as_they_are(devices: int) -> None:
    topology, gather = on(devices)
    state = state_of(topology, METHOD, LOSSES)
    candidates = gather(state)
    split = split_of(37)
    placed = put_evaluation_set(split, topology)
    for candidate in (candidates.center, candidates.leader, *every_worker(state, topology)):
        loss, error = expected_figures(jax.device_get(candidate), split)
        got = evaluate_on(topology)(candidate, placed)
        np.testing.assert_allclose([got["loss"], got["error"]], [loss, error], rtol=1e-5)


@pytest.mark.parametrize("devices", DEVICES)
def test_workers_come_in_the_order_of_ranks(devices: int) -> None:
    topology, _ = on(devices)
    state = state_of(topology, METHOD, LOSSES)
    workers = jax.device_get(list(every_worker(state, topology)))
    assert len(workers) == GROUPS * WORKERS
    for rank, worker in enumerate(workers):
        group, i = divmod(rank, WORKERS)
        np.testing.assert_array_equal(worker[0]["matrix"], np.asarray(state.params["matrix"])[group, i])
        np.testing.assert_array_equal(worker[1]["shift"], np.asarray(state.model_state["shift"])[group, i])
