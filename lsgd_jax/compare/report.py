"""The report of a comparison: report.md, runs.csv, curves.csv and figures."""

import dataclasses
import datetime
import itertools
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lsgd_jax.accounting.network import NETWORKS
from lsgd_jax.compare.budgets import SLACK
from lsgd_jax.compare.evaluations import Errors, EvaluatedTrial, Evaluation, evaluate_all
from lsgd_jax.compare.figures import LEAST, draw_figures
from lsgd_jax.compare.schedule import DENSEST
from lsgd_jax.compare.significance import LEAST as TOLD_APART
from lsgd_jax.compare.tables import (
    NO_DIFFERENCE,
    MethodResults,
    Setting,
    at_the_edge,
    budget_table,
    group_by_method,
    least_bytes,
    least_seconds,
    main_table,
    missing_runs,
    number,
    search_table,
    time_unit,
)
from lsgd_jax.compare.trials import Trial, TrialOutcome
from lsgd_jax.config.config import Config
from lsgd_jax.config.usual import USUAL
from lsgd_jax.files.files import write_csv, write_whole
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.tasks.metric import Metric
from lsgd_jax.trainer.provenance import PACKAGES

# What a report may have, besides the runs.
FILES = ("report.md", "runs.csv", "curves.csv", "curves.png", "learning_rate.png", "period.png")
HELD_OUT = (
    " and which tenth of the training images is held out for validation, so validation errors of different seeds "
    "are on different images. The test images are always the same."
)


def write_report(
    workdir: pathlib.Path,
    outcomes: Sequence[TrialOutcome],
    chosen: Mapping[str, Setting | None],
    *,
    network: str,
    compute_seconds: float,
    commands: Sequence[str],
) -> list[pathlib.Path]:
    """Writes the report of a comparison, or of as much of it as is there.

    Test errors of the search stand nowhere in it.

    Args:
      workdir: the folder for it.
      outcomes: what came of the runs so far, at least one.
      chosen: each method's setting, for those whose search is over; None if all its settings diverged.
      network: one of `lsgd_jax.accounting.network.NETWORKS`, for predicted times.
      compute_seconds: of one local step of one worker.
      commands: the command lines that made the comparison.

    Returns:
      The paths of report.md, runs.csv, curves.csv and the figures.

    Raises:
      ValueError: if there are no outcomes, or the network is unknown.
      InputError: if the data set is no longer there.
    """
    if not outcomes:
        raise ValueError("outcomes is empty: a report needs at least one run")
    if network not in NETWORKS:
        raise ValueError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")
    runs = evaluate_all(outcomes, NETWORKS[network], compute_seconds)
    methods, metric = group_by_method(runs, chosen), runs[0].metric
    flags = list(dict.fromkeys(flag for run in runs for flag, _ in run.trial.varied))
    runs_csv = _write_csv(workdir / "runs.csv", flags, ((run, run.end) for run in runs), metric)
    every_evaluation = ((run, evaluation) for run in runs for evaluation in run.evaluations)
    curves_csv = _write_csv(workdir / "curves.csv", flags, every_evaluation, metric)
    figures = draw_figures(workdir, methods, network)
    sections = [
        f"# Comparison of {', '.join(method.name for method in methods)}",
        _what_ran(outcomes, runs),
        *_not_complete(methods),
        _settings(methods),
        *_results(methods, network),
        *_figures(figures, metric),
        _predicted_and_measured(network, compute_seconds, groups=max(run.trial.config.groups for run in runs)),
        _keep_in_mind(methods),
        _commands(methods, commands),
    ]
    report = workdir / "report.md"
    write_whole(report, "\n\n".join(sections) + "\n")
    return [report, runs_csv, curves_csv, *figures]


def _write_csv(
    path: pathlib.Path, flags: list[str], lines: Iterable[tuple[EvaluatedTrial, Evaluation]], metric: Metric
) -> pathlib.Path:
    """A line for each of some evaluations; test errors are empty for runs of the search."""
    measured = ("step", "samples", "bytes", "predicted_seconds", "seconds", "diverged", "deployed")
    errors = [f"{model}_{split}_{metric.name}" for split in ("validation", "test") for model in Errors._fields]

    def row(run: EvaluatedTrial, evaluation: Evaluation) -> list[Any]:
        trial, varied = run.trial, dict(run.trial.varied)
        return [
            *(trial.method, trial.phase, trial.seed),
            *(varied.get(flag) for flag in flags),
            trial.config.groups * trial.config.workers,
            *(getattr(evaluation, name) for name in measured),
            *evaluation.validation,
            *(evaluation.test or [None] * len(Errors._fields)),
        ]

    columns = ["method", "phase", "seed", *flags, "workers", *measured, *errors]
    write_csv(path, columns, itertools.starmap(row, lines), digits=6)
    return path


