"""`periodic` in a user's own loop: every way to map workers, and optax around and inside it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from lsgd_runs import PLAIN, STALE, assert_same, expected, method, optax_sgd
from numpy_lsgd import Base, Settings, Sgd, Tree, simulate
from regression import (
    GROUPS,
    STEPS,
    WORKERS,
    Steps,
    advance,
    in_lanes,
    make_problem,
    numpy_loss_and_grad,
    on_mesh,
    on_mesh_of_lanes,
    on_pmap_of_lanes,
    run_scanned,
    scanned,
    steps_in_lanes,
    steps_on_mesh,
    steps_with_a_counter_each,
)

from lsgd_jax import WORKER, data_parallel, lsgd, periodic
from lsgd_jax.accounting.compiled import collectives, collectives_outside_conditionals

Transform = optax.GradientTransformationExtraArgs
MESH = partial(on_mesh, groups=GROUPS, workers=WORKERS)
LANES = partial(in_lanes, groups=GROUPS)
MAPPINGS: dict[str, Callable[..., Any]] = {
    "shard_map on a plain mesh": MESH,
    "shard_map of vmap": partial(on_mesh_of_lanes, groups=GROUPS),
    "pmap of vmap": partial(on_pmap_of_lanes, groups=GROUPS),
    "nested vmap": LANES,
}
STEP_BY_STEP: dict[str, Callable[[Transform], Steps]] = {
    "shard_map": steps_on_mesh,
    "shard_map, a counter each": partial(steps_with_a_counter_each, MESH),
    "nested vmap": steps_in_lanes,
    "nested vmap, a counter each": partial(steps_with_a_counter_each, LANES),
}


@cache
def reference(settings: Settings) -> Any:
    return expected(make_problem(), settings)


@pytest.mark.slow
@pytest.mark.parametrize("how", MAPPINGS)
def test_a_scan_inside_any_mapping_takes_the_same_course(how: str) -> None:
    assert_same(run_scanned(MAPPINGS[how], periodic(method(STALE)), make_problem()), reference(STALE))


def test_without_stale_pulls_a_mesh_takes_the_same_course() -> None:
    assert_same(run_scanned(MESH, periodic(method(PLAIN)), make_problem()), reference(PLAIN))


@pytest.mark.parametrize("settings", [replace(PLAIN, election="random"), replace(STALE, temperature=0.1)])
def test_other_elections_take_the_same_course_on_a_mesh(settings: Settings) -> None:
    assert_same(run_scanned(MESH, periodic(method(settings)), make_problem()), reference(settings))


def test_leaders_that_go_around_a_ring_lead_the_same_course() -> None:
    by_sum, by_ring = (
        run_scanned(MESH, periodic(method(PLAIN, broadcast=way)), make_problem()) for way in ("psum", "ring")
    )
    for name in by_sum:
        np.testing.assert_array_equal(by_ring[name], by_sum[name])


def test_the_workers_of_a_flat_pmap_are_one_group() -> None:
    one_group = replace(STALE, groups=1, workers=6)
    transform = periodic(method(one_group), group_axis=None)
    assert_same(
        run_scanned(partial(jax.pmap, axis_name=WORKER), transform, make_problem()), expected(make_problem(), one_group)
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", STEP_BY_STEP)
def test_mapping_the_single_step_takes_the_same_course(how: str) -> None:
    problem, steps = make_problem(), STEP_BY_STEP[how](periodic(method(STALE)))
    _, _, trajectory = advance(steps, problem.initial, steps.init(problem.initial), problem.batches, 0, STEPS)
    assert_same(trajectory, reference(STALE))


@pytest.mark.slow
def test_axis_names_are_free() -> None:
    transform = periodic(method(PLAIN), group_axis="node", worker_axis="core")
    lanes = jax.vmap(jax.vmap(partial(scanned, transform), axis_name="core"), axis_name="node")
    problem = make_problem()
    grouped = jax.tree.map(
        lambda leaf: leaf.reshape(GROUPS, WORKERS, *leaf.shape[1:]), (problem.initial, problem.batches)
    )
    trajectory = jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), jax.jit(lanes)(*grouped))
    assert_same(trajectory, reference(PLAIN))


def compared(base: Base, transform: Transform, how: Callable[..., Any]) -> None:
    """`transform`, in JAX, against the simulation with `base` for the local steps."""
    problem = make_problem()
    local = optax.GradientTransformation(base.init, jax.jit(base.update))
    run = simulate(problem.starts, numpy_loss_and_grad(problem, WORKERS), STALE, local, STEPS)
    assert_same(run_scanned(how, transform, problem), run)


def stale_lsgd(base: optax.GradientTransformation) -> Transform:
    return periodic(method(STALE, base))


def test_clipping_stands_before_it_in_a_chain() -> None:
    clip = optax.clip_by_global_norm(0.5)
    compared(optax.chain(clip, optax_sgd()), optax.chain(clip, stale_lsgd(optax_sgd())), MESH)


@pytest.mark.slow
@pytest.mark.parametrize("how", [MESH, LANES], ids=["mesh", "lanes"])
def test_gradients_are_accumulated_in_the_base(how: Callable[..., Any]) -> None:
    base = optax.MultiSteps(optax_sgd(), every_k_schedule=4).gradient_transformation()
    compared(base, stale_lsgd(base), how)


@pytest.mark.slow
@pytest.mark.parametrize("how", [MESH, LANES], ids=["mesh", "lanes"])
def test_adam_does_the_local_steps(how: Callable[..., Any]) -> None:
    base = optax.adamw(optax.cosine_decay_schedule(0.02, STEPS), weight_decay=0.01)
    compared(base, stale_lsgd(base), how)


def test_a_base_may_read_the_loss() -> None:
    seen = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(),
        lambda grads, state, params=None, *, value, **extra: (jax.tree.map(lambda g: -0.02 * value * g, grads), state),
    )
    problem = make_problem()
    trajectory = run_scanned(MESH, stale_lsgd(seen), problem)
    gradient = numpy_loss_and_grad(problem, WORKERS)

    def times_loss(x: Tree, step: int, j: int, i: int) -> tuple[float, Tree]:
        loss, grad = gradient(x, step, j, i)
        return loss, {name: loss * leaf for name, leaf in grad.items()}

    run = simulate(problem.starts, times_loss, STALE, Sgd(learning_rate=0.02), STEPS)
    assert_same(trajectory, run)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PLAIN, STALE], ids=["plain", "stale"])
def test_its_state_goes_through_orbax_and_goes_on_bitwise(settings: Settings, tmp_path: Path) -> None:
    problem, half, end = make_problem(), 17, 40
    steps = steps_on_mesh(periodic(method(settings)))
    params, state, _ = advance(steps, problem.initial, steps.init(problem.initial), problem.batches, 0, half)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "half", (params, state))
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, state))
        restored = checkpointer.restore(tmp_path / "half", like)
    assert jax.tree.structure(restored) == jax.tree.structure((params, state))
    straight = advance(steps, params, state, problem.batches, half, end)
    resumed = advance(steps, *restored, problem.batches, half, end)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def compiled_text(mapped: jax.stages.Wrapped, *args: Any) -> str:
    return mapped.lower(*args).compile().as_text()


@pytest.mark.slow
def test_steps_between_communications_send_nothing() -> None:
    problem = make_problem()
    transform = periodic(method(STALE))
    scan = compiled_text(MESH(partial(scanned, transform)), problem.initial, problem.batches)
    assert collectives(scan)
    assert collectives_outside_conditionals(scan) == []


def test_the_counter_keeps_lanes_on_devices_from_sending_too() -> None:
    problem = make_problem()
    mapped = on_mesh_of_lanes(partial(scanned, periodic(method(STALE))), GROUPS)
    scan = compiled_text(mapped, problem.initial, problem.batches)
    assert collectives(scan)
    assert collectives_outside_conditionals(scan) == []


def test_a_counter_a_lane_sends_at_every_step() -> None:
    # What the docstring warns of; and a check that the two tests above can fail.
    problem, transform = make_problem(), periodic(method(PLAIN))
    steps = steps_with_a_counter_each(partial(on_mesh_of_lanes, groups=GROUPS), transform)
    batch = jax.tree.map(lambda leaf: leaf[:, 0], problem.batches)
    step = compiled_text(steps.step, problem.initial, steps.init(problem.initial), batch)
    assert collectives_outside_conditionals(step)


def test_a_single_step_on_a_mesh_sends_nothing_between_communications() -> None:
    problem = make_problem()
    for steps in (steps_on_mesh(periodic(method(STALE))), steps_with_a_counter_each(MESH, periodic(method(STALE)))):
        batch = jax.tree.map(lambda leaf: leaf[:, 0], problem.batches)
        step = compiled_text(steps.step, problem.initial, steps.init(problem.initial), batch)
        assert collectives(step)
        assert collectives_outside_conditionals(step) == []


def test_local_steps_alone_contain_no_collective() -> None:
    problem = make_problem()
    transform = periodic(method(STALE)._replace(communications=()))
    scan = compiled_text(MESH(partial(scanned, transform)), problem.initial, problem.batches)
    assert collectives(scan) == []


def test_data_parallel_communicates_outside_conditionals() -> None:
    problem = make_problem()
    transform = periodic(data_parallel(optax_sgd()))
    scan = compiled_text(MESH(partial(scanned, transform)), problem.initial, problem.batches)
    assert collectives_outside_conditionals(scan)


def in_a_lane(transform: Transform, **arguments: Any) -> Any:
    """Traces one update of gradients that equal the parameters."""

    def update(x: jax.Array) -> jax.Array:
        return transform.update(x, transform.init(x), **({"params": x} | arguments))[0]

    return in_lanes(update, GROUPS)(np.ones(6, np.float32))


def test_a_missing_loss_is_said() -> None:
    with pytest.raises(ValueError, match=r"value=loss\)\. Flax's TrainState\.apply_gradients does not pass it on"):
        in_a_lane(periodic(lsgd(optax.sgd(0.1))))


def test_a_loss_that_is_no_scalar_is_said() -> None:
    with pytest.raises(ValueError, match=r"value must be a scalar.*\(1,\)"):
        in_a_lane(periodic(lsgd(optax.sgd(0.1))), value=np.ones(1))


def test_a_loss_beside_more_is_said() -> None:
    with pytest.raises(ValueError, match=r"got a tuple; of \(loss, aux\) give the loss"):
        in_a_lane(periodic(lsgd(optax.sgd(0.1))), value=(1.0, {}))


def test_what_is_no_method_is_said() -> None:
    with pytest.raises(ValueError, match=r"^method is GradientTransformationExtraArgs: use a distributed optimizer"):
        periodic(optax.adam(1e-3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^method is lsgd: use a distributed optimizer"):
        periodic(lsgd)  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", [lsgd, data_parallel])
def test_a_method_in_place_of_a_transform_is_said(factory: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"make one of it, with periodic\(method\)"):
        factory(optax.sgd(0.1)).init(np.ones(2))


def test_axes_that_are_not_bound_are_said() -> None:
    for transform in (periodic(lsgd(optax.sgd(0.1))), periodic(data_parallel(optax.sgd(0.1)))):
        with pytest.raises(ValueError, match="axis 'group' is not bound"):
            jax.vmap(lambda x, tx=transform: tx.update(x, tx.init(x), x, value=1.0), axis_name=WORKER)(np.ones(2))


@pytest.mark.parametrize("factory", [lsgd, data_parallel])
def test_missing_parameters_are_said(factory: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="params"):
        in_a_lane(periodic(factory(optax.sgd(0.1))), params=None, value=1.0)


def test_periods_that_do_not_fit_are_said_where_the_groups_are_known() -> None:
    transform = periodic(lsgd(optax.sgd(0.1), local_period=4, global_period=6))
    with pytest.raises(ValueError, match="global_period=6 is no multiple of local_period=4"):
        in_a_lane(transform, value=1.0)


def test_the_state_has_one_counter_of_steps() -> None:
    transform = periodic(lsgd(optax.sgd(0.1)))
    state = transform.init({"w": np.ones(3, np.float32)})
    assert state.step.shape == ()
    assert state.step.dtype == np.int32
    assert periodic(data_parallel(optax.sgd(0.1))).init({"w": np.ones(3, np.float32)}).losses is None
