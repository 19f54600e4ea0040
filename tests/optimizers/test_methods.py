"""Every method through `periodic`, against its simulation in NumPy, and its arguments."""

import inspect
import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from method_cases import ADAM_AND_ADAMW, CASES, REFERENCES, TYPICAL, Case, Trained, trainer
from numpy_lsgd import Faults
from numpy_methods import Run, simulate
from regression import STEPS, Problem, in_lanes, make_problem, numpy_loss_and_grad, with_faults

import lsgd_jax

STARTS = {"same start": make_problem(same_start=True), "different starts": make_problem()}


def expected(case: Case, problem: Problem, **options: Any) -> Run:
    """What the simulation does; options are those of `simulate`."""
    return simulate(case.team(problem), numpy_loss_and_grad(problem, 6 // (case.groups or 1)), STEPS, **options)


def assert_same(trained: Trained, run: Run) -> None:
    """Workers are where the simulation has them, and so are all their centers, at every step."""
    lost = ~np.isfinite(np.concatenate([leaf.reshape(STEPS, 6, -1) for leaf in run.trajectory.values()], 2)).all(2)
    for name, leaf in run.trajectory.items():
        assert np.abs(leaf[~lost]).max() < 20, "a problem that diverges tests nothing"
        ours = np.swapaxes(trained.trajectory[name], 0, 1)
        np.testing.assert_allclose(ours[~lost], leaf[~lost], rtol=0, atol=1e-5, err_msg=name)
    finite = np.isfinite(np.concatenate([leaf.reshape(6, STEPS, -1) for leaf in trained.trajectory.values()], 2))
    np.testing.assert_array_equal(finite.all(2), ~lost.T)
    for name, leaf in run.centers.items():
        for ours in trained.centers[name]:
            np.testing.assert_allclose(ours, leaf, rtol=0, atol=1e-5, err_msg=f"center, {name}")


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", CASES)
def test_trajectory_and_center_are_those_of_the_simulation(name: str, start: str) -> None:
    problem = STARTS[start]
    assert_same(trainer(CASES[name])(problem), expected(CASES[name], problem))


# By worker, the step in which it is lost.
LOSSES = {
    "at a communication": {1: 6},
    "between two": {3: 20},
    "a group": {3: 4, 4: 4, 5: 6},
    "one after the other": {0: 1, 4: 12, 2: 13, 5: 30},
    "everybody": dict.fromkeys(range(6), 20),
}


@pytest.mark.parametrize("leaves", [("b",), ("w",), ("b", "w")], ids="+".join)
@pytest.mark.parametrize("case", TYPICAL.values(), ids=TYPICAL)
def test_a_lost_worker_stays_lost_and_nothing_of_it_spreads(case: Case, leaves: tuple[str, ...]) -> None:
    problem = STARTS["different starts"]
    for lost in LOSSES.values():
        faults = Faults(leaves={(step, rank): leaves for rank, step in lost.items()})
        assert_same(trainer(case)(with_faults(problem, faults)), expected(case, problem, faults=faults))


@pytest.mark.parametrize("case", TYPICAL.values(), ids=TYPICAL)
def test_a_loss_that_is_not_finite_is_nobodys_concern(case: Case) -> None:
    problem = STARTS["different starts"]
    faults = Faults(losses=dict.fromkeys(((1, 0), (6, 1), (20, 5)), math.nan))
    assert_same(trainer(case)(with_faults(problem, faults)), expected(case, problem))


@pytest.mark.slow
@pytest.mark.parametrize("case", TYPICAL.values(), ids=TYPICAL)
def test_adam_and_adamw_serve_as_base_and_keep_their_counts(case: Case) -> None:
    problem, case = STARTS["different starts"], replace(case, base=ADAM_AND_ADAMW)
    trained = trainer(case)(problem)
    assert_same(trained, expected(case, problem))
    counts = optax.tree.get_all_with_path(trained.state.inner, "count")
    assert len(counts) == 2
    for _, count in counts:
        np.testing.assert_array_equal(count, np.full(6, STEPS))


NUMBERS = {"beta": (-0.1, 1.1), "momentum": (-0.1, 1.0, 1.1), "pull": (-0.1, 1.1), "push": (-0.1, math.inf)}
COUNTS = (0, -1, 2.5, math.inf)
# What cannot be left out.
NEEDED = {"local_sgd": {"global_period": 3}, "diloco": {"outer": optax.sgd(0.7), "period": 3}}


def numbers_of(method: str) -> list[str]:
    """The names of a factory's arguments that are numbers."""
    return [name for name in inspect.signature(getattr(lsgd_jax, method)).parameters if name not in ("base", "outer")]


def make(method: str, **arguments: Any) -> Any:
    return getattr(lsgd_jax, method)(optax.sgd(0.1), **NEEDED.get(method, {}) | arguments)


BAD_ARGUMENTS = [
    (method, name, value)
    for method in REFERENCES
    for name in numbers_of(method)
    for value in (*NUMBERS.get(name, COUNTS), math.nan)
]


@pytest.mark.parametrize(("method", "name", "value"), BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_by_name(method: str, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name) as refusal:
        make(method, **{name: value})
    assert str(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("method", [*REFERENCES, "lsgd"])
def test_an_argument_that_is_traced_or_no_number_is_refused_by_name(method: str) -> None:
    for name in set(numbers_of(method)) - {"wire_dtype", "broadcast", "election"}:
        with pytest.raises(ValueError, match=f"{name} is traced: make the method with numbers"):
            jax.eval_shape(lambda x, name=name: make(method, **{name: x}) and x, np.float32(1))
        for wrong in ("0.5", [0.1, 0.2], np.ones(2), 1j):
            with pytest.raises(ValueError, match=f"{name} must be a number"):
                make(method, **{name: wrong})


# Those of optax that compute where to go from parameters that they keep, and some that do not.
ANCHORED = ["schedule_free_sgd", "mechanize", "cocob", "sam"]
ANCHORED += ["madgrad"] if hasattr(optax.contrib, "madgrad") else []  # optax 0.2.6 does not have it yet
FREE = ("muon", "ademamix", "reduce_on_plateau", "momo", "dog", "prodigy")
ARGUMENTS = {"mechanize": (optax.sgd(0.1),), "sam": (optax.sgd(0.1), optax.sgd(0.1))}
ARGUMENTS |= dict.fromkeys(("cocob", "reduce_on_plateau", "prodigy"), ())


@pytest.mark.parametrize("method", [*REFERENCES, "lsgd", "data_parallel"])
def test_a_base_that_computes_from_parameters_it_keeps_is_refused_where_communications_move_them(method: str) -> None:
    def init(base: optax.GradientTransformation) -> Any:
        optimizer = getattr(lsgd_jax, method)(base, **NEEDED.get(method, {}))
        return jax.eval_shape(in_lanes(lambda params: optimizer.init(params, lsgd_jax.Axes()), 1), np.ones((2, 3, 4)))

    for name in ANCHORED:
        base = optax.chain(optax.clip(1.0), getattr(optax.contrib, name)(*ARGUMENTS.get(name, (0.1,))))
        if method in ("independent", "data_parallel"):
            init(base)  # nothing but its own steps moves a worker
        else:
            with pytest.raises(ValueError, match="computes from parameters that it keeps"):
                init(base)
    for name in FREE:
        init(getattr(optax.contrib, name)(*ARGUMENTS.get(name, (0.1,))))
    init(optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(0.1, 9)))
    init(optax.MultiSteps(optax.lamb(0.1), 2).gradient_transformation())


LIMITS = {"beta": (0, 1), "momentum": (0, 0.999), "pull": (0, 1), "push": (0, 1000)}


@pytest.mark.parametrize("method", REFERENCES)
def test_arguments_at_their_limits_are_taken(method: str) -> None:
    for name in numbers_of(method):
        for value in LIMITS.get(name, (1, 1.0, 10**9)):
            make(method, **{name: value})


def test_a_global_period_must_be_a_multiple_only_where_groups_average_apart() -> None:
    optimizer = make("local_sgd", local_period=4, global_period=6)
    with pytest.raises(ValueError, match="global_period=6 is no multiple of local_period=4"):
        lsgd_jax.ledger(optimizer, np.zeros(3), groups=2, workers=3)
    assert [entry.level for entry in lsgd_jax.ledger(optimizer, np.zeros(3), groups=1, workers=3).entries] == ["global"]
