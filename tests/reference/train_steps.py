"""The regression through the trainer's step, from the problem's own starting points."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from regression import QUICK, Problem, laid_out, loss_of

from lsgd_jax import GROUP, WORKER, Batches, DistributedOptimizer, Topology, TrainState
from lsgd_jax.accounting.ahead_of_time import Problem as ToCompile
from lsgd_jax.accounting.ahead_of_time import compile_for, traffic
from lsgd_jax.accounting.targets import read_target
from lsgd_jax.engine.state import start_state, state_shardings

STEPS = 66
REGRESSION = Batches(
    plan=lambda key, first_step, steps: first_step + jnp.arange(steps),
    draw=lambda data, step, key: jax.tree.map(lambda leaf: leaf[step], data),
    per_worker=True,
)


@jax.custom_vjp
def broken(leaf: jax.Array, fault: jax.Array) -> jax.Array:
    """The leaf itself, whose gradient has the fault added to it."""
    del fault
    return leaf


broken.defvjp(lambda leaf, fault: (leaf, fault), lambda fault, grad: (grad + fault, jnp.zeros_like(fault)))


def faulty_loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
    del key
    params = {name: broken(leaf, batch.leaf_faults[name]) for name, leaf in params.items()}
    return loss_of(params, batch) + batch.loss_fault, model_state


def started(optimizer: DistributedOptimizer, topology: Topology, problem: Problem) -> TrainState:
    """The state in which each worker has the problem's own starting point."""
    state = _starter(optimizer, topology.shape)(laid_out(problem.initial, topology.groups))
    return jax.device_put(state, state_shardings(topology, state))


@cache
def _starter(optimizer: DistributedOptimizer, shape: tuple[int, int]) -> Callable[[Any], TrainState]:
    """Compiled once for all topologies of the shape."""
    alone = Topology(*shape, jax.devices()[:1])

    def start(params: Any) -> TrainState:
        zeros = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
        state = start_state(optimizer, alone, lambda key: (zeros, {}), jax.random.key(0))
        opt_state = mapped(alone, lambda params: optimizer.init(params, alone.axes))(params)
        return state._replace(params=params, opt_state=opt_state)

    return jax.jit(start, compiler_options=QUICK)


@cache
def center_of(optimizer: DistributedOptimizer, topology: Topology) -> Callable[[TrainState], Any]:
    """`state -> center`, as each worker has it, [groups, workers, ...]."""
    center = mapped(topology, lambda params, opt_state: optimizer.center(params, opt_state, topology.axes))
    return jax.jit(lambda state: center(state.params, state.opt_state), compiler_options=QUICK)


def mapped(topology: Topology, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one worker, which may communicate, over all of them."""
    each = PartitionSpec(GROUP, WORKER)
    return topology.over_devices(topology.over_lanes(function), in_specs=each, out_specs=each)


def run(problem: Problem, parts: Any, cuts: int = 1, steps: int = STEPS) -> tuple[Any, list[Any], TrainState]:
    """Trains in calls of at most `cuts` steps: ({step: params [n·l, ...]}, reports, state)."""
    optimizer, topology, train_step = parts
    data = jax.device_put(laid_out(problem.batches, topology.groups), topology.per_worker)
    state = started(optimizer, topology, problem)
    trajectory, reports = {}, []
    while int(state.step) < steps:
        state, report = train_step(state, data, jnp.int32(min(cuts, steps - int(state.step))))
        trajectory[int(state.step)] = jax.tree.map(lambda x: np.array(x).reshape(-1, *x.shape[2:]), state.params)
        reports.append((int(state.step), jax.device_get(report)))
    return trajectory, reports, state


def assert_sends_what_the_ledger_says(optimizer: DistributedOptimizer, problem: Problem) -> None:
    """In the program that is compiled for 2 × 3 devices: by level, inside of conditionals alone."""
    topology = Topology(2, 3, jax.devices()[:6])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), laid_out(problem.batches, 2))
    zeros = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
    to_compile = ToCompile(lambda key: (zeros, {}), faulty_loss, REGRESSION, shapes)
    found = compile_for(to_compile, optimizer, topology, QUICK)
    levels = traffic(found, to_compile, optimizer, topology, read_target("h100:1x8").network(6))["levels"]
    assert [level["level"] for level in levels] == ["local", "global"]
    for level in levels:
        assert sum(level["kinds"].values()) == level["ledger"] > 0
        assert level["conditional"]
    assert not found.inside
