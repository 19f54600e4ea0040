"""What a comparison consists of."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lsgd_jax.accounting.network import NETWORKS
from lsgd_jax.cluster import processes
from lsgd_jax.compare.evaluations import make_cost
from lsgd_jax.compare.grid import make_trial, read_variations, settings_of
from lsgd_jax.compare.schedule import evaluation_periods
from lsgd_jax.compare.trials import Setting, Trial, finished
from lsgd_jax.config.checks import check_alone, check_jax, load_config
from lsgd_jax.config.config import Config, check_config
from lsgd_jax.config.from_config import schedule_of
from lsgd_jax.config.kinds import AnySource, find_source, kind_of
from lsgd_jax.config.methods import METHODS
from lsgd_jax.config.own_code import changed_since, digests_of, is_own
from lsgd_jax.config.saved import read_config
from lsgd_jax.data.fingerprint import once
from lsgd_jax.data.streamed import StreamedSource
from lsgd_jax.errors import InputError
from lsgd_jax.tasks.metric import Metric
from lsgd_jax.tasks.task import Task
from lsgd_jax.trainer.conditions import check_data, check_precision
from lsgd_jax.trainer.workdir import is_started, is_used

LEAST_TEST_SEEDS = 3
# Where a run lives, how its data got there and when it is looked at says nothing about what it computes.
IRRELEVANT = ("workdir", "data_dir", "download", "loader_processes", "eval_every", "checkpoint_every")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison consists of.

    Attributes:
      base: the settings of every run, but for what varies.
      source: the data set; its images are read once.
      settings: each method's settings in the grid.
      search_seeds: of the runs by which settings are chosen.
      test_seeds: of the runs that are reported.
      search_steps: local steps of the runs by which settings are chosen. A cosine is as much shorter; drops and
        warm-up stay where they are.
      network: a name in `lsgd_jax.accounting.network.NETWORKS`, for predicted times.
      compute_seconds: of a local step of a worker, for predicted times; None: as measured.
    """

    base: Config
    source: AnySource
    settings: dict[str, list[Setting]]
    search_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    search_steps: int
    network: str
    compute_seconds: float | None

    @property
    def metric(self) -> Metric:
        """By which settings are chosen and reported."""
        return kind_of(self.source).metric

    def search(self) -> list[Trial]:
        """The runs by which settings are chosen. A method with one setting needs none."""
        base = dataclasses.replace(self.base, steps=self.search_steps)
        return [
            make_trial(method, setting, seed, "search", base)
            for method, choices in self.settings.items()
            if len(choices) > 1
            for setting in choices
            for seed in self.search_seeds
        ]

    def test(self, chosen: Mapping[str, Setting | None]) -> list[Trial]:
        """The runs that are reported, seed by seed; none of a method without a chosen setting."""
        return [
            make_trial(method, setting, seed, "test", self.base, eval_every=self.evaluation_periods[method, setting])
            for seed in self.test_seeds
            for method, setting in chosen.items()
            if setting is not None
        ]

    @functools.cached_property
    def evaluation_periods(self) -> dict[tuple[str, Setting], int]:
        """Of the test runs, by method and setting. Known beforehand, it does not depend on what has been run."""
        trials = [
            make_trial(method, setting, self.test_seeds[0], "test", self.base)
            for method, choices in self.settings.items()
            for setting in choices
        ]
        cost = make_cost(NETWORKS[self.network], self.compute_seconds or 1.0)
        if self.compute_seconds is not None:
            return evaluation_periods(trials, cost)
        # Not measured yet: time as if there were computation alone.
        return evaluation_periods(trials, lambda config: cost(config)._replace(seconds=1.0))


