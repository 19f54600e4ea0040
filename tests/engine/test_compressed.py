"""Methods that send few bits: in NumPy's trajectory, on any devices, with workers lost, alone and in wrappers."""

import functools
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lsgd_runs import SGD, method, optax_sgd
from method_cases import Case
from numpy_compressed import FEW, coded
from numpy_lsgd import Faults, Reseed, Settings
from numpy_lsgd import Sgd as NumpySgd
from numpy_lsgd import simulate as simulate_lsgd
from numpy_methods import simulate
from regression import QUICK, in_lanes, local_step, make_problem, numpy_loss_and_grad, on_mesh, with_faults
from thorough import thorough
from train_steps import REGRESSION, STEPS, assert_sends_what_the_ledger_says, faulty_loss, run, started

from lsgd_jax import (
    Communication,
    Topology,
    compressed,
    data_parallel,
    easgd,
    fragments,
    ledger,
    lsgd,
    make_train_step,
    overlapped,
    periodic,
)
from lsgd_jax.collectives import partition

PROBLEM = jax.tree.map(np.float64, make_problem(count=6, steps=STEPS))
PARTS = [["b"], ["w"]]
LSGD = Settings(groups=2, workers=3, local_pull=0.3, global_pull=0.2, local_period=2, global_period=4,
                stale_local_pull=0.05, stale_global_pull=0.03, window=4)  # fmt: skip
CASES = {
    "local_sgd": Case("local_sgd", {"local_period": 2, "global_period": 4}),
    "easgd": Case("easgd", {"beta": 0.43, "period": 4}),
    "eamsgd": Case("eamsgd", {"momentum": 0.7, "beta": 0.5, "period": 4}, NumpySgd(0.02)),
    "downpour": Case("downpour", {"period": 4}, NumpySgd(0.002, momentum=0.9, nesterov=True)),
    "diloco": Case("diloco", {"outer": NumpySgd(0.3, 0.5, nesterov=True), "period": 6}),
    "grawa": Case("grawa", {"pull": 0.4, "period": 4, "window": 4}),
    "dppf": Case("dppf", {"pull": 0.4, "push": 0.7, "period": 2}),
}
FEW_BITS: dict[str, dict[str, Any]] = {
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "the largest": {"top_k": 3 / 256},
    "the largest in 8 bits": {"top_k": 3 / 256, "bits": 8},
    "the largest in 4 bits": {"top_k": 5 / 256, "bits": 4},
}
LOST = Faults(
    leaves={(6, 1): ("b",), (20, 3): ("w",), (21, 1): ("b", "w")} | {(33, rank): ("b",) for rank in (3, 4, 5)}
)
FAULTS = {"nobody is lost": Faults(), "workers are lost": LOST}
# Inside of which wrappers: (parts, delay).
WRAPPED = {"alone": (None, None), "in parts": (PARTS, None), "late": (None, 2), "in parts, late": (PARTS, 2)}


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """In double precision: in single, of thousands of numbers one or another is rounded to the next code."""
    with jax.enable_x64(True):
        yield


@cache
def compiled(name: str, few: str, devices: int, wrapped: str = "alone") -> Any:
    parts, delay = WRAPPED[wrapped]
    optimizer = compressed(method(LSGD) if name == "lsgd" else CASES[name].optimizer, **FEW_BITS[few])
    optimizer = fragments(optimizer, 2) if parts else optimizer
    optimizer = overlapped(optimizer, delay=delay, keep=0.25) if delay else optimizer
    topology = Topology(2, 3, jax.devices()[:devices])
    assert topology.mesh.size == {1: 1, 2: 2, 4: 3, 8: 6}[devices]
    return optimizer, topology, make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)


@cache
def expected(name: str, few: str, faults: str, wrapped: str = "alone", *, reseed: bool = True) -> Any:
    """(trajectory, restarts) of NumPy."""
    gradient, (parts, delay) = numpy_loss_and_grad(PROBLEM, 3), WRAPPED[wrapped]
    how = FEW_BITS[few]
    kept = None if "top_k" not in how else round(256 * how["top_k"])
    codec = functools.partial(coded, bits=how.get("bits"), kept=kept)
    if name == "lsgd":
        more: dict[str, Any] = {"fragments": parts, "delay": delay, "codec": codec}
        found = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, faults=FAULTS[faults], reseed=reseed, **more)
        return found.trajectory, found.reseeds
    case = CASES[name]
    team: Any = FEW[name](
        PROBLEM.starts, case.base, 2, reseed, codec=codec, delay=delay or 0, keep=0.25 if delay else 0, **case.arguments
    )
    of_all = simulate(team, gradient, STEPS, faults=FAULTS[faults])
    return of_all.trajectory, of_all.restarts


