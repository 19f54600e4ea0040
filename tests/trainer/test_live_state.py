"""What a process carries from one generation of a run to the next."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from thorough import thorough

from lsgd_jax import Topology, compressed, data_parallel, init_state, lsgd
from lsgd_jax.cluster import processes
from lsgd_jax.cluster.generations import Generation, GenerationOverError
from lsgd_jax.config.config import Config
from lsgd_jax.config.reload import reload_run
from lsgd_jax.config.train import train
from lsgd_jax.engine.state import TrainState, shared_fields
from lsgd_jax.errors import InputError
from lsgd_jax.trainer.checkpoints import CheckpointInfo
from lsgd_jax.trainer.live import GENERATIONS, Begun, LiveRun
from lsgd_jax.trainer.newcomers import make_admit
from lsgd_jax.trainer.own_workers import own_rows, placed
from lsgd_jax.trainer.records import read_leaders, read_metrics

PULLS: dict[str, Any] = {"local_pull": 0.1, "global_pull": 0.1, "local_period": 4, "global_period": 8}
BASE = optax.sgd(0.1, momentum=0.9)


def model(key: jax.Array) -> tuple[Any, Any]:
    return {"w": jax.random.normal(key, (3, 2))}, {"mean": jax.random.normal(key, (2,))}


def begun(method: Any, topology: Topology, scores: Any) -> TrainState:
    """A state of workers that differ, with those scores; NaN of one that has none."""
    state = init_state(method, topology, model, jax.random.key(0), same_init=False)
    values = jnp.broadcast_to(jnp.asarray(scores, jnp.float32)[..., None], state.losses.values.shape)
    counts = jnp.where(jnp.isnan(jnp.asarray(scores)), 0, values.shape[-1]).astype(jnp.int32)
    losses = state.losses._replace(values=jnp.nan_to_num(values), filled=counts)
    opt_state = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, state.opt_state)
    state = state._replace(losses=losses, opt_state=opt_state, step=state.step + 40)
    return jax.device_put(
        state, jax.tree.map(lambda x: x.sharding, init_state(method, topology, model, jax.random.key(0)))
    )


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_workers_are_found_again_where_they_were(devices: int) -> None:
    topology = Topology(2, 4, jax.devices()[:devices])
    state = init_state(lsgd(BASE, **PULLS), topology, model, jax.random.key(3), same_init=False)
    rows = own_rows(state)
    assert jax.tree.leaves(rows.params)[0].shape == (8, 3, 2)
    again = placed(rows, topology)
    for one, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(state.params), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
    raw = state._replace(keys=jax.random.key_data(state.keys))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, raw))


@pytest.mark.parametrize("devices", [2, thorough(1), thorough(4)])
@pytest.mark.parametrize(
    ("new", "sources"),
    [
        ([[0, 0, 1], [0, 0, 0]], [[0, 1, 1], [3, 4, 5]]),
        ([[1, 0, 0], [1, 1, 0]], [[1, 1, 2], [5, 5, 5]]),
        ([[1, 1, 1], [0, 0, 0]], [[5, 5, 5], [3, 4, 5]]),  # of a group of which nobody is left
    ],
)
def test_who_comes_begins_from_the_best_of_its_group_or_of_all(devices: int, new: Any, sources: Any) -> None:
    method, topology = lsgd(BASE, **PULLS), Topology(2, 3, jax.devices()[:devices])
    state = begun(method, topology, [[3.0, 1.0, np.nan], [2.5, np.nan, 2.0]])
    old = own_rows(state)._replace(params=jax.device_get(state.params), model_state=jax.device_get(state.model_state))
    momentum = jax.device_get(jax.tree.leaves(state.opt_state))
    fresh = jax.random.split(jax.random.key(9), (2, 3))
    is_new, order = np.array(new, bool), np.array(sources)
    admitted = make_admit(method, topology)(state, fresh, jnp.asarray(is_new))
    for name in ("params", "model_state"):
        for leaf, before in zip(*(jax.tree.leaves(getattr(each, name)) for each in (admitted, old)), strict=True):
            np.testing.assert_array_equal(leaf, before.reshape(6, *before.shape[2:])[order])
    np.testing.assert_array_equal(admitted.losses.filled > 0, ~is_new & [[True, True, False], [True, False, True]])
    np.testing.assert_array_equal(admitted.own_steps, np.where(is_new, 40, 0))
    for leaf, before in zip(jax.tree.leaves(admitted.opt_state), momentum, strict=True):
        np.testing.assert_array_equal(np.asarray(leaf)[~is_new], before[~is_new])
    traces = [leaf for leaf in jax.tree.leaves(admitted.opt_state) if leaf.shape == (2, 3, 3, 2)]
    assert any((np.asarray(leaf)[is_new] == 0).all() for leaf in traces), "momentum begins anew"
    drawn = jax.random.key_data(admitted.keys)
    expected = jax.random.key_data(jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, 40)))(fresh))
    np.testing.assert_array_equal(drawn[is_new], expected[is_new])


def test_where_gradients_are_shared_who_comes_takes_the_optimizers_state_too() -> None:
    method, topology = data_parallel(BASE), Topology(1, 2, jax.devices()[:2])
    state = begun(method, topology, [[1.0, 2.0]])
    admitted = make_admit(method, topology)(
        state, jax.random.split(jax.random.key(9), (1, 2)), jnp.array([[False, True]])
    )
    for leaf in jax.tree.leaves((admitted.params, admitted.opt_state)):
        np.testing.assert_array_equal(leaf[:, 0], leaf[:, 1])


def test_compressed_messages_begin_from_what_all_know() -> None:
    method, topology = compressed(lsgd(BASE, **PULLS), bits=8), Topology(2, 2, jax.devices()[:4])
    state = begun(method, topology, [[3.0, 1.0], [2.5, 2.0]])
    fresh = jax.random.split(jax.random.key(9), (2, 2))
    admitted = make_admit(method, topology)(state, fresh, jnp.array([[False, True], [False, False]]))
    known = [leaf for leaf in jax.tree.leaves(admitted.opt_state) if leaf.shape == (2, 2, 3, 2)]
    assert any((np.asarray(leaf) == np.asarray(leaf)[:1, :1]).all() for leaf in known)


@pytest.mark.parametrize(
    ("shape", "count", "members", "now"),
    [
        ((2, 2), 4, (0, 1, 2, 3), (2, 2)),
        ((2, 2), 4, (0, 2, 3), (1, 3)),  # three cannot be dealt to two groups
        ((2, 2), 4, (0, 1), (1, 2)),  # a group is gone
        ((2, 2), 4, (1, 2), (2, 1)),
        ((2, 2), 4, (3,), (1, 1)),
        ((2, 4), 4, (0, 1, 3), (2, 3)),
        ((4, 2), 4, (0, 1, 2), (3, 2)),
        ((1, 6), 3, (0, 2), (1, 4)),
        ((2, 2), 2, (1,), (1, 2)),
    ],
)
def test_all_workers_that_are_left_go_on_in_as_many_groups_as_there_are_left(
    shape: Any, count: int, members: Any, now: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "devices", lambda: jax.devices()[: len(members)])
    run = LiveRun(SimpleNamespace(number=0), count)  # type: ignore[arg-type]
    run.shape, run.generation = shape, Generation(2, members, (), 8, None)
    assert run.shape_now() == now


@pytest.mark.parametrize(
    ("before", "members", "newcomers", "lost", "come"),
    [
        ((0, 1, 2, 3), (0, 1, 3), (), "2", ""),
        ((0, 1, 3), (0, 1, 2, 3), (2,), "", "2"),
        ((0, 1, 2), (0, 1, 3), (3,), "2", "3"),
        ((0, 1, 2, 3), (0, 1, 2), (0,), "0 3", "0"),  # it came again while others waited
        (None, (0, 1), (0, 1), "", ""),
    ],
)
def test_a_process_that_has_come_again_is_lost_and_taken_in(
    before: Any, members: Any, newcomers: Any, lost: str, come: str, tmp_path: Path
) -> None:
    run = LiveRun(SimpleNamespace(number=0), 4)  # type: ignore[arg-type]
    run.generation = Generation(2, members, newcomers, 8, None)
    run.begun = None if before is None else Begun(str(tmp_path), (2, 2), before, [], None)
    run.begin(tmp_path, 8, (1, 3))
    with (tmp_path / GENERATIONS).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["lost"], row["taken_in"]) == (lost, come)


def test_workers_that_processes_cannot_share_are_refused() -> None:
    run = LiveRun(SimpleNamespace(number=0), 4)  # type: ignore[arg-type]
    run.shape, run.generation = (2, 3), Generation(1, (0, 1, 2, 3), (), None, None)
    with pytest.raises(InputError, match="2 × 3 workers cannot be dealt equally to 4 processes"):
        run.shape_now()


def test_what_has_been_kept_of_calls_that_are_taken_again_is_forgotten() -> None:
    """Else one process could go on with what another one has never had."""
    topology, membership = Topology(1, 2, jax.devices()[:2]), Alone()
    state = init_state(lsgd(BASE, global_pull=0.1, global_period=8), topology, model, jax.random.key(3))
    run = LiveRun(membership, 1)  # type: ignore[arg-type]
    for step in (8, 16, 24):
        run.keep(state, step, CheckpointInfo((1, 2), 1.0, 0.5, 100))
    asked: list[list[int]] = []

    def join(steps: list[int]) -> Generation:
        asked.append(steps)
        return Generation(len(asked) + 1, (0,), (), 16, None)

    membership.join = join  # type: ignore[method-assign]
    run.join()
    run.join()
    assert asked == [[16, 24], [16]]


class Alone:
    """A membership of one process, that nobody leaves; somebody waits from a step on, once."""

    def __init__(self) -> None:
        self.number, self.wanted, self.generations = 0, False, 0

    def join(self, steps: list[int]) -> Generation:
        self.generations += 1
        self.wanted = False
        return Generation(self.generations, (0,), () if steps else (0,), max(steps, default=None), None)


def test_after_a_call_that_fails_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may be in the call still, and would take the message for one of its own."""

    class Failed:
        def block_until_ready(self) -> None:
            raise ConnectionError("somebody has died")

    asked: list[int] = []

    def ask() -> list[bool]:
        asked.append(1)
        return [True, True]

    monkeypatch.setattr(processes, "agreed", lambda *_, **__: ask)
    both = LiveRun(Alone(), 1).agreed(False, Topology(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ConnectionError):
        both({"params": Failed()})  # type: ignore[arg-type]
    assert not asked
    assert both({"params": jnp.ones(2)}) == (True, False)  # type: ignore[arg-type]


def test_who_goes_on_takes_the_learning_rate_that_belongs_to_as_many_workers() -> None:
    """With --scale_learning_rate it is a multiple of their number; all else is as it was kept."""
    method, topology = lsgd(BASE, global_pull=0.1, global_period=8), Topology(1, 2, jax.devices()[:2])
    before, now = (init_state(method, topology, model, jax.random.key(3), learning_rate=rate) for rate in (0.8, 0.4))
    run, info = LiveRun(Alone(), 1), CheckpointInfo((1, 2), 1.0, 0.5, 100)  # type: ignore[arg-type]
    before = before._replace(step=before.step + 8)
    run.keep(before, 8, info)
    shared = [leaf.item() for leaf in jax.tree.leaves(shared_fields(before))]
    run.generation, run.begun = Generation(2, (0,), (), 8, None), Begun("w", (1, 4), (0, 1), shared, info)
    restored = run.restored(SimpleNamespace(init_state=lambda: now, topology=topology, method=method))  # type: ignore[arg-type]
    assert restored is not None
    state, kept = restored
    assert (float(state.learning_rate), int(state.step), kept) == (pytest.approx(0.4), 8, info)
    for got, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(before.params), strict=True):
        np.testing.assert_array_equal(got, expected)