def make_plan(
    given: dict[str, Any],
    *,
    methods: Sequence[str],
    vary: Sequence[str],
    search_seeds: Sequence[str],
    test_seeds: Sequence[str],
    network: str,
    compute_seconds: float | None,
    search_steps: int | None = None,
) -> Comparison:
    """Makes the plan after checking all that can be wrong with it.

    Args:
      given: settings of every run, and the workdir of the comparison.
      methods: the methods to compare.
      vary: what `read_variations` reads.
      search_seeds: whole numbers.
      test_seeds: whole numbers, none of them in the search.
      network: a name in `lsgd_jax.accounting.network.NETWORKS`.
      compute_seconds: of a local step, or None.
      search_steps: of the runs by which settings are chosen; None for as many as all have.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    check_jax()
    if unknown := [method for method in methods if method not in METHODS and not is_own(method)]:
        raise InputError(f"unknown method {unknown[0]!r} in --methods: choose from {', '.join(METHODS)}")
    if not methods:
        raise InputError(f"--methods is empty: choose from {', '.join(METHODS)}")
    if network not in NETWORKS:
        raise InputError(f"unknown --network={network}: choose one of {', '.join(NETWORKS)}")
    if compute_seconds is not None and not 0 < compute_seconds < float("inf"):
        raise InputError(f"--compute_seconds={compute_seconds}: must be more than 0")
    searched, tested = _seeds("search_seeds", search_seeds), _seeds("test_seeds", test_seeds)
    if len(tested) < LEAST_TEST_SEEDS or set(searched) & set(tested):
        raise InputError(f"--test_seeds: give at least {LEAST_TEST_SEEDS}, none of them among --search_seeds")
    base = load_config(given["workdir"], given, resume=False)
    check_config(base)
    schedule_of(base)
    search_steps = base.steps if search_steps is None else search_steps
    if not 0 < search_steps <= base.steps:
        raise InputError(f"--search_steps={search_steps}: must be more than 0, and at most --steps={base.steps}")
    if base.wire_dtype is not None and "lsgd" not in methods:
        raise InputError(f"--wire_dtype={base.wire_dtype}: none of --methods uses it: leave it out")
    source = find_source(base)
    if isinstance(source, Task) and source.evaluate is None and None in (source.validation, source.test):
        raise InputError(f"--task={base.task}: a comparison needs validation and test data: give it both")
    # One batch size for all: its default depends on the number of workers, and sgd has one.
    base = dataclasses.replace(base, batch_size=kind_of(source).batch_size(base, source))
    variations = read_variations(vary)
    if absent := sorted(set(variations) - {"", *methods}):
        raise InputError(f"--vary={absent[0]}.…: {absent[0]} is not among --methods: add it there, or leave this out")
    settings = {method: settings_of(method, base, variations) for method in dict.fromkeys(methods)}
    if not isinstance(source, StreamedSource | Task):  # read once, for all runs
        read: Any = once(source.read)
        source = dataclasses.replace(source, read=read)
    plan = Comparison(base, source, settings, searched, tested, search_steps, network, compute_seconds)
    # Any setting may be chosen.
    tests = [make_trial(m, setting, seed, "test", base) for m in settings for setting in settings[m] for seed in tested]
    notes = []
    for trial in [*plan.search(), *tests]:
        check_alone(trial.config)
        kind_of(source).batch_size(trial.config, source)
        notes += _check_same_settings(trial, source)
        finished(trial, plan.metric)  # what cannot be read is told before anything is trained
    if notes:
        processes.say(f"note: {notes[0]}" + (f"; likewise for {len(notes) - 1} more" if len(notes) > 1 else ""))
    return plan


def _check_same_settings(trial: Trial, source: AnySource) -> list[str]:
    """Refuses a folder in which the run was started with other settings or data, or nobody knows with which.

    Returns:
      A note, if its data are not known.

    Raises:
      InputError: naming them.
    """
    workdir = trial.workdir
    if not is_started(workdir):
        if is_used(workdir):
            raise InputError(f"{workdir} holds what a run has left, but no config.json: {trial.how_to_begin_again}")
        return []
    saved, now = read_config(workdir, trial.how_to_begin_again), dataclasses.asdict(trial.config)
    changed = [name for name in now if name not in IRRELEVANT and saved[name] != now[name]]
    if changed:
        shown = ", ".join(f"--{name} was {saved[name]}, is {now[name]}" for name in changed)
        raise InputError(f"{workdir} holds a run with other settings ({shown}): use another --workdir")
    if files := changed_since(workdir, digests_of(trial.config.task, trial.config.algorithm)):
        raise InputError(
            f"{files[0]} has changed since the run in {workdir} began: use another --workdir, or remove "
            f"{workdir.parents[1]} to train {trial.method} again"
        )
    check_precision(workdir)
    note = check_data(workdir, source, Config(**saved).text_name)
    return [note] if note else []


def _seeds(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(text) for text in texts))
    except ValueError as error:
        raise InputError(f"--{flag}={','.join(texts)}: must be whole numbers, separated by commas") from error
    if not seeds or min(seeds) < 0:
        raise InputError(f"--{flag}={','.join(texts)}: give at least one number, none of them negative")
    return seeds