RUNS: list[Any] = [("lsgd", few, 1, "alone") for few in ("8 bits", "the largest")]
RUNS += [("lsgd", "the largest in 8 bits", devices, "alone") for devices in (2, 8)]
RUNS += [(name, "8 bits", 1, "alone") for name in ("easgd", "grawa")]
RUNS += [(name, "the largest in 4 bits", 1, "alone") for name in ("diloco", "downpour")]
RUNS += [("local_sgd", "4 bits", 1, "alone"), ("local_sgd", "the largest in 4 bits", 8, "alone")]
RUNS += [("lsgd", "the largest in 4 bits", 2, "in parts, late"), ("diloco", "4 bits", 1, "late")]
RUNS += [thorough("lsgd", few, 1, "alone") for few in FEW_BITS if few not in ("8 bits", "the largest")]
RUNS += [thorough(name, "8 bits", 1, "alone") for name in ("eamsgd", "dppf")]
RUNS += [thorough("local_sgd", "4 bits", 8, "late")]
RUNS += [thorough("lsgd", "the largest in 8 bits", 4, "alone")]
RUNS += [thorough("local_sgd", "the largest in 4 bits", devices, "alone") for devices in (2, 4)]
RUNS += [thorough("lsgd", "the largest in 4 bits", 2, wrapped) for wrapped in ("in parts", "late")]


@pytest.mark.slow
@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize(("name", "few", "devices", "wrapped"), RUNS)
def test_the_trajectory_and_the_restarts_are_those_of_numpy(
    name: str, few: str, devices: int, wrapped: str, faults: str
) -> None:
    reference, restarts = expected(name, few, faults, wrapped)
    trajectory, reports, _ = run(with_faults(PROBLEM, FAULTS[faults]), compiled(name, few, devices, wrapped))
    assert sorted(trajectory) == list(range(1, STEPS + 1))
    for step, params in trajectory.items():
        for leaf, values in params.items():
            np.testing.assert_allclose(values, reference[leaf][step - 1], rtol=0, atol=1e-5, err_msg=f"{step} {leaf}")
    told = [
        Reseed(step, int(rank))
        for step, report in reports
        for news in report.elections.values()
        for rank in np.flatnonzero(news.restarted)
    ]
    assert sorted(told) == sorted(restarts)
    assert bool(restarts) == (faults != "nobody is lost")


