"""The settings that a comparison tries: the grid, what is chosen from it, and what it refuses."""

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import a_plan

from lsgd_jax.commands.settings import given_settings
from lsgd_jax.compare import command as script
from lsgd_jax.compare.grid import choose, make_trial, read_variations, settings_of
from lsgd_jax.compare.plan import make_plan
from lsgd_jax.compare.trials import Trial, TrialOutcome
from lsgd_jax.config.config import Config
from lsgd_jax.config.methods import METHODS
from lsgd_jax.errors import InputError

BASELINES = ("lsgd", "easgd", "local_sgd", "diloco", "data_parallel")
BASE = Config(workdir="w", groups=2, workers=3, steps=40, batch_size=8, warmup_steps=2)


def outcome_of(trial: Trial, center: float, leader: float = 1.0, test: float = 0.5) -> TrialOutcome:
    """An outcome whose last evaluation has these validation errors."""
    row = {"step": trial.config.steps, "validation_error": center, "leader_validation_error": leader}
    return TrialOutcome(trial, [row | {"test_error": test, "leader_test_error": test}], {"step": trial.config.steps})


def test_what_varies_for_all_and_for_one_method_makes_a_grid() -> None:
    variations = read_variations(["learning_rate=0.1,0.2", "global_period=16,64", "easgd.beta=0.5,0.9"])
    assert settings_of("easgd", BASE, variations) == [
        (("learning_rate", rate), ("global_period", period), ("beta", beta))
        for rate in (0.1, 0.2)
        for period in (16, 64)
        for beta in (0.5, 0.9)
    ]
    # A method is not run again for what it does not read.
    assert settings_of("data_parallel", BASE, variations) == [(("learning_rate", rate),) for rate in (0.1, 0.2)]
    assert len(settings_of("diloco", BASE, variations)) == 4


def test_a_methods_own_values_take_the_place_of_those_of_all() -> None:
    variations = read_variations(["learning_rate=0.1,0.2", "downpour.learning_rate=0.01", "downpour.global_period=1"])
    assert settings_of("downpour", BASE, variations) == [(("learning_rate", 0.01), ("global_period", 1))]


def test_every_run_sees_as_many_samples_and_sgd_has_one_worker() -> None:
    trials = [make_trial(method, (), 1, "test", BASE) for method in METHODS]
    seen = {t.method: t.config.steps * t.config.groups * t.config.workers for t in trials}
    assert set(seen.values()) == {40 * 6}
    alone = next(t.config for t in trials if t.method == "sgd")
    assert (alone.groups, alone.workers, alone.steps, alone.warmup_steps) == (1, 1, 240, 12)
    assert alone.evaluation_period == 6 * BASE.evaluation_period
    assert len({t.config.workdir for t in trials}) == len(trials)


def test_the_learning_rates_of_large_batches_can_be_varied() -> None:
    variations = read_variations(["data_parallel.scale_learning_rate=false,true", "warmup_steps=0,5"])
    assert settings_of("data_parallel", BASE, variations) == [
        (("warmup_steps", steps), ("scale_learning_rate", scaled)) for steps in (0, 5) for scaled in (False, True)
    ]
    warmed = (("warmup_steps", 5),)
    trials = {method: make_trial(method, warmed, 1, "test", BASE) for method in ("data_parallel", "sgd")}
    # As many samples: the one worker of sgd takes six times the steps.
    assert {method: trial.config.warmup_steps for method, trial in trials.items()} == {"data_parallel": 5, "sgd": 30}