def _what_ran(outcomes: Sequence[TrialOutcome], runs: Sequence[EvaluatedTrial]) -> str:
    """Data set, model, workers, samples; device, commit and versions of the runs; the date."""
    largest = max((run.trial.config for run in runs), key=lambda config: config.groups * config.workers)
    summaries = [outcome.summary for outcome in outcomes if outcome.summary]
    samples = {run.end.samples for run in runs}

    def each(key: str) -> str:
        # Runs of earlier versions did not tell all of it.
        values = {"unknown" if (value := summary.get(key)) is None else value for summary in summaries}
        return " and ".join(sorted(f"{value:,}" if isinstance(value, int) else value for value in values))

    # What the settings do not name, the runs do.
    model = next((summary["model"] for summary in summaries), largest.model_name)
    parameters = f" ({each('parameters')} parameters)" if summaries else ""
    facts = [
        f"data set {largest.data_name}",
        f"model {model}{parameters}",
        f"{largest.groups} × {largest.workers} workers (groups × workers of each)",
        f"batches of {each('batch_size')} samples a worker" if summaries else "",
        f"{' to '.join(f'{count:,}' for count in sorted({min(samples), max(samples)}))} samples a run",
        *([f"device {each('device')}", f"commit {each('commit')}"] if summaries else []),
        *(f"{name} {each(name)}" for name in (*PACKAGES, "python") if summaries),
        datetime.date.today().isoformat(),
    ]
    return "; ".join(filter(None, facts)) + "."


def _not_complete(methods: Sequence[MethodResults]) -> list[str]:
    missing, diverged = missing_runs(methods), [method.name for method in methods if method.diverged]
    shown = f"**Not complete**: {'; '.join(missing)}. The counts follow from the settings and seeds that have begun."
    without = f"**Diverged with every setting**, so without a test run: {', '.join(diverged)}."
    return [shown] * bool(missing) + [without] * bool(diverged)


def _settings(methods: Sequence[MethodResults]) -> str:
    figure = methods[0].metric.label
    search_seeds = sorted({run.trial.seed for method in methods for run in method.search})
    test_seeds = sorted({run.trial.seed for method in methods for run in method.test})
    shorter = _shorter_search(methods)
    return f"""## How settings were chosen

The *deployed* model of a run is its center or its leader (the worker with the lowest training loss), whichever has the
lower validation {figure} at the end, the center if they are equal. Of each method's grid the setting was chosen whose
deployed model has the lowest validation {figure}, mean over the search seeds ({_listed(search_seeds)}).{shorter}
The chosen settings were then run again with the test seeds ({_listed(test_seeds)}). No test {figure} entered any
choice, and those of the search are not in this folder's tables, figures and CSV files.

{search_table(methods)}"""


def _shorter_search(methods: Sequence[MethodResults]) -> str:
    """Says so, if the runs of the search took fewer samples."""
    both = next(((each.search[0], each.test[0]) for each in methods if each.search and each.test), None)
    share = 1.0 if both is None else both[0].trial.config.steps / both[1].trial.config.steps
    return "" if share == 1 else f"\nRuns of the search took {share:.0%} of the samples of a test run."


def _results(methods: Sequence[MethodResults], network: str) -> list[str]:
    """The tables at equal samples, equal bytes and equal predicted time."""
    seconds, sent = least_seconds(methods), least_bytes(methods)
    if seconds is None:
        return ["No test run is there yet."]
    sections = [
        f"""## At equal samples

At the end of the runs, mean ± sample standard deviation over the test seeds. "Sent" is what all workers sent together,
"predicted" the time on {network}. "{NO_DIFFERENCE.capitalize()}" names the methods whose mean is less than
{TOLD_APART:g} standard errors of the difference away (Welch's t), here and below: the seeds do not tell them apart.

{main_table(methods)}"""
    ]
    if sent is not None:
        sections.append(
            f"""## At equal bytes

Each method's deployed model at its last evaluation within {number(sent.amount / 1e6)} MB sent by all workers together,
which is all that {sent.method} sends.

{budget_table(methods, sent, "MB", 1e6)}"""
        )
    unit, in_unit = time_unit([seconds.amount])
    sections.append(
        f"""## At equal predicted time

Each method's deployed model at its last evaluation within {number(seconds.amount / in_unit)} {unit} predicted on
{network}, the time of the shortest run ({seconds.method}).

{budget_table(methods, seconds, unit, in_unit)}"""
    )
    return sections