@pytest.mark.parametrize("name", ["lsgd", "local_sgd", thorough("diloco")])
def test_the_transform_for_own_loops_does_the_same_and_a_lost_worker_stays_out_of_it(name: str) -> None:
    """In lanes, and on a mesh whose types say what varies."""
    faults = Faults(leaves={(5, 1): ("w",)})
    gradient, codec = numpy_loss_and_grad(PROBLEM, 3), functools.partial(coded, bits=8, kept=None)
    if name == "lsgd":
        how: dict[str, Any] = {"faults": faults, "codec": codec}
        reference = simulate_lsgd(PROBLEM.starts, gradient, LSGD, SGD, STEPS, **how).trajectory
    else:
        team: Any = FEW[name](PROBLEM.starts, CASES[name].base, 2, codec=codec, keep=0, **CASES[name].arguments)
        reference = simulate(team, gradient, STEPS, faults=faults).trajectory
    transform = periodic(compiled(name, "8 bits", 1)[0])

    def worker(params: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            carry = local_step(transform, *carry, batch)
            return carry, carry[0]

        return jax.lax.scan(step, (params, transform.init(params)), batches)[1]

    broken = with_faults(PROBLEM, faults)
    for mapped in (in_lanes(worker, 2), on_mesh(worker, 2, 3)):
        trajectory = mapped(broken.initial, broken.batches)
        for leaf, values in trajectory.items():
            ours, theirs = np.asarray(values).swapaxes(0, 1), reference[leaf]
            np.testing.assert_allclose(ours[:, [0, 2, 3, 4, 5]], theirs[:, [0, 2, 3, 4, 5]], rtol=0, atol=1e-5)
        assert not np.isfinite(np.asarray(trajectory["w"])[1, 5:]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lsgd", thorough("local_sgd")])
def test_a_state_goes_on_bit_for_bit(name: str) -> None:
    optimizer, topology, step = compiled(name, "4 bits", 1)
    whole, _, _ = run(PROBLEM, (optimizer, topology, step))
    _, _, state = run(PROBLEM, (optimizer, topology, step), steps=9)
    again = jax.tree.map(lambda x: jnp.array(np.asarray(x)), state._replace(keys=None))  # as from a checkpoint
    again = again._replace(keys=started(optimizer, topology, PROBLEM).keys)

    def from_there(state: Any, data: Any, steps: Any) -> Any:
        return step(jax.tree.map(jnp.copy, again) if int(state.step) < 9 else state, data, steps)

    rest, _, _ = run(PROBLEM, (optimizer, topology, from_there))
    jax.tree.map(np.testing.assert_array_equal, rest[STEPS], whole[STEPS])


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "few"), [("lsgd", "the largest in 8 bits"), ("local_sgd", "4 bits")])
def test_workers_of_several_devices_send_blocks_of_their_parts(
    name: str, few: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where parts are of other blocks other numbers share a scale: near, and finite where workers are lost."""
    monkeypatch.setattr(partition, "LEAST_SPLIT", 4)
    exact = method(LSGD) if name == "lsgd" else CASES[name].optimizer
    topology = Topology(2, 2, jax.devices()[:8], worker_axes={"fsdp": 2})
    problem = jax.tree.map(np.float32, make_problem(count=4, steps=STEPS))
    faults = Faults(leaves={(21, 1): ("b", "w")})
    found = {}
    with jax.enable_x64(False):
        for kind, optimizer in {"few": compressed(exact, **FEW_BITS[few]), "all": exact}.items():
            step = make_train_step(optimizer, topology, faulty_loss, REGRESSION, compiler_options=QUICK)
            found[kind], _, _ = run(with_faults(problem, faults), (optimizer, topology, step), cuts=2)
    for leaf, values in found["few"][STEPS].items():
        assert np.isfinite(values).all()
        np.testing.assert_allclose(values, found["all"][STEPS][leaf], rtol=0, atol=0.3)
    assert any((found["few"][STEPS][leaf] != found["all"][STEPS][leaf]).any() for leaf in ("b", "w"))


@pytest.mark.parametrize(
    ("name", "few", "wrapped"),
    [("lsgd", "the largest in 4 bits", "in parts"), thorough("local_sgd", "4 bits", "alone")],
)
def test_compiled_programs_send_what_the_ledger_says(name: str, few: str, wrapped: str) -> None:
    assert_sends_what_the_ledger_says(compiled(name, few, 8, wrapped)[0], PROBLEM)


@pytest.mark.parametrize(
    ("how", "share"),
    [({"bits": 8}, 258 / 1024), ({"bits": 4}, 130 / 1024), ({"bits": 8, "top_k": 0.1}, (2 + 26 + 26) / 1024),
     ({"bits": 4, "top_k": 0.02}, (2 + 5 + 3) / 1024), ({"top_k": 0.02}, 5 * 5 / 1024)],
)  # fmt: skip
def test_so_many_bytes_are_sent(how: dict[str, Any], share: float) -> None:
    params = {f"layer{i}": jax.ShapeDtypeStruct((64, 64), np.float32) for i in range(8)}
    for whole in (lsgd(optax.sgd(0.1), global_period=16), CASES["diloco"].optimizer):
        before, after = (ledger(m, params, groups=1, workers=4) for m in (whole, compressed(whole, **how)))
        small = 100  # of an election, or a count
        assert after.entries[0].sent == pytest.approx(before.entries[0].sent * share, abs=small)


def test_errors_do_not_pile_up() -> None:
    """Leaders in turn, of parameters that stay: each message is nearer; and a mean of what is sent is the mean."""
    where = jnp.array([[1.0, 10.0, -3.0, 0.01], [1.5, 9.0, -3.3, 0.02]])
    whole = lsgd(optax.sgd(0.0), global_pull=0.0, global_period=1, stale_global_pull=1e-9, window=1)
    few = compressed(whole, bits=4)
    transform = periodic(few, group_axis=None)

    def worker(x: jax.Array, rank: jax.Array) -> Any:
        def step(state: Any, number: jax.Array) -> Any:
            score = jnp.where((number % 2) == rank, 0.0, 1.0)
            _, state = transform.update(jnp.zeros_like(x), state, x, value=score)
            return state, state.inner.memories[1].heard

        return jax.lax.scan(step, transform.init(x), jnp.arange(16))[1]

    heard = jax.vmap(worker, axis_name="worker")(where, jnp.arange(2))
    np.testing.assert_array_equal(heard[0], heard[1])
    errors = np.abs(heard[0] - where[jnp.arange(16) % 2]).max(axis=1)
    difference = np.abs(where[0] - where[1]).max()
    assert 0 < errors.max() <= difference / 13 * 1.01, "half a code of what differs from the last, which was as far off"
    assert np.abs(where).max() / 14 > 8 * errors.max(), "than if leaders themselves were sent"

    averaged = periodic(compressed(CASES["local_sgd"].optimizer, bits=4), group_axis=None)

    def drifted(method: Any) -> Any:
        """All workers after 64 steps in directions of their own, and the method's states."""

        def drifting(x: jax.Array, rank: jax.Array) -> Any:
            def step(carry: Any, _: None) -> Any:
                x, state = carry
                updates, state = method.update(-jnp.ones_like(x) * (rank + 1), state, x, value=0.0)
                return (optax.apply_updates(x, updates), state), None

            return jax.lax.scan(step, (x, method.init(x)), length=64)[0]

        return jax.vmap(drifting, axis_name="worker")(where, jnp.arange(2))

    x, state = drifted(averaged)
    unsent = state.inner.memories[1].unsent
    expected, _ = drifted(periodic(CASES["local_sgd"].optimizer, group_axis=None))
    assert np.abs(unsent).max() > 0
    # All that is missing is known to somebody. (Momentum and weight decay see other parameters.)
    np.testing.assert_allclose((x + unsent).mean(axis=0), expected.mean(axis=0), rtol=0, atol=0.05)


def test_integers_and_complex_numbers_are_served() -> None:
    transform = periodic(compressed(lsgd(optax.sgd(0.1), global_period=1, global_pull=1.0), bits=8), group_axis=None)

    def worker(rank: jax.Array) -> Any:
        params = {
            "count": rank.astype(jnp.int32),
            "z": (rank + 2j * rank) * jnp.ones(2),
            "half": rank.astype("bfloat16"),
        }
        state = transform.init(params)
        updates, state = transform.update(jax.tree.map(jnp.zeros_like, params), state, params, value=-rank)
        return optax.apply_updates(params, updates)

    params = jax.vmap(worker, axis_name="worker")(jnp.arange(1.0, 3.0))
    assert params["count"].tolist() == [1, 2]
    np.testing.assert_allclose(params["z"], [[2 + 4j] * 2] * 2, rtol=0.01)
    np.testing.assert_allclose(np.float32(params["half"]), [2, 2], rtol=0.01)


def test_what_cannot_be_compressed_is_told() -> None:
    whole = method(LSGD)
    with pytest.raises(ValueError, match="bits or top_k must be given, or both"):
        compressed(whole)
    with pytest.raises(ValueError, match="bits must be 8 or 4, got 2"):
        compressed(whole, bits=2)
    with pytest.raises(ValueError, match="top_k must lie between 0 and 1, got 1"):
        compressed(whole, top_k=1)
    with pytest.raises(ValueError, match="no communication to compress"):
        compressed(data_parallel(optax_sgd()), bits=8)
    with pytest.raises(ValueError, match="travel as int8 already: leave wire_dtype out"):
        compressed(lsgd(optax_sgd(), wire_dtype="int8"), bits=8)
    with pytest.raises(ValueError, match="most entries are old would hold workers back"):
        compressed(easgd(optax_sgd()), top_k=0.1)
    for wrapped in (fragments(whole, 2), overlapped(whole), compressed(whole, bits=8)):
        with pytest.raises(ValueError, match=r"compress first: overlapped\(fragments\(compressed\(method\), n\)\)"):
            compressed(wrapped, bits=8)

    own: Any = whole._replace(communications=(Communication(1, ("worker",), lambda *args: None, lambda *args: None),))
    with pytest.raises(ValueError, match="let its begin be FromLeader or MeanOf"):
        compressed(own, bits=8)
