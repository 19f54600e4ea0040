"""Workers of several devices: as with one each, however their arrays are split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from lsgd_runs import STALE, method
from method_cases import REFERENCES, TYPICAL
from numpy_lsgd import Faults
from regression import QUICK, loss_of, make_problem, with_faults
from thorough import mostly, thorough
from train_steps import REGRESSION, STEPS, run

import lsgd_jax
from lsgd_jax import GROUP, WORKER, Topology, gathered, init_state, lsgd, make_train_step, periodic
from lsgd_jax.collectives import partition
from lsgd_jax.collectives.partition import LEAST_SPLIT, split_by_size, without
from lsgd_jax.engine.state import TrainState
from lsgd_jax.trainer.candidates import every_worker, make_candidates

P = PartitionSpec
FSDP, BOTH = {"fsdp": 2}, {"fsdp": 2, "tensor": 2}
PROBLEM = make_problem(count=8, steps=STEPS)
# One is lost at a communication, one between two, then a group, and at last everybody.
LOST = Faults(
    leaves={(6, 1): ("b",), (22, 1): ("b", "w")}
    | {(33, rank): ("b",) for rank in (4, 5, 6, 7)}
    | {(63, rank): ("w",) for rank in range(8)}
)
METHODS = {name: TYPICAL[name].optimizer for name in REFERENCES} | {
    "lsgd": method(STALE),
    "lsgd around a ring": lsgd(optax.adam(0.01), local_period=3, global_period=6, broadcast="ring"),
    "data_parallel": lsgd_jax.data_parallel(optax.adam(0.01)),
}


@pytest.fixture(autouse=True)
def split_what_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "LEAST_SPLIT", 4)


def faulty(topology: Topology) -> Any:
    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        del key
        broken = {name: leaf + 0 * batch.leaf_faults[name] for name, leaf in topology.gathered(params).items()}
        return loss_of(broken, batch) + batch.loss_fault, model_state

    return loss


def trained(optimizer: Any, topology: Topology) -> tuple[Any, list[Any], TrainState]:
    step = make_train_step(optimizer, topology, faulty(topology), REGRESSION, compiler_options=QUICK)
    return run(with_faults(PROBLEM, LOST), (optimizer, topology, step), cuts=2)


def news(reports: list[Any]) -> list[Any]:
    """Who led and who started again in each call."""
    return [
        (step, level, None if of.leader is None else of.leader.rank.tolist(), of.restarted.tolist())
        for step, report in reports
        for level, of in report.elections.items()
    ]


def assert_same(one: Any, other: Any) -> None:
    (ours, our_reports, our_state), (theirs, their_reports, their_state) = one, other
    assert news(our_reports) == news(their_reports)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), ours, theirs)
    for a, b in zip(jax.tree.leaves(our_state.opt_state), jax.tree.leaves(their_state.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly(METHODS, "lsgd", "lsgd around a ring", "easgd", "local_sgd", "dppf", "data_parallel")
)
def test_every_method_takes_the_course_of_workers_of_one_device_with_lost_ones_too(name: str) -> None:
    optimizer, devices = METHODS[name], jax.devices()
    several = trained(optimizer, Topology(2, 4, devices, worker_axes=FSDP))
    assert_same(trained(optimizer, Topology(2, 4, devices[:1])), several)
    _, _, state = several
    assert state.params["w"].sharding.spec == P(GROUP, WORKER, None, "fsdp")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "devices", "lanes"),
    [(BOTH, 4, "vmap"), (FSDP, 2, None), thorough(BOTH, 8, "sequential"), thorough({"x": 8}, 8, "vmap")],
)
def test_any_split_takes_the_same_course_with_lanes_too(axes: Any, devices: int, lanes: Any) -> None:
    for name in ("lsgd", "data_parallel"):
        topology = Topology(2, 4, jax.devices()[:devices], lanes, worker_axes=axes)
        assert topology.mesh.size == devices
        assert_same(trained(METHODS[name], Topology(2, 4, jax.devices()[:1])), trained(METHODS[name], topology))


@pytest.mark.slow
def test_in_int8_each_device_sends_its_part_in_blocks_of_its_own() -> None:
    optimizer = lsgd(optax.sgd(0.02), local_period=3, global_period=6, wire_dtype=jnp.int8)
    exact = lsgd(optax.sgd(0.02), local_period=3, global_period=6)
    rounded, _, _ = trained(optimizer, Topology(2, 4, worker_axes=FSDP))
    expected, _, _ = trained(exact, Topology(2, 4, jax.devices()[:1]))
    for step in range(1, 33):  # until a group is lost
        for name, leaf in expected[step].items() if step in expected else ():
            np.testing.assert_allclose(rounded[step][name], leaf, rtol=0, atol=0.05)


def model(key: jax.Array) -> Any:
    wide, tall = jax.random.split(key)
    return {"wide": jax.random.normal(wide, (4, 64)), "tall": jax.random.normal(tall, (64, 4)), "odd": jnp.ones(7)}, {}


def test_a_state_is_split_from_the_beginning_and_stays_so_in_place() -> None:
    optimizer = lsgd(optax.adam(0.1), local_period=2, global_period=4, stale_local_pull=0.1)
    topology = Topology(2, 2, worker_axes=FSDP)
    state = init_state(optimizer, topology, model, jax.random.key(0))
    specs = {"wide": P(GROUP, WORKER, None, "fsdp"), "tall": P(GROUP, WORKER, "fsdp"), "odd": P(GROUP, WORKER)}
    (adam, _), leader = state.opt_state.base, state.opt_state.local_leader

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        del key
        params = gathered(params)
        return jnp.square(batch @ params["wide"] @ params["tall"]).mean() + params["odd"].sum(), model_state

    batches = lsgd_jax.from_arrays(np.ones((64, 4), np.float32), 4).open(topology, 0, 8)
    step = make_train_step(optimizer, topology, lambda p, s, b, k: loss(p, s, b, k), batches.batches)
    data = batches.data_for(0, 0)
    compiled = step.lower(state, data, jnp.int32(1)).compile(QUICK)
    memory, size = compiled.memory_analysis(), sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    assert memory.alias_size_in_bytes > 0.9 * size / 8
    after, _ = compiled(state, data, jnp.int32(2))
    for tree in (state.params, adam.mu, adam.nu, leader):
        for name, spec in specs.items():
            assert tree[name].sharding.is_equivalent_to(NamedSharding(topology.mesh, spec), tree[name].ndim)
    jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim) or pytest.fail(str(b)), after, state)


def test_candidates_and_workers_are_split_as_one_model() -> None:
    optimizer, topology = METHODS["easgd"], Topology(2, 2, worker_axes=FSDP)
    state = init_state(optimizer, topology, model, jax.random.key(0), same_init=False)
    alone = init_state(optimizer, Topology(2, 2, jax.devices()[:1]), model, jax.random.key(0), same_init=False)
    found = make_candidates(optimizer, topology)(state)
    expected = make_candidates(optimizer, Topology(2, 2, jax.devices()[:1]))(alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, expected)
    for params, _ in (found.center, found.leader, *every_worker(state, topology)):
        assert params["wide"].sharding.spec == P(None, "fsdp")
        assert len({str(shard.index) for shard in params["wide"].addressable_shards}) == 2


@pytest.mark.slow
def test_a_loop_of_ones_own_may_leave_axes_to_the_compiler() -> None:
    """`periodic` under a `jax.shard_map` with the default check_vma, on meshes with and without such an axis."""
    transform = periodic(lsgd(optax.adam(0.1), local_period=2, global_period=4))

    def train(params: Any, batches: jax.Array) -> Any:
        def step(carry: Any, batch: jax.Array) -> Any:
            params, state = carry
            value, grads = jax.value_and_grad(lambda p: jnp.square(batch @ gathered(p)["w"] - 1).mean())(params)
            updates, state = transform.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        params = jax.tree.map(lambda x: x[0, 0], params)
        (params, _), losses = jax.lax.scan(step, (params, transform.init(params)), batches[0, 0])
        return jax.tree.map(lambda x: x[None, None], (params, losses))

    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(2, 2, 6, 8)).astype(np.float32)}
    batches = rng.normal(size=(2, 2, 60, 4, 6)).astype(np.float32)
    spread, devices = P(GROUP, WORKER), np.array(jax.devices())

    def on(mesh: Mesh, split: P) -> Any:
        mapped = jax.shard_map(
            train, mesh=mesh, in_specs=(spread, spread), out_specs=spread, axis_names={GROUP, WORKER}
        )
        placed = jax.device_put(params, NamedSharding(mesh, split))
        return jax.jit(mapped)(placed, jax.device_put(batches, NamedSharding(mesh, spread)))

    alone = on(Mesh(devices[:4].reshape(2, 2), (GROUP, WORKER)), spread)
    split = on(Mesh(devices.reshape(2, 2, 2), (GROUP, WORKER, "fsdp")), P(GROUP, WORKER, None, "fsdp"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), alone, split)


def test_what_is_gathered_travels_in_its_dtype_and_its_gradient_comes_back_split() -> None:
    topology = Topology(1, 2, jax.devices()[:4], worker_axes=FSDP)

    def loss(params: Any) -> jax.Array:
        params = gathered(params, dtype=jnp.bfloat16)
        assert (params["w"].dtype, params["b"].dtype) == (jnp.bfloat16, jnp.float32)
        return (params["w"].astype(jnp.float32) ** 2).sum() + params["b"].sum()

    def of_device(params: Any) -> Any:
        return jax.tree.map(
            lambda g: topology.split(g)[None, None], jax.grad(loss)(jax.tree.map(lambda x: x[0, 0], params))
        )

    mapped = topology.over_devices(of_device, in_specs=P(GROUP, WORKER), out_specs=P(GROUP, WORKER))
    params = {"w": jnp.full((1, 2, 4, 8), 0.3), "b": jnp.ones((1, 2, 8))}
    program = jax.jit(mapped).lower(jax.device_put(params, topology.of_workers(params))).compile()
    grads = program(jax.device_put(params, topology.of_workers(params)))
    assert grads["w"].dtype == jnp.float32
    np.testing.assert_allclose(grads["w"], 2 * np.float32(jnp.bfloat16(0.3)), rtol=1e-2)
    expected = NamedSharding(topology.mesh, P(GROUP, WORKER, None, "fsdp"))
    assert grads["w"].sharding.is_equivalent_to(expected, 4)
    np.testing.assert_array_equal(grads["b"], 1)
    assert gathered(params) is params, "without a mesh there is nothing to gather"


@given(
    shape=st.lists(st.integers(1, 96) | st.sampled_from([128, 512, 3072]), max_size=4),
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_each_axis_splits_at_most_one_dimension_which_it_divides(shape: list[int], sizes: list[int]) -> None:
    axes = {f"axis{i}": size for i, size in enumerate(sizes)}
    spec = split_by_size(shape, axes)
    taken = [(of,) if isinstance(of, str) else tuple(of or ()) for of in spec]
    assert len(set(sum(taken, ()))) == len(sum(taken, ()))
    for length, names in zip(shape, taken, strict=False):
        assert length % np.prod([axes[name] for name in names], dtype=int) == 0
    fitting = [i for i, length in enumerate(shape) if length % sizes[0] == 0]
    if np.prod(shape, dtype=int) >= partition.LEAST_SPLIT and fitting:
        tiles = {len(shape) - 2: 16, len(shape) - 1: 128}
        tiled = [i for i in fitting if i in tiles and shape[i] // sizes[0] % tiles[i] == 0]
        assert "axis0" in taken[max(tiled or fitting, key=lambda i: shape[i])]
    assert "axis0" not in sum([(of,) if isinstance(of, str) else tuple(of or ()) for of in without(spec, "axis0")], ())


def test_a_rule_counts_where_it_divides_and_small_arrays_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "LEAST_SPLIT", LEAST_SPLIT)
    rules = ((r"embed$", P("fsdp", "tensor")), (r"block\d+/odd", P("tensor")), ("block", P(None, ("fsdp", "tensor"))))
    topology = Topology(1, 1, worker_axes=BOTH, partition=rules)
    tree = {
        "embed": (64, 64),
        "block1": {"kernel": (64, 128), "odd": (63, 512), "bias": (128,)},
        "other": (32, 256),
        "small": (8, 8),
    }
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=lambda s: isinstance(s, tuple))
    found = jax.tree.map(lambda sharding: sharding.spec, topology.of_model({"params": shapes}))["params"]
    assert found == {
        "embed": P("fsdp", "tensor"),
        "block1": {"kernel": P(None, ("fsdp", "tensor")), "odd": P(None, ("fsdp", "tensor")), "bias": P()},
        "other": P("tensor", "fsdp"),
        "small": P(),
    }
    only_fsdp = Topology(1, 1, worker_axes=FSDP, partition=rules)
    assert only_fsdp.of_model({"embed": shapes["embed"]})["embed"].spec == P("fsdp", None)
    assert hash(topology) != hash(only_fsdp)


@pytest.mark.parametrize(
    ("axes", "told"),
    [
        ({"fsdp": 3.5}, r"worker_axes\['fsdp'\] must be a whole number"),
        ({"fsdp": 0}, r"worker_axes\['fsdp'\] must be a whole number of at least 1, got 0"),
        ({"worker": 2}, "the name 'worker' is taken"),
        ({"fsdp": 4, "tensor": 4}, r"a worker of 16 devices .* does not fit on 8"),
    ],
)
def test_axes_that_cannot_be_are_told(axes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Topology(2, 4, worker_axes=axes)