def _figures(paths: Sequence[pathlib.Path], metric: Metric) -> list[str]:
    """The figures, each with what it shows."""
    figure = metric.label
    captions = {
        "curves.png": f"Test {figure} of the deployed model (at each evaluation the center or the leader, by "
        f"validation {figure}) over samples, bytes and predicted time: the mean over the test seeds, and a band from "
        "the lowest to the highest. In the middle, a method that sends nothing is a level line at where it ends. "
        f"What is below {LEAST:g} {metric.unit or figure} is drawn there.",
        "learning_rate.png": f"Validation {figure} over the learning rate, mean over the search seeds, the other "
        "settings at their best for each value.",
        "period.png": f"Validation {figure} over the global period, mean over the search seeds, the other settings "
        "at their best for each value.",
    }
    drawn = [f"![{path.stem.replace('_', ' ')}]({path.name})\n\n*{captions[path.name]}*" for path in paths]
    return ["## Figures", *drawn] if drawn else []


def _predicted_and_measured(network: str, compute_seconds: float, groups: int) -> str:
    inside, between = (
        f"{link.latency:g} s a message and {link.bandwidth * 8 / 1e9:g} Gb/s" for link in NETWORKS[network]
    )
    links = f"Between groups {between}; inside a group {inside}"
    if groups == 1:
        links = f"All workers are one group, so nothing crosses it; inside a group {inside}"
    return f"""## What is predicted, what is measured

- Measured: errors, and in the CSV files `seconds`, the time of training on the device above, which simulated all
  workers; it says nothing about workers with a device each.
- Counted: samples, and bytes by the method's ledger, a collective as a ring. Evaluations send nothing in it.
- Predicted: the time on {network}. {links}; {compute_seconds:g} s of computation a local step.
  Computation and communication do not overlap, and no worker waits for a slow one."""


def _keep_in_mind(methods: Sequence[MethodResults]) -> str:
    edges = at_the_edge(methods)
    sizes = {method.name: len(method.search_errors) for method in methods if method.search}
    metric = methods[0].metric
    worst = f"{metric.scale * metric.worst:g} {metric.unit or metric.label}"
    facts = [
        f"Settings tried: {', '.join(f'{name} {size}' for name, size in sizes.items())}. A larger grid finds a better "
        "setting more easily." if sizes else "",
        f"Chosen at the edge of the grid: {', '.join(edges)}. A wider grid might do better." if edges else "",
        f"A seed decides the start and the order of the data{HELD_OUT if metric is ERROR else '.'}",
        "The standard deviation is over seeds only; it does not contain that of a finite test set.",
        f"Of two methods that are equal, three seeds differ by {TOLD_APART:g} standard errors or more once in eight "
        "times; of many pairs, some do. Methods differ in their chosen settings, too.",
        f"A run that diverged (all workers lost) counts as {worst} from then on, in every mean; none counts as more.",
        "sgd is one worker, which takes as many times the steps as the others have workers."
        if any(method.name == "sgd" for method in methods) else "",
        "A budget is met at an evaluation, so a method may stay below it by up to one evaluation period; it counts as "
        f"met by what exceeds it by {SLACK:.0%} or less. Methods that "
        f"spend it early in their run are evaluated up to {DENSEST} times as often as the others.",
    ]  # fmt: skip
    return "\n".join(["## To keep in mind", "", *(f"- {fact}" for fact in facts if fact)])


def _commands(methods: Sequence[MethodResults], commands: Sequence[str]) -> str:
    """The commands that were given, and for each method the one that repeats its chosen setting."""
    trials = [trial for method in methods if (trial := _representative(method))]
    lines = ["## Commands", "", "```sh", *commands, "```"]
    if trials:
        shown = "One run of each chosen setting; further seeds with another `--seed`:"
        lines += ["", shown, "", "```sh", *(train_command(trial.config) for trial in trials), "```"]
    return "\n".join(lines)


def _representative(method: MethodResults) -> Trial | None:
    """A trial of the chosen setting, of the test if there is one."""
    trials = [run.trial for run in (*method.test, *method.search)]
    return next((trial for trial in trials if trial.varied == method.chosen), None)


def train_command(config: Config) -> str:
    """The command line of a single run: the flags that differ from defaults, or have other ones for some data."""
    defaults = Config(workdir=config.workdir)
    other_data = (config.dataset, config.text_file) != (defaults.dataset, None)
    shown = {name for of_kind in USUAL.values() for name in of_kind} if other_data else set()
    changed: dict[str, Any] = {
        field.name: value
        for field in dataclasses.fields(Config)
        if (value := getattr(config, field.name)) != getattr(defaults, field.name) or field.name in shown
    }
    return shlex.join(["python", "-m", "lsgd_jax.train", *(f"--{flag}={value}" for flag, value in changed.items())])


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none yet"