def test_a_wire_dtype_for_all_is_for_those_that_use_it(tmp_path: Path) -> None:
    base = dataclasses.replace(BASE, wire_dtype="int8")
    assert {m: make_trial(m, (), 1, "test", base).config.wire_dtype for m in ("lsgd", "none")} == {
        "lsgd": "int8",
        "none": None,
    }
    given = {"workdir": str(tmp_path), "model": "mlp", "workers": 2, "batch_size": 8, "wire_dtype": "int8"}
    seeds: dict[str, Any] = {"search_seeds": ["0"], "test_seeds": ["1", "2", "3"]}
    rest: dict[str, Any] = {"vary": [], "network": "1 Gb/s Ethernet", "compute_seconds": None, **seeds}
    make_plan(given, methods=["none", "lsgd"], **rest)
    with pytest.raises(InputError, match="--wire_dtype=int8: none of --methods uses it"):
        make_plan(given, methods=["none", "easgd"], **rest)
    with pytest.raises(InputError, match="--wire_dtype=int9"):
        make_plan(given | {"wire_dtype": "int9"}, methods=["lsgd"], **rest)


def test_a_run_of_the_search_is_evaluated_at_its_end_alone() -> None:
    assert make_trial("easgd", (), 0, "search", BASE).config.evaluation_period == 40
    assert make_trial("sgd", (), 0, "search", BASE).config.evaluation_period == 240
    assert make_trial("easgd", (), 0, "test", BASE).config.evaluation_period == BASE.evaluation_period


def test_the_folder_of_a_setting_with_many_flags_has_a_name_that_file_systems_take() -> None:
    pulls = ("local_pull", "global_pull", "stale_local_pull", "stale_global_pull")
    flags = ("learning_rate", "momentum", "weight_decay", "clip_norm", "leader_window", "warmup_steps", "beta", *pulls)
    folders = []
    for rate in (0.1, 0.2):
        setting = (*((flag, 0.123456789) for flag in flags[1:]), (flags[0], rate))
        folders.append(Path(make_trial("lsgd", setting, 0, "search", BASE).config.workdir))
        assert Path(make_trial("lsgd", setting, 0, "search", BASE).config.workdir) == folders[-1]
    assert folders[0].parent != folders[1].parent
    assert all(len(part.encode()) <= 255 for folder in folders for part in folder.parts)


def test_settings_are_chosen_by_the_mean_validation_error_of_the_better_of_center_and_leader() -> None:
    rates = [(("learning_rate", rate),) for rate in (0.1, 0.2, 0.3)]
    # (center, leader) of the seeds 0 and 1; the test errors would choose otherwise.
    errors = {rates[0]: [(0.3, 0.5), (0.5, 0.6)], rates[1]: [(0.9, 0.2), (0.4, 0.5)], rates[2]: [(0.1, 1), (0.9, 0.8)]}
    outcomes = [
        outcome_of(make_trial("lsgd", rate, seed, "search", BASE), *errors[rate][seed], test=1 - i / 10)
        for i, rate in enumerate(rates)
        for seed in (0, 1)
    ]
    assert choose({"lsgd": rates, "none": [()]}, outcomes) == {"lsgd": rates[1], "none": ()}


