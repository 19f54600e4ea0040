"""Where workers live: the mesh that is chosen, ranks, shardings, and lanes."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import PartitionSpec

from lsgd_jax import GROUP, WORKER, Topology, elect_leader

# (groups, workers, devices) -> the mesh's (groups, workers)
MESHES = {
    (1, 1, 8): (1, 1),
    (2, 4, 1): (1, 1),
    (2, 4, 2): (2, 1),
    (2, 4, 3): (2, 1),
    (2, 4, 4): (2, 2),
    (2, 4, 5): (2, 2),
    (2, 4, 8): (2, 4),
    (4, 4, 4): (4, 1),
    (4, 4, 8): (4, 2),
    (3, 4, 8): (3, 2),
    (3, 5, 8): (1, 5),
    (4, 6, 6): (2, 3),
    (1, 6, 4): (1, 3),
    (6, 1, 4): (3, 1),
    (5, 7, 4): (1, 1),
    (16, 16, 8): (8, 1),
}


def mesh_shape(groups: int, workers: int, devices: int) -> tuple[int, int]:
    mesh = Topology(groups, workers, jax.devices()[:devices]).mesh
    return mesh.shape[GROUP], mesh.shape[WORKER]


@pytest.mark.parametrize(("case", "expected"), MESHES.items(), ids=map(str, MESHES))
def test_the_mesh_is_the_one_worked_out_by_hand(case: tuple[int, int, int], expected: tuple[int, int]) -> None:
    assert mesh_shape(*case) == expected


@settings(deadline=None, max_examples=60)
@given(groups=st.integers(1, 24), workers=st.integers(1, 24), devices=st.integers(1, 8))
def test_no_mesh_that_divides_the_shape_has_more_devices_or_as_many_and_more_groups(
    groups: int, workers: int, devices: int
) -> None:
    chosen = mesh_shape(groups, workers, devices)
    assert (groups % chosen[0], workers % chosen[1]) == (0, 0)
    assert chosen[0] * chosen[1] <= devices
    for g, w in product(range(1, devices + 1), repeat=2):
        if groups % g == workers % w == 0 and g * w <= devices:
            assert (g * w, g) <= (chosen[0] * chosen[1], chosen[0])


def test_the_mesh_takes_the_first_of_the_devices_that_were_given() -> None:
    devices = jax.devices()[::-1][:5]
    mesh = Topology(2, 2, devices).mesh
    assert mesh.axis_names == (GROUP, WORKER)
    assert mesh.devices.tolist() == [devices[:2], devices[2:4]]


def test_all_devices_are_used_by_default() -> None:
    assert Topology(2, 4).devices == tuple(jax.devices())
    assert Topology(2, 4).mesh.size == len(jax.devices()) == 8


def test_shape_and_size_count_workers_and_not_devices() -> None:
    topology = Topology(3, 5, jax.devices()[:2])
    assert (topology.shape, topology.size, topology.mesh.size) == ((3, 5), 15, 1)


def test_lanes_are_sequential_on_cpu_by_default_and_vmap_elsewhere() -> None:
    gpu: Any = SimpleNamespace(platform="gpu")
    assert Topology(2, 4).lanes == "sequential"
    assert Topology(2, 4, [gpu]).lanes == "vmap"
    assert Topology(2, 4, lanes="vmap").lanes == "vmap"
    assert Topology(2, 4, [gpu], lanes="sequential").lanes == "sequential"


@pytest.mark.parametrize("name", ["groups", "workers"])
@pytest.mark.parametrize("count", [0, -1, 1.5])
def test_a_count_of_workers_that_is_no_positive_whole_number_is_refused_by_name(name: str, count: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} .*{count}"):
        Topology(**{"groups": 2, "workers": 2, name: count})


def test_no_devices_and_unknown_lanes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="devices"):
        Topology(2, 2, [])
    unknown: Any = "parallel"
    with pytest.raises(ValueError, match=r"lanes.*'parallel'"):
        Topology(2, 2, lanes=unknown)


@pytest.mark.parametrize("case", [(2, 4, 1), (2, 4, 4), (2, 4, 8), (3, 4, 8)], ids=str)
def test_per_worker_arrays_lie_where_their_workers_are(case: tuple[int, int, int]) -> None:
    groups, workers, devices = case
    topology = Topology(groups, workers, jax.devices()[:devices])
    mesh_groups, mesh_workers = MESHES[case]
    numbers = np.arange(groups * workers * 3).reshape(groups, workers, 3)
    shards = jax.device_put(numbers, topology.per_worker).addressable_shards
    height, width = groups // mesh_groups, workers // mesh_workers
    assert len(shards) == mesh_groups * mesh_workers
    for shard in shards:
        g, w = np.argwhere(topology.mesh.devices == shard.device)[0]
        mine = numbers[g * height : (g + 1) * height, w * width : (w + 1) * width]
        np.testing.assert_array_equal(shard.data, mine)


def test_replicated_arrays_are_whole_on_every_device() -> None:
    numbers = np.arange(12).reshape(2, 6)
    shards = jax.device_put(numbers, Topology(2, 4).replicated).addressable_shards
    assert len(shards) == 8
    for shard in shards:
        np.testing.assert_array_equal(shard.data, numbers)


def of_each_worker(topology: Topology, function: Any, *args: Any) -> Any:
    """What a function of one worker that may communicate gives, as NumPy arrays [groups, workers, ...]."""
    split = PartitionSpec(GROUP, WORKER)
    mapped = topology.over_devices(topology.over_lanes(function), in_specs=split, out_specs=split)
    return jax.tree.map(np.asarray, jax.jit(mapped)(*args))


SPLITS = [(2, 4, 1), (2, 4, 2), (2, 4, 4), (2, 4, 8), (4, 2, 4), (3, 4, 8), (4, 6, 6), (1, 6, 4), (6, 1, 4), (1, 1, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("case", SPLITS, ids=str)
def test_ranks_are_row_major_over_groups_and_workers_however_they_are_split(case: tuple[int, int, int]) -> None:
    groups, workers, devices = case
    topology = Topology(groups, workers, jax.devices()[:devices])
    number = jnp.arange(groups * workers).reshape(groups, workers)

    def of_worker(number: jax.Array) -> Any:
        axes = topology.axes
        first_of_group = elect_leader(number.astype(float), axes.worker).score
        last_of_all = elect_leader(-number.astype(float), axes.all).rank
        return (
            *(lax.axis_index(names) + 0 * number for names in (axes.all, axes.group, axes.worker)),
            lax.psum(number, axes.worker),
            first_of_group + 0 * number,
            last_of_all + 0 * number,
        )

    rank, group, worker, in_group, first, last = of_each_worker(topology, of_worker, number)
    expected = np.arange(groups * workers).reshape(groups, workers)
    np.testing.assert_array_equal(rank, expected)
    np.testing.assert_array_equal(group, expected // workers)
    np.testing.assert_array_equal(worker, expected % workers)
    np.testing.assert_array_equal(in_group, expected.sum(1, keepdims=True).repeat(workers, 1))
    np.testing.assert_array_equal(first, expected[:, :1].repeat(workers, 1))
    np.testing.assert_array_equal(last, np.full((groups, workers), groups * workers - 1))


def test_what_over_lanes_does_not_map_is_given_whole_to_each_lane() -> None:
    topology = Topology(2, 3, jax.devices()[:1])
    mapped = topology.over_lanes(lambda shared, own: shared.sum() + own, in_axes=(None, 0))
    shared, own = np.arange(5.0), np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(mapped(shared, own), own + 10)


@pytest.mark.parametrize("lanes", ["vmap", "sequential"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (2, 1), (1, 1)], ids=str)
def test_each_lane_equals_a_plain_double_loop(lanes: Any, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    tree = {"matrix": rng.normal(size=(*shape, 4, 2)).astype(np.float32), "count": np.arange(np.prod(shape))}
    tree["count"] = tree["count"].reshape(shape)
    vector = rng.normal(size=2).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), shape)

    def function(tree: Any, vector: Any, key: jax.Array) -> Any:
        of_key = jax.random.key_data(key)[-1] % 7
        return {"product": tree["matrix"] @ vector + of_key, "scalars": (tree["count"] + 1, vector.sum())}

    topology = Topology(*shape, jax.devices()[:1], lanes=lanes)
    got = jax.jit(topology.each_lane(function, in_axes=(0, None, 0)))(tree, vector, keys)
    lane_by_lane = []
    for j in range(shape[0]):
        for i in range(shape[1]):
            mine = {name: leaf[j, i] for name, leaf in tree.items()}
            lane_by_lane.append(function(mine, vector, keys[j, i]))
    expected = jax.tree.map(lambda *x: np.stack(x).reshape(*shape, *x[0].shape), *lane_by_lane)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, expected)


@pytest.mark.parametrize("lanes", ["vmap", "sequential"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1)], ids=str)
def test_updated_lanes_are_those_of_a_plain_double_loop(lanes: Any, shape: tuple[int, int]) -> None:
    numbers = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    state = {"key": jax.random.split(jax.random.key(0), shape), "x": numbers[..., None] + np.ones(4, np.float32)}

    def function(state: Any, number: jax.Array, shared: jax.Array) -> Any:
        drawn = jax.random.uniform(state["key"], (4,))
        return {"key": jax.random.split(state["key"])[1], "x": state["x"] * number + drawn + shared}

    topology = Topology(*shape, jax.devices()[:1], lanes=lanes)
    update = jax.jit(topology.update_lanes(function, in_axes=(0, None)))
    got = update(state, numbers, np.float32(3))
    for j, i in np.ndindex(shape):
        expected = function(jax.tree.map(lambda x, at=(j, i): x[at], state), numbers[j, i], np.float32(3))
        np.testing.assert_allclose(got["x"][j, i], expected["x"], rtol=1e-6)
        assert got["key"][j, i] == expected["key"]


@pytest.mark.parametrize(("lanes", "batched"), [("vmap", True), ("sequential", False)])
def test_lanes_are_computed_as_the_topology_says(lanes: Any, batched: bool) -> None:
    """At once, in one product with a batch dimension, or one after the other in a loop."""
    topology = Topology(2, 3, jax.devices()[:1], lanes=lanes)
    of_all = (topology.each_lane(lambda x: x @ x, (0,)), topology.update_lanes(lambda x: x @ x, ()))
    for function in of_all:
        jaxpr = str(jax.make_jaxpr(function)(jnp.ones((2, 3, 4, 4))))
        assert ("f32[2,3,4,4] = dot_general" in jaxpr) == batched
        assert ("scan[" in jaxpr or "while[" in jaxpr) != batched
