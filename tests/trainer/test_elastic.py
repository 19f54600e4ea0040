"""Going on with another number of workers: who is kept, who begins, and what each brings along."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from thorough import thorough

from lsgd_jax import Topology, compressed, data_parallel, init_state, lsgd, overlapped
from lsgd_jax.cluster import processes
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import fit_devices
from lsgd_jax.config.reload import reload_run
from lsgd_jax.config.train import train
from lsgd_jax.engine import topology
from lsgd_jax.engine.state import TrainState
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.lsgd import LsgdState
from lsgd_jax.optimizers.overlapped import Heard, OverlappedState
from lsgd_jax.trainer import elastic
from lsgd_jax.trainer.elastic import place
from lsgd_jax.trainer.records import read_leaders, read_metrics

ALL = np.ones((2, 3), bool)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize(
    ("devices", "before", "after"),
    [(3, (2, 2), (1, 3)), (6, (2, 4), (2, 3)), (5, (2, 2), (1, 5)), (4, (2, 3), (2, 2)), (2, (2, 2), (2, 2)),
     (3, (4, 4), (3, 5)), (1, (2, 3), (2, 3))],
)  # fmt: skip
def test_as_many_workers_go_on_as_the_processes_can_share(
    devices: int,
    before: tuple[int, int],
    after: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each process has a device here."""
    found = [SimpleNamespace(process_index=number, platform="cpu") for number in range(devices)]
    monkeypatch.setattr(processes, "devices", lambda: found)
    monkeypatch.setattr(processes, "count", lambda: devices)
    monkeypatch.setattr(topology, "Mesh", lambda array, names: SimpleNamespace(devices=array))
    config = fit_devices(Config("run", groups=before[0], workers=before[1]))
    assert (config.groups, config.workers) == after
    told = f"going on with {after[0]} × {after[1]}\n" if before != after else ""
    assert capsys.readouterr().out.endswith(told)


def test_fewer_workers_are_those_with_the_best_scores_each_in_its_group_if_there_is_room() -> None:
    scores = np.array([[0.5, 0.1, 0.3], [0.2, 0.9, np.nan]])
    places = place(scores, ALL, (2, 2))
    assert not places.new.any()
    # Kept are 1, 3, 2, 0: group 0 has room for the better two of its three, and the third goes to the other.
    assert places.source.tolist() == [[1, 2], [0, 3]]
    assert place(scores, ALL, (1, 2)).source.tolist() == [[1, 3]]
    assert place(scores, ALL, (1, 1)).source.tolist() == [[1]]


def test_more_workers_start_from_the_leader_of_their_group_or_of_all_where_it_is_empty() -> None:
    scores = np.array([[0.5, 0.1], [0.2, 0.9]])
    places = place(scores, np.ones((2, 2), bool), (3, 3))
    assert places.source.tolist() == [[0, 1, 1], [2, 3, 2], [1, 1, 1]]
    assert places.new.tolist() == [[False, False, True], [False, False, True], [True, True, True]]


def test_a_worker_that_is_lost_is_not_kept_while_there_is_another() -> None:
    scores, healthy = np.array([[0.1, 0.2]]), np.array([[False, True]])
    places = place(scores, healthy, (1, 2))
    assert (places.source.tolist(), places.new.tolist()) == ([[1, 1]], [[False, True]])
    assert place(scores, np.zeros((1, 2), bool), (1, 1)).source.tolist() == [[0]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    before = draw(SHAPES)
    scores = draw(hnp.arrays(float, before, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, np.nan, np.inf])))
    return scores, draw(hnp.arrays(bool, before)), draw(SHAPES)