def test_a_method_that_diverged_with_every_setting_has_none_and_is_not_tested(tmp_path: Path) -> None:
    rates = [(("learning_rate", rate),) for rate in (0.1, 0.2)]
    outcomes = [TrialOutcome(make_trial("lsgd", rate, 0, "search", BASE), [], None) for rate in rates]
    assert choose({"lsgd": rates}, outcomes) == {"lsgd": None}
    assert choose({"lsgd": rates}, outcomes[:1]) == {}, "the search is not over"
    better = outcome_of(outcomes[1].trial, 0.9)
    assert choose({"lsgd": rates}, [better]) == {}
    assert choose({"lsgd": rates}, [outcomes[0], better]) == {"lsgd": rates[1]}
    assert {trial.method for trial in a_plan(tmp_path).test({"lsgd": None, "sgd": ()})} == {"sgd"}


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        ("learning_rate", "write flag=value"),
        ("learning_rate=", "write flag=value"),
        ("learning_rate=fast", "fast"),
        ("lerning_rate=0.1", "'lerning_rate'"),
        ("lsdg.learning_rate=0.1", "unknown method 'lsdg'"),
        ("seed=1,2", "'seed'"),
        ("steps=10,20", "'steps'"),
        ("scale_learning_rate=yes", "'yes' is neither false nor true"),
        ("download=false,true", "'download'"),
        ("resume=true", "'resume'"),
        ("text_file=a,b", "'text_file'"),
        ("connect_timeout=1,2", "'connect_timeout'"),
        ("easgd.beta=0.5", "easgd is not among --methods"),
        ("lsgd.beta=0.5", "lsgd does not use it"),
        ("lsgd.local_pull=0.5", "lsgd does not use it here"),
        ("learning_rate=-1", "--learning_rate=-1.0"),
        ("global_pull=2", "--global_pull=2.0"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path: Path, vary: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        a_plan(tmp_path, vary=[vary])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methods": ["lsgd", "adam"]}, "unknown method 'adam'"),
        ({"methods": []}, "--methods is empty"),
        ({"test_seeds": ["1", "2"]}, "at least 3"),
        ({"test_seeds": ["1", "2", "2"]}, "at least 3"),
        ({"test_seeds": ["0", "1", "2"]}, "none of them among --search_seeds"),
        ({"search_seeds": ["one"]}, "--search_seeds=one"),
        ({"search_seeds": ["-1"]}, "--search_seeds=-1"),
        ({"network": "tin cans"}, "--network=tin cans"),
        ({"compute_seconds": 0.0}, "--compute_seconds=0.0"),
        ({"vary": ["learning_rate=0.1", "learning_rate=0.2"]}, "varied twice"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        a_plan(tmp_path, **changes)


@pytest.mark.parametrize(
    ("name", "methods", "settings", "more"),
    [
        ("digits", METHODS, 2, {}),
        ("cifar10_cnn7_4_workers", METHODS, 3, {"lsgd": 6}),
        ("convergence_a", ("lsgd", "easgd", "local_sgd", "data_parallel"), 12, {"local_sgd": 6, "data_parallel": 3}),
        ("convergence_a_stale", ("lsgd",), 8, {}),
        (
            "convergence_b",
            ("diloco", "downpour", "dppf", "grawa", "sgd", "none"),
            12,
            {"downpour": 6, "sgd": 3, "none": 3},
        ),
        *((f"convergence_{groups}x4", ("lsgd", "easgd", "local_sgd"), 2, {"lsgd": 4}) for groups in (2, 4)),
        *((f"convergence_1x{workers}", ("lsgd", "local_sgd"), 2, {"lsgd": 4}) for workers in (8, 16)),
        ("tinyshakespeare_transformer", BASELINES, 3, {"lsgd": 6, "diloco": 6}),
        ("tinyshakespeare_lstm", BASELINES, 3, {"lsgd": 6, "diloco": 6}),
    ],
)
def test_the_flagfiles_give_every_method_as_many_settings(
    name: str, methods: Collection[str], settings: int, more: dict[str, int]
) -> None:
    flagfile = Path(__file__).parents[2] / "experiments" / "flagfiles" / f"{name}.flags"
    script.FLAGS.unparse_flags()
    script.FLAGS(["compare.py", f"--flagfile={flagfile}"])
    base = Config(workdir="w", **given_settings(script.FLAGS))
    variations = read_variations(script.FLAGS.vary)
    counts = {method: len(settings_of(method, base, variations)) for method in script.FLAGS.methods}
    assert counts == dict.fromkeys(methods, settings) | more


def test_arguments_of_a_method_of_ones_own_are_not_those_of_others() -> None:
    own = "mine.py:gossip"
    variations = read_variations([f"{own}.method_args=period=4,period=8", "method_args=pull=1,pull=2"])
    base = dataclasses.replace(BASE, method_args="period=2")
    assert settings_of("lsgd", base, variations) == [()]
    assert make_trial("lsgd", (), 0, "search", base).config.method_args is None
    assert variations[own] == {"method_args": ("period=4", "period=8")}
