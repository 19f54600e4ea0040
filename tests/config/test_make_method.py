"""From settings to methods: every name, every base optimizer, and the learning rate over steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgd_jax import GROUP, WORKER, Axes, ledger
from lsgd_jax.config.config import Config
from lsgd_jax.config.make_method import BASE_OPTIMIZERS, base_optimizer, learning_rate, make_method
from lsgd_jax.config.methods import METHODS
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.distributed_optimizer import communications_of

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
# The period of each method's communications with --global_period=6 and --local_period=2, and of one group.
PERIODS = {method: ([6], [6]) for method in METHODS} | {
    "lsgd": ([2, 6], [6]),
    "local_sgd": ([2, 6], [6]),
    **dict.fromkeys(("data_parallel", "sgd", "none"), ([], [])),
}


def config(**settings: Any) -> Config:
    return Config(workdir="", **settings)


def moved(optimizer: Any, grads: Any, steps: int = 1) -> Any:
    """PARAMS of a single worker after some local steps."""

    def train(params: Any) -> Any:
        state = optimizer.init(params, Axes())
        for _ in range(steps):
            updates, state = optimizer.update(grads, state, params, value=1.0)
            params = optax.apply_updates(params, updates)
        return params

    alone = jax.jit(jax.vmap(jax.vmap(train, axis_name=WORKER), axis_name=GROUP))
    return jax.tree.map(lambda x: x[0, 0], alone(jax.tree.map(lambda x: x[None, None], PARAMS)))


@pytest.mark.parametrize("method", METHODS)
def test_periods_reach_every_method(method: str) -> None:
    settings = {"algorithm": method, "global_period": 6, "local_period": 2}
    several, one = (make_method(config(**settings, groups=groups)) for groups in (2, 1))
    periods = [due.period for due in communications_of(several, 2)], [due.period for due in communications_of(one, 1)]
    assert periods == PERIODS[method]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "name"), [*((method, "adamw") for method in METHODS), *(("lsgd", name) for name in BASE_OPTIMIZERS)]
)
def test_every_method_takes_adamw_and_lsgd_every_base_optimizer(method: str, name: str) -> None:
    groups = 1 if method == "sgd" else 2
    settings = config(algorithm=method, optimizer=name, groups=groups, workers=groups, learning_rate=0.01)
    params = moved(make_method(settings), jax.tree.map(jnp.ones_like, PARAMS), steps=3)
    assert all((np.asarray(leaf) < 1).all() and np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "flag"),
    [
        ("easgd", "beta"),
        ("eamsgd", "beta"),
        ("diloco", "outer_learning_rate"),
        ("diloco", "outer_momentum"),
        ("grawa", "global_pull"),
        ("dppf", "global_pull"),
        ("dppf", "push"),
        ("lsgd", "global_pull"),
        ("lsgd", "stale_global_pull"),
        ("lsgd", "temperature"),
    ],
)
def test_a_strength_makes_a_difference(method: str, flag: str) -> None:
    def trained(strength: float) -> Any:
        optimizer = make_method(config(algorithm=method, groups=1, workers=3, global_period=1, **{flag: strength}))

        def train(params: Any, loss: jax.Array) -> Any:
            state = optimizer.init(params, Axes())
            for _ in range(3):
                updates, state = optimizer.update(params, state, params, value=loss)
                params = optax.apply_updates(params, updates)
                outcome = optimizer.communications[-1].apply(params, state, loss, (GROUP, WORKER))
                params, state = outcome.params, outcome.state
            return params

        starts = jnp.arange(6.0).reshape(1, 3, 2) ** 2
        mapped = jax.jit(jax.vmap(jax.vmap(train, axis_name=WORKER), axis_name=GROUP))
        return mapped(starts, jnp.array([[2.0, 1.0, 3.0]]))

    assert np.abs(trained(0.2) - trained(0.8)).max() > 1e-3


def test_the_momentum_of_eamsgd_is_the_methods_and_not_its_base_optimizers() -> None:
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    settings = config(algorithm="eamsgd", learning_rate=0.1, momentum=0.5, weight_decay=0.0)
    # v is -0.1 after the first step, and -0.05 - 0.1 after the second; parameters are x + 0.5 v.
    for steps, x, v in ((1, 0.9, -0.1), (2, 0.75, -0.15)):
        np.testing.assert_allclose(moved(make_method(settings), grads, steps)["w"], x + 0.5 * v, rtol=1e-6)


def test_the_learning_rate_is_scaled_to_the_workers() -> None:
    assert learning_rate(config(learning_rate=0.1)) == 0.1
    assert learning_rate(config(learning_rate=0.1, scale_learning_rate=True)) == pytest.approx(0.8)


@pytest.mark.slow
def test_lars_scales_each_layer_by_its_norms() -> None:
    grads = {"w": jnp.full((3, 2), 100.0), "b": jnp.full(2, 1e-3)}
    base = base_optimizer(config(optimizer="lars", learning_rate=1.0, momentum=0.0, weight_decay=0.0))
    updates, _ = base.update(grads, base.init(PARAMS), PARAMS)
    # As long as 0.001 times the layer, whatever the gradient's length.
    for name, leaf in PARAMS.items():
        np.testing.assert_allclose(np.linalg.norm(updates[name]), 1e-3 * np.linalg.norm(leaf), rtol=1e-4)


def test_a_center_is_agreed_on_once_where_the_method_has_one() -> None:
    ledgers = {method: ledger(make_method(config(algorithm=method)), PARAMS, groups=2, workers=4) for method in METHODS}
    sent = {method: sum(each.sent_together for each in sends.start) for method, sends in ledgers.items()}
    around = 2 * 7 * 4 * 8  # a mean of 8 floats over 8 workers
    assert {method for method, count in sent.items() if count} == {"easgd", "eamsgd", "diloco"}
    assert {count for count in sent.values() if count} == {around}


def test_any_method_with_a_period_sends_its_parameters_in_parts() -> None:
    for method in METHODS:
        settings = config(algorithm=method, local_period=8, global_period=16, fragments=2)
        if method in ("data_parallel", "sgd", "none"):
            with pytest.raises(InputError, match=r"--fragments=2: .*no communication to cut: use one with a period"):
                make_method(settings)
            continue
        offsets = {(due.period, due.offset) for due in make_method(settings).communications}
        assert {(16, 0), (16, 8)} <= offsets
    with pytest.raises(InputError, match=r"--fragments=3: .*n=3 does not divide the period of 16 steps"):
        make_method(config(local_period=16, global_period=16, fragments=3))


def test_any_method_but_downpour_lets_its_communications_take_effect_later_also_in_parts() -> None:
    with pytest.raises(InputError, match="--overlap=4: what the method adds up while it waits would be sent twice"):
        make_method(config(algorithm="downpour", overlap=4))
    with pytest.raises(InputError, match="--overlap=17: delay=17 is longer than the period of 16 steps"):
        make_method(config(algorithm="lsgd", local_period=16, overlap=17))
    for method in ("lsgd", "easgd", "eamsgd", "local_sgd", "diloco", "grawa", "dppf"):
        both = make_method(config(algorithm=method, local_period=8, global_period=8, fragments=2, overlap=3))
        everywhere = [due for due in both.communications if due.level == "global"]
        assert [(due.offset, due.ahead) for due in everywhere] == [(3, False), (0, True), (7, False), (4, True)]


def test_any_method_with_a_period_sends_few_bits_and_alone_the_largest_where_it_does_not_pull_toward_a_mean() -> None:
    for method in METHODS:
        settings = {"algorithm": method, "local_period": 8, "global_period": 16, "compress": 4}
        if method in ("data_parallel", "sgd", "none"):
            with pytest.raises(
                InputError, match=r"--compress=4: .*no communication to compress: use one with a period"
            ):
                make_method(config(**settings))
            continue
        few = ledger(make_method(config(**settings)), PARAMS, groups=2, workers=4)
        assert {each.dtype for entry in few.entries for each in entry.collectives if each.bytes > 8} <= {
            "uint8",
            "int32",
        }
        settings["compress_top_k"] = 0.1
        if method in ("easgd", "eamsgd", "grawa", "dppf"):
            with pytest.raises(InputError, match=r"--compress=4 --compress_top_k=0.1: .*would hold workers back"):
                make_method(config(**settings))
            continue
        make_method(config(**settings))
    with pytest.raises(InputError, match="travel as int8 already: leave wire_dtype out"):
        make_method(config(algorithm="lsgd", wire_dtype="int8", compress=8))


def test_what_is_compressed_is_cut_and_overlapped() -> None:
    settings = config(algorithm="lsgd", local_period=8, global_period=8, compress=4, fragments=2, overlap=3)
    state = make_method(settings).init
    assert state.__name__ == "init"
    kinds = [(due.offset, due.ahead) for due in make_method(settings).communications if due.level == "global"]
    assert kinds == [(3, False), (0, True), (7, False), (4, True)]
