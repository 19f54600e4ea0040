"""Parameters that come into a map as one copy for all workers: each steps by its own gradient, or they are refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from lsgd_runs import optax_sgd
from method_cases import TYPICAL
from regression import GROUPS, WORKERS, flattened, in_lanes, laid_out, loss_of, make_problem, mesh_of, scanned
from thorough import thorough

import lsgd_jax
from lsgd_jax import GROUP, WORKER, Axes, DistributedOptimizer, periodic

METHODS: dict[str, DistributedOptimizer] = {
    "lsgd": lsgd_jax.lsgd(optax_sgd(), local_period=2, global_period=4, stale_global_pull=0.1),
    "data_parallel": lsgd_jax.data_parallel(optax_sgd()),
} | {name: case.optimizer for name, case in TYPICAL.items()}
PROBLEM = make_problem(same_start=True, steps=12)
ONE = jax.tree.map(lambda leaf: leaf[0], PROBLEM.initial)
SPLIT = PartitionSpec((GROUP, WORKER))


def on_mesh(run: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`run` with the parameters as one copy, and each worker's batches."""

    def of_shard(params: Any, batches: Any) -> Any:
        own = run(params, jax.tree.map(lambda leaf: leaf[0], batches))
        return jax.tree.map(lambda leaf: leaf[None], own)

    options = {"mesh": mesh_of(GROUPS, WORKERS)} | options
    return jax.jit(jax.shard_map(of_shard, in_specs=(PartitionSpec(), SPLIT), out_specs=SPLIT, **options))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_a_mesh_knows_to_be_shared_are_refused_with_the_line_to_write(method: str) -> None:
    shared = on_mesh(partial(scanned, periodic(METHODS[method])))
    with pytest.raises(ValueError, match=r"params = jax\.lax\.pcast\(params, \('group', 'worker'\), to=\"varying\"\)"):
        jax.eval_shape(shared, ONE, PROBLEM.batches)