@given(cases())
def test_the_best_are_kept_once_each_and_all_places_are_filled(
    case: tuple[np.ndarray, np.ndarray, tuple[int, int]],
) -> None:
    scores, healthy, shape = case
    places = place(scores, healthy, shape)
    able = healthy if healthy.any() else np.ones_like(healthy)
    known = np.where(np.isfinite(scores), scores, np.inf)
    kept, begun = places.source[~places.new], places.source[places.new]
    assert len(kept) == len(set(kept)) == min(able.sum(), np.prod(shape))
    assert able.ravel()[places.source].all()
    left = [rank for rank in np.flatnonzero(able) if rank not in kept]
    if left:
        assert max(known.ravel()[kept]) <= min(known.ravel()[left])
    assert set(begun) <= set(kept)
    for group, new in zip(places.source, places.new, strict=True):
        candidates = group[~new] if (~new).any() else kept
        assert all(known.ravel()[rank] == min(known.ravel()[candidates]) for rank in group[new])
        assert sorted(group[~new]) == group[~new].tolist()
    if shape[0] >= scores.shape[0] and shape[1] >= scores.shape[1]:  # with room for everybody nobody moves
        assert all(rank // scores.shape[1] == j for j, i in np.argwhere(~places.new) for rank in [places.source[j, i]])


RUN: dict[str, Any] = {
    **{"model": "mlp", "batch_size": 8, "learning_rate": 0.02, "stale_local_pull": 0.02, "stale_global_pull": 0.01},
    **{"local_period": 4, "global_period": 8, "leader_window": 4, "eval_every": 8, "checkpoint_every": 8},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 × 2 workers that ended at step 8."""
    workdir = tmp_path_factory.mktemp("elastic") / "begun"
    assert train(Config(str(workdir), **RUN, groups=2, workers=2, steps=8), figures=False)
    return workdir


def state_of(workdir: Path) -> TrainState:
    state = reload_run(workdir).state
    return jax.device_get(state._replace(keys=jax.random.key_data(state.keys)))


def settled(begun: Path, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """(old state, new state, places): what a run of another shape goes on from."""
    found: dict[str, Any] = {}
    plain = elastic.settle

    def settle(old: TrainState, fresh: TrainState, places: Any, *rest: Any) -> TrainState:
        state = plain(old, fresh, places, *rest)
        found.update(places=places, state=jax.device_get(state._replace(keys=jax.random.key_data(state.keys))))
        return state

    monkeypatch.setattr(elastic, "settle", settle)
    shutil.copytree(begun, tmp_path / "run")
    config = Config(str(tmp_path / "run"), **RUN, groups=shape[0], workers=shape[1], steps=16)
    summary = train(config, resume=True, elastic=True, figures=shape == (1, 3))
    assert summary is not None
    return found["state"], found["places"], summary


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 3), thorough((2, 3))])
def test_a_run_goes_on_with_fewer_and_with_more_workers(
    shape: tuple[int, int], begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    old = state_of(begun)
    state, places, summary = settled(begun, shape, monkeypatch, tmp_path)
    told = capsys.readouterr().out

    def taken(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(-1, *leaf.shape[2:])[places.source]

    jax.tree.map(lambda x, y: np.testing.assert_array_equal(taken(x), y), old.params, state.params)
    everything = [
        (old.opt_state.base, state.opt_state.base),
        (old.opt_state.global_leader, state.opt_state.global_leader),
        (old.losses, state.losses),
        (old.keys, state.keys),
        (old.own_steps, state.own_steps),
    ]
    for before, after in everything:
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(taken(x)[~places.new], y[~places.new]), before, after)
    assert (state.opt_state.local_leader is None) == (shape[0] == 1)
    assert int(state.step) == 8
    moved = [(new, int(old)) for new, old in enumerate(places.source[~places.new]) if new != old]
    if shape == (1, 3):
        assert not places.new.any()
        assert "left out: worker " in told
        assert all(f"worker {new} is what was worker {old}\n" in told for new, old in moved)
    else:
        assert places.new.tolist() == [[False, False, True]] * 2
        assert "worker 2 starts from what was worker " in told
        momentum = [leaf for leaf in jax.tree.leaves(state.opt_state.base) if leaf.ndim > 2]
        assert momentum
        assert not any(leaf[places.new].any() for leaf in momentum)
        assert all(leaf[~places.new].any() for leaf in momentum)
        assert not state.losses.filled[places.new].any()
        assert (state.own_steps[places.new] == 8).all()
    keys = state.keys.reshape(-1, state.keys.shape[-1]).tolist()
    assert len({tuple(key) for key in keys}) == len(keys)

    rows = read_metrics(tmp_path / "run")
    before = read_metrics(begun)
    assert {**rows[0], "seconds": None} == {**before[0], "seconds": None}
    assert [row["step"] for row in rows] == [8, 16]
    assert (summary["groups"], summary["workers"], len(summary["worker_test_error"])) == (*shape, np.prod(shape))
    whole = reload_run(tmp_path / "run").run.ledger
    assert rows[1]["bytes_communicated"] == rows[0]["bytes_communicated"] + whole.bytes_sent(16) - whole.bytes_sent(8)
    assert {row.step for row in read_leaders(tmp_path / "run") if row.level == "global"} == {8, 16}
    if shape == (2, 3):
        return
    assert (tmp_path / "run" / "figures" / "leaders.png").exists()
    # A further time it goes on as it is, also from the checkpoint of the other shape.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "16")
    (tmp_path / "run" / "summary.json").unlink()
    config = Config(str(tmp_path / "run"), **RUN, groups=shape[0], workers=shape[1], steps=16)
    again = train(config, resume=True)
    assert {**summary, "seconds": None} == {**again, "seconds": None}


@pytest.mark.slow
def test_a_run_killed_after_its_last_step_is_evaluated_again_if_others_finish_it(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    config = Config(str(tmp_path / "run"), **RUN, groups=1, workers=2, steps=8)
    summary = train(config, resume=True, elastic=True, figures=False)
    assert summary is not None
    rows = read_metrics(tmp_path / "run")
    assert [(row["step"], row["groups"], row["workers"]) for row in rows] == [(8, 2, 2), (8, 1, 2)]
    assert summary["test_error"] == rows[1]["test_error"]
    assert summary["worker_test_error"][summary["leader"]] == pytest.approx(summary["leader_test_error"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_level_that_goes_takes_nothing_else_of_the_optimizers_state_along(wrapped: bool) -> None:
    def state(leader: Any, number: float) -> Any:
        inner = LsgdState({"momentum": np.full(2, number)}, leader, {"w": np.full(2, number)})
        return OverlappedState(inner, (Heard(number, True),)) if wrapped else inner

    for leader, new in ((None, {"w": np.ones(2)}), ({"w": np.ones(2)}, None)):
        old, fresh = state(leader, 1.0), state(new, 2.0)
        found = elastic.with_fields(old, elastic.unknown_fields(old, fresh))
        assert jax.tree.structure(found) == jax.tree.structure(fresh)
        inner = found.inner if wrapped else found
        assert inner.local_leader is new
        assert inner.base["momentum"].tolist() == inner.global_leader["w"].tolist() == [1, 1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_workers_in_new_groups_know_what_differences_are_to(wrapped: bool) -> None:
    method = compressed(lsgd(optax.sgd(0.1), local_period=2, global_period=4), bits=4)
    method = overlapped(method) if wrapped else method
    few, more = Topology(2, 2, jax.devices()[:1]), Topology(2, 3, jax.devices()[:1])

    def start(topology: Topology) -> TrainState:
        def model(key: jax.Array) -> Any:
            return {"w": jax.random.normal(key, (5,))}, {}

        return init_state(method, topology, model, jax.random.key(0), same_init=False)

    begun, fresh = start(few), start(more)
    old = jax.device_get(begun._replace(keys=jax.random.key_data(begun.keys)))
    places = place(np.array([[0.2, 0.1], [0.4, 0.3]]), np.ones((2, 2), bool), (2, 3))
    state = elastic.settle(old, elastic.FreshFields(fresh.keys, fresh.learning_rate, {}), places, method, more)
    inner = state.opt_state.inner if wrapped else state.opt_state
    of_group, of_all = (memory.heard["w"] for memory in inner.memories)
    np.testing.assert_array_equal(of_group, np.broadcast_to(of_group[:, :1], (2, 3, 5)))
    np.testing.assert_array_equal(of_all, np.broadcast_to(of_all[:1, :1], (2, 3, 5)))
    np.testing.assert_allclose(of_group[:, 0], state.params["w"].mean(axis=1), rtol=1e-6)
    if wrapped:
        assert not any(each.waiting.any() for each in state.opt_state.heard)


def test_all_workers_of_data_parallel_stay_equal() -> None:
    method = data_parallel(optax.sgd(0.1, momentum=0.9))

    def start(topology: Topology) -> TrainState:
        state = init_state(method, topology, lambda key: (jax.random.normal(key, (5,)), {}), jax.random.key(0))
        return state._replace(opt_state=jax.tree.map(lambda x: x + 2, state.opt_state))

    few, more = Topology(1, 2, jax.devices()[:1]), Topology(1, 4, jax.devices()[:4])
    begun = start(few)
    old = jax.device_get(begun._replace(keys=jax.random.key_data(begun.keys)))
    places = place(np.array([[0.2, 0.1]]), np.ones((1, 2), bool), (1, 4))
    begun = elastic.FreshFields(start(more).keys, start(more).learning_rate, {})
    state = elastic.settle(old, begun, places, method, more)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:, :1], leaf.shape))
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(state.opt_state))


def test_without_elastic_other_workers_are_refused_with_what_to_do(begun: Path) -> None:
    config = Config(str(begun), **RUN, groups=2, workers=3, steps=16)
    with pytest.raises(InputError, match=r"--workers was 2, is 3.*or add --elastic"):
        train(config, resume=True)
    with pytest.raises(InputError, match=r"--seed was 0, is 1\): leave them out, or use a new --workdir$"):
        train(dataclasses.replace(config, seed=1), resume=True, elastic=True)
    assert json.loads((begun / "config.json").read_text())["workers"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, thorough(1)])
def test_a_language_model_keeps_its_batch_size_or_is_refused(workers: int, tmp_path: Path) -> None:
    """Shards of 20 windows at first, fewer than a batch usually has; with four workers of 10."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question. " * 34)
    settings: dict[str, Any] = {
        **{"text_file": str(tmp_path / "text.txt"), "model": "lstm", "model_width": 4, "model_layers": 1},
        **{"groups": 1, "sequence_length": 32, "global_period": 2},
    }
    workdir = str(tmp_path / "run")
    train(Config(workdir, **settings, workers=2, steps=2), figures=False)
    again = Config(workdir, **settings, workers=workers, steps=4)
    if workers == 4:
        with pytest.raises(InputError, match=r"--batch_size=20 .* does not fit into a worker's shard"):
            train(again, resume=True, elastic=True)
        return
    summary = train(again, resume=True, elastic=True, figures=False)
    assert summary is not None
    assert (summary["batch_size"], summary["workers"]) == (20, 1)