RUN: dict[str, Any] = {
    **{"model": "mlp", "batch_size": 8, "groups": 2, "workers": 2, "learning_rate": 0.02, "steps": 24, "eval_every": 8},
    **{"stale_global_pull": 0.01, "local_period": 4, "global_period": 8, "checkpoint_every": 12},
}


def ended(workdir: Path) -> tuple[list[np.ndarray], list[dict[str, Any]], Any]:
    """(state, metrics but for seconds, leaders) of a finished run."""
    state = reload_run(workdir).state
    rows = [{**row, "seconds": None} for row in read_metrics(workdir)]
    return (
        jax.tree.leaves(jax.device_get(state._replace(keys=jax.random.key_data(state.keys)))),
        rows,
        read_leaders(workdir),
    )


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [True, thorough(False)])
def test_a_run_from_which_nobody_is_lost_is_bitwise_the_same(interrupted: bool, tmp_path: Path) -> None:
    assert train(Config(str(tmp_path / "plain"), **RUN), figures=False)
    membership, config = Alone(), Config(str(tmp_path / "live"), **RUN)
    run = LiveRun(membership, 1)  # type: ignore[arg-type]
    run.join()
    membership.wanted = interrupted
    if interrupted:
        with pytest.raises(GenerationOverError):
            train(config, figures=False, live=run)
        run.join()
        assert run.generation.step == 4, "after the call that was under way"
    assert train(config, figures=False, live=run, resume=interrupted, elastic=interrupted)
    plain, live = (ended(tmp_path / name) for name in ("plain", "live"))
    assert all(map(np.array_equal, plain[0], live[0]))
    assert plain[1:] == live[1:]