def with_own_parameters(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` after the line that the refusal tells to write."""
    return lambda params, batches: run(jax.lax.pcast(params, ("group", "worker"), to="varying"), batches)


def nested_lanes(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` in lanes of one device that all get the same parameters by in_axes=None."""
    lanes = jax.vmap(jax.vmap(run, (None, 0), axis_name=WORKER), (None, 0), axis_name=GROUP)
    return jax.jit(lambda params, batches: flattened(lanes(params, laid_out(batches, GROUPS))))


def pmap_of_lanes(run: Callable[..., Any]) -> Callable[..., Any]:
    mapped = jax.pmap(jax.vmap(run, (None, 0), axis_name=WORKER), in_axes=(None, 0), axis_name=GROUP)
    return lambda params, batches: flattened(mapped(params, laid_out(batches, GROUPS)))


def workers_of_two_devices() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(2, 2, 2), (GROUP, WORKER, "fsdp"))


MAPS: dict[str, Callable[..., Any]] = {
    "shard_map, after the line": lambda run: on_mesh(with_own_parameters(run)),
    "shard_map, check_vma=False": partial(on_mesh, check_vma=False),
    "nested vmap": nested_lanes,
    "pmap of vmap": pmap_of_lanes,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", MAPS)
@pytest.mark.parametrize("method", ["data_parallel", thorough("easgd"), "lsgd"])
def test_everywhere_else_workers_step_as_if_each_had_come_with_a_copy(method: str, how: str) -> None:
    run = partial(scanned, periodic(METHODS[method]))
    own = in_lanes(run, GROUPS)(PROBLEM.initial, PROBLEM.batches)
    shared = MAPS[how](run)(ONE, PROBLEM.batches)
    for name, leaf in own.items():
        np.testing.assert_allclose(shared[name], leaf, rtol=0, atol=1e-5)


def test_a_worker_of_several_devices_is_refused_and_right_likewise() -> None:
    problem = make_problem(count=4, same_start=True, steps=6)
    one = jax.tree.map(lambda leaf: leaf[0], problem.initial)
    run = partial(scanned, periodic(METHODS["data_parallel"]))
    options: dict[str, Any] = {"mesh": workers_of_two_devices(), "axis_names": {GROUP, WORKER}}
    with pytest.raises(ValueError, match="pcast"):
        jax.eval_shape(on_mesh(run, **options), one, problem.batches)
    own = in_lanes(run, 2)(problem.initial, problem.batches)
    shared = on_mesh(with_own_parameters(run), **options)(one, problem.batches)
    np.testing.assert_allclose(shared["w"], own["w"], rtol=0, atol=1e-5)


def test_gradients_and_scores_that_have_been_summed_are_refused() -> None:
    transform = periodic(METHODS["lsgd"])

    def step(params: Any, batches: Any, *, own_gradient: bool) -> Any:
        own = jax.lax.pcast(params, ("group", "worker"), to="varying")
        batch = jax.tree.map(lambda leaf: leaf[0], batches)
        loss, grads = jax.value_and_grad(loss_of)(own if own_gradient else params, batch)
        loss = lax.pmean(loss, ("group", "worker")) if own_gradient else loss
        return transform.update(grads, transform.init(own), own, value=loss)[0]

    with pytest.raises(ValueError, match=r"grads\['b'\] is the same for all workers"):
        jax.eval_shape(on_mesh(partial(step, own_gradient=False)), ONE, PROBLEM.batches)
    with pytest.raises(ValueError, match="value is the same for all workers"):
        jax.eval_shape(on_mesh(partial(step, own_gradient=True)), ONE, PROBLEM.batches)


def test_a_leaf_that_is_shared_beside_others_is_named_with_the_line_to_write() -> None:
    transform = periodic(METHODS["easgd"])

    def init(params: Any, batches: Any) -> Any:
        params = params | {"w": jax.lax.pcast(params["w"], ("group", "worker"), to="varying")}
        return transform.init(params).inner.center, batches

    line = r"write params\['b'\] = jax\.lax\.pcast\(params\['b'\], \('group', 'worker'\), to=\"varying\"\)"
    with pytest.raises(ValueError, match=line):
        jax.eval_shape(on_mesh(init), ONE, PROBLEM.batches)


def test_what_does_not_learn_may_be_shared() -> None:
    transform = periodic(METHODS["easgd"])

    def center(params: Any, batches: Any) -> Any:
        own = {"w": jax.lax.pcast(params["w"], ("group", "worker"), to="varying"), "table": params["table"]}
        grads = {"w": own["w"] - batches.inputs[0, 0, 0], "table": jnp.zeros_like(own["table"])}
        updates, _ = transform.update(grads, transform.init(own), own)
        return optax.apply_updates(own, updates)

    params = {"w": jnp.ones(2), "table": jnp.arange(3)}
    after = on_mesh(center)(params, PROBLEM.batches)
    np.testing.assert_array_equal(after["table"], np.tile(np.arange(3), (6, 1)))


def test_who_drives_a_method_directly_is_refused_too() -> None:
    optimizer = METHODS["data_parallel"]

    def step(params: Any, batches: Any) -> Any:
        grads = jax.grad(loss_of)(params, jax.tree.map(lambda leaf: leaf[0], batches))
        return optimizer.reduce_gradients(grads, Axes())

    with pytest.raises(ValueError, match=r"grads\['b'\] is the same for all workers"):
        jax.eval_shape(on_mesh(step), ONE, PROBLEM.batches)
    with pytest.raises(ValueError, match="pcast"):
        jax.eval_shape(on_mesh(lambda params, batches: optimizer.init(params, Axes())), ONE, PROBLEM.batches)


def test_parameters_that_are_split_by_hand_over_a_further_axis_are_refused() -> None:
    split = PartitionSpec((GROUP, WORKER, "fsdp"))

    def init(params: Any) -> Any:
        return periodic(METHODS["grawa"]).init(params).inner.norms.values

    mapped = jax.shard_map(init, mesh=workers_of_two_devices(), in_specs=split, out_specs=split)
    with pytest.raises(
        ValueError, match=r"split over \['fsdp'\] besides the workers' axes: leave these to the compiler"
    ):
        jax.eval_shape(mapped, jnp.ones(16))
