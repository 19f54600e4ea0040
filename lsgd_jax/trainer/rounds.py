"""How a run goes from one call of its train step to the next."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.asynchronous import AsynchronousRounds, compile_programs, make_programs
from lsgd_jax.cluster.processes import alone, put
from lsgd_jax.cluster.tickets import CoordinatedRound
from lsgd_jax.engine.carried import carriers_of, empty_like, make_carried_step, moved
from lsgd_jax.engine.communications import RoundReport, begins_at, kinds_of_call
from lsgd_jax.engine.compiler import compiler_options
from lsgd_jax.engine.schedules import make_factor
from lsgd_jax.engine.simulated_speeds import Pace, make_asynchronous_step, simulate_round
from lsgd_jax.engine.state import TrainState, state_shardings
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import LONGEST_CALL, end_of_call, make_train_step, round_steps
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, is_overlapped
from lsgd_jax.tasks.task import OpenTask
from lsgd_jax.trainer.plan import Plan

Advance = Callable[[TrainState, int, int], tuple[TrainState, RoundReport, Pace | None]]
"""`(state, begin, end) -> (state, report, pace)`: trains from step `begin` to step `end`. The
pace is None where all workers take the same steps. It consumes the state."""


class Rounds(NamedTuple):
    """How a run goes from one call of its train step to the next.

    Attributes:
      end: `step -> step`, the farthest to which the call that begins there may go.
      compile: `(state, step) -> Advance`, from a state at that step.
      metrics: `step -> figures` for a row of metrics.jsonl.
    """

    end: Callable[[int], int]
    compile: Callable[[TrainState, int], Advance]
    metrics: Callable[[int], dict[str, float]]


def make_rounds(plan: Plan, method: DistributedOptimizer, topology: Topology, task: OpenTask) -> Rounds:
    """Those of a plan: all workers in step, or each process or simulated worker at a pace of its own."""
    if plan.speeds is not None:
        return _simulated(plan, plan.speeds, method, topology, task)
    if plan.asynchronous and not alone():  # a process that is left alone has a pace of its own anyway
        return _asynchronous(plan, method, topology, task)
    if is_overlapped(method) and (carriers := carriers_of(topology)) is not None:
        return _carried(plan, method, topology, carriers, task)
    return _in_step(plan, method, topology, task)


def _in_step(plan: Plan, method: DistributedOptimizer, topology: Topology, task: OpenTask) -> Rounds:
    """Calls that end where something is to be done after them; where they are cut changes nothing."""
    train_step = make_train_step(
        method,
        topology,
        task.loss,
        task.batches,
        rate_factor=make_factor(plan.schedule, plan.steps),
        score=task.score,
        longest_call=task.longest_call,
        compiler_options=compiler_options(plan.compute_dtype, topology, overlapped=is_overlapped(method)),
    )

    def compile(state: TrainState, step: int) -> Advance:
        args = (state, task.data_for(step, 0), jnp.int32(1))
        kinds = kinds_of_call(method, topology.groups)
        programs = {begins: train_step.lower(*args, begins=begins).compile() for begins in kinds}

        def advance(state: TrainState, begin: int, end: int) -> tuple[TrainState, RoundReport, None]:
            program = programs[begins_at(method, topology.groups, begin)]
            return *program(state, task.data_for(begin, end - begin), jnp.int32(end - begin)), None

        return advance

    return Rounds(_ends(plan, method, topology, task), compile, metrics=lambda step: {})


def _ends(plan: Plan, method: DistributedOptimizer, topology: Topology, task: OpenTask) -> Callable[[int], int]:
    """`step -> step`, where a call that begins there ends."""
    periods = (plan.evaluation_period, plan.checkpoint_period)

    def end(step: int) -> int:
        stops = [(step // period + 1) * period for period in periods]
        return min(plan.steps, end_of_call(method, topology.groups, step, task.longest_call), *stops)

    return end


def _carried(
    plan: Plan, method: DistributedOptimizer, topology: Topology, carriers: Topology, task: OpenTask
) -> Rounds:
    """The same, with what is under way on devices of its own."""
    processes.warm_up(carriers)
    step = make_carried_step(
        method,
        topology,
        carriers,
        task.loss,
        task.batches,
        rate_factor=make_factor(plan.schedule, plan.steps),
        score=task.score,
        longest_call=task.longest_call or LONGEST_CALL,
        compiler_options=compiler_options(plan.compute_dtype, topology),
    )

    def compile(state: TrainState, at: int) -> Advance:
        take_steps = step.steps.lower(state, task.data_for(at, 0), jnp.int32(1)).compile()
        sends = empty_like((state.params, state.opt_state, state.losses), carriers)
        begin, end = {}, {}
        for begins in kinds_of_call(method, topology.groups):
            begin[begins] = step.begin.lower(*sends, begins=begins).compile() if begins else None
            news = jax.eval_shape(functools.partial(step.begin, begins=begins), *sends) if begins else ()
            end[begins] = step.end.lower(state, empty_like(news, topology), begins=begins).compile()

        def advance(state: TrainState, first: int, last: int) -> tuple[TrainState, RoundReport, None]:
            begins = begins_at(method, topology.groups, first)
            send, news = begin[begins], ()
            if send is not None:
                news = send(*moved((state.params, state.opt_state, state.losses), carriers))
            state = take_steps(state, task.data_for(first, last - first), jnp.int32(last - first))
            return *end[begins](state, moved(news, topology)), None

        return advance

    return Rounds(_ends(plan, method, topology, task), compile, metrics=lambda step: {})


def _simulated(
    plan: Plan, speeds: Sequence[float], method: DistributedOptimizer, topology: Topology, task: OpenTask
) -> Rounds:
    """Whole rounds at simulated speeds; in a simulated second a worker of speed 1 takes a step."""
    period = round_steps(method, topology.groups)
    pace, seconds = simulate_round(speeds, topology.size * period)
    pace = Pace(*(leaf.reshape(topology.shape) for leaf in pace))
    train_step = make_asynchronous_step(
        method,
        topology,
        task.loss,
        task.batches,
        longest=int(pace.steps.max()),
        rate_factor=make_factor(plan.schedule, plan.steps),
        score=task.score,
        compiler_options=compiler_options(plan.compute_dtype, topology),
    )
    steps = put(pace.steps.astype(np.int32), topology.per_worker)

    def compile(state: TrainState, step: int) -> Advance:
        compiled = train_step.lower(state, task.data_for(step, 0), steps).compile()

        def advance(state: TrainState, begin: int, end: int) -> tuple[TrainState, RoundReport, Pace]:
            return *compiled(state, task.data_for(begin, end - begin), steps), pace

        return advance

    return Rounds(
        end=lambda step: step + period,
        compile=compile,
        metrics=lambda step: {"simulated_seconds": step // period * seconds},
    )


def _asynchronous(plan: Plan, method: DistributedOptimizer, topology: Topology, task: OpenTask) -> Rounds:
    """Rounds of processes that take local steps at their own pace.

    They end where a communication is due, or with the run: it may have begun with other periods.
    """
    period = round_steps(method, topology.groups)
    programs = make_programs(
        method,
        topology,
        task.loss,
        task.batches,
        rate_factor=make_factor(plan.schedule, plan.steps),
        score=task.score,
        compiler_options=compiler_options(plan.compute_dtype, topology),
    )

    def compile(state: TrainState, step: int) -> Advance:
        data, shapes = task.data_for(step, 0), jax.eval_shape(lambda state: state, state)
        compiled = compile_programs(programs, topology, state, data)
        shardings = state_shardings(topology, shapes)
        take_round = AsynchronousRounds(compiled, topology, shapes, shardings, CoordinatedRound)
        CoordinatedRound().arrive()  # all have compiled: they begin together

        def advance(state: TrainState, begin: int, end: int) -> tuple[TrainState, RoundReport, Pace]:
            return take_round(state, task.data_for(begin, end - begin), begin, end)

        return advance

    def end(step: int) -> int:
        return min(plan.steps, (step // period + 1) * period)

    return Rounds(end, compile, metrics=lambda step: {})
