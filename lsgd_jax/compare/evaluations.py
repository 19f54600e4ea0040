"""What the runs of a comparison come to: errors of the deployed model, samples, bytes and predicted seconds."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from lsgd_jax import ledger
from lsgd_jax.accounting.ledger import Ledger
from lsgd_jax.accounting.network import Network, run_seconds
from lsgd_jax.compare.trials import Trial, TrialOutcome
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source, kind_of
from lsgd_jax.config.make_method import make_method
from lsgd_jax.engine.numerics import fixed_numerics
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.tasks.metric import Metric


class Errors(NamedTuple):
    """The metric of a task, the share of wrong predictions for one; its worst for a model that is not finite.

    Attributes:
      center: of the center.
      leader: of the worker with the lowest training loss.
      deployed: of the one of the two with the lower on validation data, the center if they are equal.
    """

    center: float
    leader: float
    deployed: float


class Evaluation(NamedTuple):
    """An evaluation of a run, or one that it did not reach since it had diverged: then all errors are the worst.

    Attributes:
      step: local steps of each worker.
      samples: that all workers together have trained on.
      bytes: that all workers together have sent.
      predicted_seconds: on the network of the report.
      seconds: measured; None where it had diverged.
      diverged: whether all workers had been lost.
      deployed: "center" or "leader".
      validation: errors on the validation split.
      test: errors on the test split; None in the search, where nobody may look at them.
    """

    step: int
    samples: int
    bytes: int
    predicted_seconds: float
    seconds: float | None
    diverged: bool
    deployed: str
    validation: Errors
    test: Errors | None


class EvaluatedTrial(NamedTuple):
    """A trial, its evaluations, the last of them at its last step, and what they are of."""

    trial: Trial
    evaluations: tuple[Evaluation, ...]
    metric: Metric

    @property
    def end(self) -> Evaluation:
        """The last evaluation."""
        return self.evaluations[-1]


class Cost(NamedTuple):
    """What the steps of a run take.

    Attributes:
      samples: of all workers in one local step of each.
      sends: what they send.
      seconds: predicted, of one local step.
      metric: what its models are judged by.
    """

    samples: int
    sends: Ledger
    seconds: float
    metric: Metric

    def bytes(self, step: int) -> int:
        """Sent by all workers together by a local step."""
        return self.sends.bytes_sent(step)

    def predicted_seconds(self, step: int) -> float:
        """By a local step."""
        return step * self.seconds


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1; NaN for one value) over seeds, and how many they are."""

    mean: float
    deviation: float
    seeds: int


def evaluate_all(outcomes: Iterable[TrialOutcome], network: Network, compute_seconds: float) -> list[EvaluatedTrial]:
    """Evaluates every outcome.

    Args:
      outcomes: what came of the trials.
      network: what connects the workers.
      compute_seconds: of one local step of one worker.
    """
    cost = make_cost(network, compute_seconds)
    return [evaluate(outcome, cost(outcome.trial.config)) for outcome in outcomes]


def make_cost(network: Network, compute_seconds: float) -> Callable[[Config], Cost]:
    """Makes the `cost_of` of a network, which works out once what is the same for several runs."""
    cost = functools.cache(functools.partial(cost_of, network=network, compute_seconds=compute_seconds))
    neutral: dict[str, Any] = {"workdir": "", "seed": 0, "learning_rate": 0.0, "eval_every": None}  # what costs nothing
    return lambda config: cost(dataclasses.replace(config, **neutral))


@fixed_numerics()
def cost_of(config: Config, *, network: Network, compute_seconds: float) -> Cost:
    """What the steps of a run with these settings take; nothing is computed for it.

    Raises:
      InputError: if its data set is no longer there.
    """
    source = find_source(dataclasses.replace(config, download=False))
    kind = kind_of(source)
    shapes = jax.eval_shape(kind.init(config, source), jax.random.key(0))
    sends = ledger(make_method(config), *shapes, groups=config.groups, workers=config.workers)
    batch_size = kind.batch_size(config, source)
    seconds = run_seconds(sends, network, compute_seconds=compute_seconds, steps=1)
    return Cost(batch_size * config.groups * config.workers, sends, seconds, kind.metric)


def evaluate(outcome: TrialOutcome, cost: Cost) -> EvaluatedTrial:
    """The evaluations of a run; those that it missed after it had diverged are there too, with the worst errors."""
    trial, steps = outcome.trial, outcome.trial.config.steps
    diverged = outcome.summary is None
    rows = [row for row in outcome.curve if not diverged or row["step"] < steps]
    evaluations = [_evaluation(row, cost, reveal_test=trial.phase == "test") for row in rows]
    if diverged:
        reached = rows[-1]["step"] if rows else 0
        period = trial.config.evaluation_period
        lost = Errors(*[cost.metric.worst] * 3)
        test = lost if trial.phase == "test" else None
        for step in [*range((reached // period + 1) * period, steps, period), steps]:
            sent = cost.bytes(step)
            evaluations.append(
                Evaluation(
                    step, step * cost.samples, sent, cost.predicted_seconds(step), None, True, "center", lost, test
                )
            )
    return EvaluatedTrial(trial, tuple(evaluations), cost.metric)


def _evaluation(row: dict[str, Any], cost: Cost, *, reveal_test: bool) -> Evaluation:
    """One row of metrics.jsonl."""
    step, deployed = row["step"], cost.metric.best(row)

    def errors(split: str) -> Errors:
        center, leader = cost.metric.read(row, split), cost.metric.read(row, f"leader_{split}")
        return Errors(center, leader, leader if deployed == "leader" else center)

    return Evaluation(
        step=step,
        samples=step * cost.samples,
        bytes=row["bytes_communicated"],
        predicted_seconds=cost.predicted_seconds(step),
        seconds=row["seconds"],
        diverged=False,
        deployed=deployed,
        validation=errors("validation"),
        test=errors("test") if reveal_test else None,
    )


def final_validation_error(outcome: TrialOutcome, metric: Metric = ERROR) -> float:
    """The metric of the deployed model at the end of a run, by which settings are chosen; the worst if it diverged."""
    if outcome.summary is None:
        return metric.worst
    row = outcome.curve[-1]
    return min(metric.read(row, "validation"), metric.read(row, "leader_validation"))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.mean(values), deviation, len(values))
