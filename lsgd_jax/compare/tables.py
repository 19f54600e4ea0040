"""The tables of a comparison's report, in Markdown."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lsgd_jax.compare.budgets import most
from lsgd_jax.compare.evaluations import EvaluatedTrial, Evaluation, Spread, spread
from lsgd_jax.compare.palette import in_order
from lsgd_jax.compare.significance import not_apart
from lsgd_jax.compare.trials import Setting
from lsgd_jax.tasks.metric import Metric

NO_DIFFERENCE = "no difference to"


class MethodResults(NamedTuple):
    """A method and its runs.

    Attributes:
      name: as in --algorithm.
      chosen: its setting, or None while the search goes on, or after it has diverged.
      diverged: whether it has, with every setting.
      search: the runs of the search.
      test: the runs of the chosen setting.
    """

    name: str
    chosen: Setting | None
    diverged: bool
    search: list[EvaluatedTrial]
    test: list[EvaluatedTrial]

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The values of each varied flag in the search, in order."""
        flags = self.search[0].trial.varied if self.search else ()
        values = {flag: {dict(run.trial.varied)[flag] for run in self.search} for flag, _ in flags}
        return {flag: sorted(of_flag) for flag, of_flag in values.items()}

    @property
    def metric(self) -> Metric:
        """What its runs are judged by, the same for all methods."""
        return (self.test or self.search)[0].metric

    @property
    def search_errors(self) -> dict[Setting, float]:
        """Of the deployed model at the end, on validation data, mean over the seeds, of each setting of the search."""
        by_setting: dict[Setting, list[float]] = {}
        for run in self.search:
            by_setting.setdefault(run.trial.varied, []).append(run.end.validation.deployed)
        return {setting: spread(errors).mean for setting, errors in by_setting.items()}


def group_by_method(runs: Iterable[EvaluatedTrial], chosen: Mapping[str, Setting | None]) -> list[MethodResults]:
    """The methods that have runs: those of the palette in its order, then all others by name."""
    by_method: dict[str, list[EvaluatedTrial]] = {}
    for run in runs:
        by_method.setdefault(run.trial.method, []).append(run)
    return [
        MethodResults(
            name,
            chosen.get(name),
            name in chosen and chosen[name] is None,
            [run for run in by_method[name] if run.trial.phase == "search"],
            [run for run in by_method[name] if run.trial.phase == "test"],
        )
        for name in in_order(by_method)
    ]


def main_table(methods: Sequence[MethodResults]) -> str:
    """At equal samples: a line for each method that has test runs, the lowest test error first."""
    tested = [method for method in methods if method.test]
    metric = tested[0].metric
    unit, seconds_in_unit = time_unit(run.end.predicted_seconds for method in tested for run in method.test)
    deployed = {method.name: _deployed([run.end for run in method.test]) for method in tested}
    alike = not_apart(deployed)
    lines = []
    for method in tested:
        ends = [run.end for run in method.test]
        test = [end.test for end in ends if end.test]
        cells = (
            method.name,
            setting_text(method.chosen),
            shown(spread([end.validation.deployed for end in ends]), metric),
            shown(deployed[method.name], metric) + _diverged(ends),
            _deployed_models(ends),
            shown(spread([errors.center for errors in test]), metric),
            shown(spread([errors.leader for errors in test]), metric),
            number(ends[0].bytes / 1e6),
            number(ends[0].predicted_seconds / seconds_in_unit),
            ", ".join(alike[method.name]) or "–",
        )
        lines.append((deployed[method.name].mean, cells))
    header = ("method", "chosen setting", f"validation {metric.title}", f"test {metric.title}", "deployed",
              f"center, test{metric.in_brackets}", f"leader, test{metric.in_brackets}", "sent [MB]",
              f"predicted [{unit}]", NO_DIFFERENCE)  # fmt: skip
    return _markdown(header, [cells for _, cells in sorted(lines, key=lambda line: line[0])], left=(0, 1, 4, 9))


class Budget(NamedTuple):
    """What every method may spend.

    Attributes:
      amount: of bytes or predicted seconds.
      method: the one that needs no more in its whole run.
      spent: what an evaluation had spent.
    """

    amount: float
    method: str
    spent: Callable[[Evaluation], float]


def least_bytes(methods: Sequence[MethodResults]) -> Budget | None:
    """The least that any method which communicates had sent by its end; None if none does."""
    return _least(methods, lambda evaluation: evaluation.bytes)


def least_seconds(methods: Sequence[MethodResults]) -> Budget | None:
    """The predicted time of the shortest run."""
    return _least(methods, lambda evaluation: evaluation.predicted_seconds)


def _least(methods: Sequence[MethodResults], spent: Callable[[Evaluation], float]) -> Budget | None:
    ends = [(spent(method.test[0].end), method.name) for method in methods if method.test]
    ends = [end for end in ends if end[0] > 0]
    return Budget(*min(ends), spent) if ends else None


def budget_table(methods: Sequence[MethodResults], budget: Budget, unit: str, in_unit: float) -> str:
    """The deployed model at the last evaluation within a budget, the lowest test error first."""
    tested = [method for method in methods if method.test]
    last = {method.name: found for method in tested if (found := last_within(method, budget))}
    errors = {name: _deployed(evaluations) for name, evaluations in last.items()}
    alike = not_apart(errors)
    lines = []
    for name in sorted(last, key=lambda name: errors[name].mean):
        spent = budget.spent(last[name][0])
        cost = number(spent / in_unit) if spent else "sends nothing"
        error = shown(errors[name], tested[0].metric) + _diverged(last[name])
        lines.append((name, error, f"{last[name][0].samples:,}", cost, ", ".join(alike[name]) or "–"))
    for method in tested:
        if method.name not in last:
            first = method.test[0].evaluations[0]
            ends = math.floor(first.step * min(1, budget.amount / budget.spent(first)))
            lines.append((method.name, f"budget ends at about step {ends:,}, before the first evaluation", "", "", ""))
    header = ("method", f"test {methods[0].metric.title}", "samples by then", f"spent [{unit}]", NO_DIFFERENCE)
    return _markdown(header, lines, left=(0, 4))


def last_within(method: MethodResults, budget: Budget) -> list[Evaluation]:
    """Each seed's last evaluation that all seeds have (some may be of another --eval_every) within a budget, if any."""
    within = [{e.step: e for e in run.evaluations if budget.spent(e) <= most(budget.amount)} for run in method.test]
    common = set.intersection(*map(set, within))
    return [evaluations[max(common)] for evaluations in within] if common else []


def expected_runs(methods: Sequence[MethodResults]) -> dict[str, tuple[int, int]]:
    """Search runs and test runs of each method, as far as the values and seeds that have begun can tell."""
    search_seeds, test_seeds = (
        len({run.trial.seed for runs in phase for run in runs})
        for phase in ([method.search for method in methods], [method.test for method in methods])
    )
    settings = {method.name: math.prod(len(values) for values in method.grid.values()) for method in methods}
    return {m.name: (settings[m.name] * search_seeds if m.search else 0, test_seeds) for m in methods}


def missing_runs(methods: Sequence[MethodResults]) -> list[str]:
    """What is not there yet, a clause for each."""
    missing = []
    for method in methods:
        searched, tested = expected_runs(methods)[method.name]
        if len(method.search) < searched:
            missing.append(f"{method.name} has {len(method.search)} of {searched} search runs")
        if method.diverged:
            continue
        if method.chosen is None:
            missing.append(f"{method.name} has no chosen setting")
        elif not method.test:
            missing.append(f"{method.name} has no test run")
        elif len(method.test) < tested:
            missing.append(f"{method.name} has {len(method.test)} of {tested} test runs")
    return missing


def search_table(methods: Sequence[MethodResults]) -> str:
    """The grid of each method, how many of its runs are there, and what was chosen."""
    lines = []
    for method in methods:
        (searched, tested), errors = expected_runs(methods)[method.name], method.search_errors
        cells = (
            method.name,
            "; ".join(f"{flag} {', '.join(map(str, values))}" for flag, values in method.grid.items()) or "–",
            _present(method.search, searched),
            "none: all diverged" if method.diverged else setting_text(method.chosen),
            method.metric.shown(errors[method.chosen]) if method.chosen in errors else "",
            "–" if method.diverged else _present(method.test, tested),
        )
        lines.append(cells)
    metric = methods[0].metric
    its = f"its validation {metric.label} there{metric.in_brackets}"
    header = ("method", "grid", "search runs", "chosen setting", its, "test runs")
    return _markdown(header, lines, left=(0, 1, 2, 3, 5))


def at_the_edge(methods: Sequence[MethodResults]) -> list[str]:
    """The chosen values that are the first or the last of at least two values in the grid."""
    return [
        f"{method.name} ({flag} {value})"
        for method in methods
        for flag, value in method.chosen or ()
        if len(values := method.grid.get(flag, [])) > 1 and value in (values[0], values[-1])
    ]


def setting_text(setting: Setting | None) -> str:
    """A setting as a reader sees it."""
    if setting is None:
        return "not yet"
    return ", ".join(f"{flag} {value}" for flag, value in setting) or "–"


def shown(of: Spread, metric: Metric) -> str:
    """Mean ± standard deviation in the metric's unit; the mean alone where there is one value."""
    mean, deviation = metric.shown(of.mean), metric.shown(of.deviation)
    return mean if math.isnan(of.deviation) else f"{mean} ± {deviation}"


def number(value: float) -> str:
    """Three digits, and no exponent for large numbers."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def time_unit(seconds: Iterable[float]) -> tuple[str, float]:
    """The unit of time that suits the longest: its name and its seconds."""
    longest = max(seconds, default=0.0)
    return next((unit for unit in (("h", 3600.0), ("min", 60.0)) if longest >= 2 * unit[1]), ("s", 1.0))


def _deployed(evaluations: Sequence[Evaluation]) -> Spread:
    """The test error of the deployed models over seeds."""
    return spread([evaluation.test.deployed for evaluation in evaluations if evaluation.test])


def _diverged(evaluations: Sequence[Evaluation]) -> str:
    count = sum(evaluation.diverged for evaluation in evaluations)
    return f" ({count} of {len(evaluations)} diverged)" if count else ""


def _present(runs: Sequence[EvaluatedTrial], expected: int) -> str:
    return f"{len(runs)} of {expected}" + _diverged([run.end for run in runs])


def _deployed_models(evaluations: Sequence[Evaluation]) -> str:
    """Which models were deployed: "center", or "center 2, leader 1"."""
    names = [evaluation.deployed for evaluation in evaluations]
    counts = {name: names.count(name) for name in sorted(set(names))}
    return ", ".join(f"{name} {count}" for name, count in counts.items()) if len(counts) > 1 else names[0]


def _markdown(header: Sequence[str], lines: Iterable[Sequence[str]], *, left: Sequence[int]) -> str:
    """A table; the columns that are not to the left hold figures."""
    rule = ["---" if column in left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))
