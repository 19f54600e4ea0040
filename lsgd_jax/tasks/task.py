"""What is learned: a model and its loss, training data, and how a model is judged."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lsgd_jax.collectives.partition import split_samples
from lsgd_jax.data.fingerprint import digest_of
from lsgd_jax.data.grain_source import check_dataset, digest_of_some, empty_batch, is_dataset
from lsgd_jax.data.sources import Stream, TrainingData, check_arrays
from lsgd_jax.engine.communications import Score
from lsgd_jax.engine.local_steps import Batches, Loss
from lsgd_jax.engine.numerics import run_key
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError, first_line
from lsgd_jax.tasks.evaluation import Candidate, Evaluate, SampleFigures, SampleMetric, evaluate_splits
from lsgd_jax.tasks.metric import SPLITS, Metric, plain_metric

Init = Callable[[jax.Array], tuple[Any, Any]]
"""`key -> (params, model_state)`."""
PrepareCenter = Callable[[Candidate], Candidate]
"""Makes the model of averaged parameters ready: what it keeps besides them is no average."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What workers learn; it knows nothing of them, nor of methods.

    Attributes:
      init: `key -> (params, model_state)` of one worker; pytrees of arrays. The state is what else
        the model keeps, `{}` if nothing.
      loss: `(params, model_state, batch, key) -> (loss, model_state)` of one worker on one
        minibatch; a float scalar.
      train: where minibatches come from: `from_arrays`, `from_function` or `from_grain`.
      validation: what models are chosen by: a pytree of arrays, a sample for each entry of their leading
        axes, or a Grain `MapDataset` of samples, which is read each time. None for none.
      test: likewise; only reported.
      metrics: by name, `(params, model_state, batch) -> float[batch]`, a figure of each sample; the
        lower, the better. They are averaged over a whole split, each sample once. Models are chosen
        and reported by the first. By default the loss of each sample on its own.
      name: of the data and what is learned of them. A run goes on with a task of the same name alone.
      unit: of a sample, for people.
      metric: how the first metric is shown; by default as it is.
      evaluate: in place of `metrics`, `validation` and `test`: `topology -> (candidate, prefix) ->
        figures`, of splits "validation" and "test", with names like "validation_error".
      prepare_center: `(topology, seed) -> (candidate -> candidate)`, what makes a center ready: its
        `model_state` is an average. By default nothing.
      description: what loading the model has to know of it, as JSON has it; with its "model", for people.
      units_per_sample: how many of its units a sample has: tokens of a window, say.
      compute_dtype: of most of its products, which the compiler is told of.
      partition: where a worker spans several devices, how its parameters are split over them, and what is kept
        beside these: see `Topology.partition`.
      score_on: a minibatch, as `loss` takes it: its loss is what leaders are elected by, the same samples for all
        workers, in place of the mean of each worker's own last losses. One forward pass of it before each
        communication. To be held out of the training data.
      gathers: whether `loss`, and what evaluates, call `lsgd_jax.gathered` where they use parameters, as in a loop
        over layers. By default all are gathered before.

    Raises:
      InputError: naming what cannot be.
    """

    init: Init
    loss: Loss
    _: dataclasses.KW_ONLY
    train: TrainingData
    validation: Any = None
    test: Any = None
    metrics: Mapping[str, SampleMetric] | None = None
    name: str = "task"
    unit: str = "samples"
    metric: Metric | None = None
    evaluate: Callable[[Topology], Evaluate] | None = None
    prepare_center: Callable[[Topology, int], PrepareCenter] | None = None
    description: Mapping[str, Any] | None = None
    units_per_sample: int = 1
    compute_dtype: str = "float32"
    partition: Sequence[tuple[str, PartitionSpec]] = ()
    score_on: Any = None
    gathers: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.train, TrainingData):
            raise InputError(f"train is {type(self.train).__name__}: use from_arrays, from_function or from_grain")
        for name in SPLITS:
            if isinstance(split := getattr(self, name), TrainingData):
                raise InputError(f"{name} is a source of minibatches: give arrays, or a Grain dataset")
            if is_dataset(split):
                check_dataset(name, split)
            elif split is not None:
                object.__setattr__(self, name, check_arrays(name, split))
        if self.score_on is not None:  # as NumPy arrays: devices may change
            object.__setattr__(self, "score_on", jax.tree.map(np.asarray, self.score_on))
        if self.metrics is not None:
            if not isinstance(self.metrics, Mapping) or not self.metrics:
                raise InputError(
                    "metrics has to name functions, as {'error': error}; without it the loss is the metric"
                )
            if odd := [name for name in self.metrics if not re.fullmatch(r"[\w.-]+", name)]:
                raise InputError(
                    f"the metric {odd[0]!r} names columns and files: use letters, digits, _, . and - alone"
                )

    @functools.cached_property
    def digest(self) -> str:
        """Of all data; of the name of those to train on where they cannot be looked at."""
        train = f"named {self.name}" if self.train.digest is None else self.train.digest()
        splits = [getattr(self, name) for name in SPLITS]
        if self.score_on is not None:
            splits.append(self.score_on)
        if all(split is None for split in splits):
            return train
        held_out = [digest_of_some(x) if is_dataset(x) else digest_of(functools.partial(tuple, [x])) for x in splits]
        return f"{train} {' '.join(held_out)}"


class OpenTask(NamedTuple):
    """A task on the devices of a run.

    Attributes:
      init: `key -> (params, model_state)`.
      loss: of one worker on one minibatch.
      score: what elections go by; None for the workers' own last losses.
      batches: where minibatches come from.
      data_for: `(step, steps) -> data`, what the call of the train step that begins at
        `step` draws from. Calls come in order, `steps` of them at a time or fewer.
      longest_call: local steps in one call of the train step, at most; None if the data set no bound.
      evaluate: `(candidate, prefix) -> figures` on validation and test: names like
        `validation_loss`, after the prefix.
      prepare_center: `center -> center`, ready to be evaluated.
      description: what loading the model has to know of it.
      metric: by which its models are chosen and reported.
      batch_size: a worker's.
      unit: what is counted for progress: "images", "tokens".
      units_per_batch: how many of them a minibatch has.
      close: ends what `data_for` has started.
      splits: those of "validation" and "test" that are evaluated.
    """

    init: Init
    loss: Loss
    score: Score | None
    batches: Batches
    data_for: Callable[[int, int], Any]
    longest_call: int | None
    evaluate: Evaluate
    prepare_center: PrepareCenter
    description: Mapping[str, Any]
    metric: Metric
    batch_size: int
    unit: str
    units_per_batch: int
    close: Callable[[], None]
    splits: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the metric's figures in metrics.jsonl."""
        return self.metric.columns_of("", self.splits) + self.metric.columns_of("leader_", self.splits)


def open_task(task: Task, topology: Topology, *, seed: int, steps: int) -> OpenTask:
    """Puts a task where the workers of a run are.

    Args:
      task: what is learned.
      topology: the workers.
      seed: of the order in which they see the data.
      steps: of the run, where streams end.

    Raises:
      InputError: if the data do not suffice for so many workers.
    """
    stream = task.train.open(topology, seed, steps)
    model = check_model(task.init)
    check_loss(task.loss, *model, stream)
    gathering = gathering_of(task, topology)
    score = None if task.score_on is None else score_of(gathering(task.loss), task.score_on)
    if score is not None:
        check_score(score, *model)
    metrics = task.metrics or {"loss": sample_loss(task.loss)}
    splits = {name: data for name in SPLITS if (data := getattr(task, name)) is not None}
    for name, metric in metrics.items():
        for split in splits.values():
            check_metric(name, metric, *model, split)
    return OpenTask(
        init=task.init,
        loss=gathering(task.loss),
        score=score,
        batches=stream.batches,
        data_for=stream.data_for,
        longest_call=stream.longest_call,
        evaluate=task.evaluate(topology)
        if task.evaluate
        else evaluate_splits(gathering(figures_of(metrics)), splits, topology, task.train.processes),
        prepare_center=task.prepare_center(topology, seed) if task.prepare_center else lambda center: center,
        description=task.description or {"kind": "own", "model": task.name},
        metric=metric_of(task),
        batch_size=task.train.batch_size,
        unit=task.unit,
        units_per_batch=task.train.batch_size * task.units_per_sample,
        close=stream.close,
        splits=SPLITS if task.evaluate else tuple(splits),
    )


def laid_out(task: Task, topology: Topology) -> Topology:
    """The topology, with a worker's arrays split as the task says, if it does."""
    return dataclasses.replace(topology, partition=task.partition) if task.partition else topology


def gathering_of(task: Task, topology: Topology) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What becomes of a function of parameters and more: it is given them gathered, unless the task's gather them."""
    if task.gathers:
        return lambda function: function
    return lambda function: lambda params, *rest: function(topology.gathered(params), *rest)


def score_of(loss: Loss, batch: Any) -> Score:
    """The loss on a batch that is the same for all, with what is drawn at random, as dropout, the same for all too."""
    return lambda params, model_state: loss(params, model_state, split_samples(batch), run_key(0))[0]


def figures_of(metrics: Mapping[str, SampleMetric]) -> SampleFigures:
    """All metrics of a batch."""
    return lambda *of: {name: metric(*of) for name, metric in metrics.items()}


def check_model(init: Callable[[jax.Array], Any]) -> tuple[Any, Any]:
    """The shapes of parameters and model state.

    Raises:
      InputError: if `init` gives no such pair.
    """
    made = jax.eval_shape(init, run_key(0))
    if not isinstance(made, tuple | list) or len(made) != 2:
        given = type(made).__name__
        raise InputError(f"{_called(init)} gives {given}: return (params, model_state), with {{}} for no state")
    if not any(jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact) for leaf in jax.tree.leaves(made[0])):
        raise InputError(f"{_called(init)} makes no parameter of a floating dtype: nothing could be learned")
    return made[0], made[1]


def check_score(score: Score, params: Any, model_state: Any) -> None:
    """Refuses a batch to score on that the loss does not take; nothing is computed.

    Raises:
      InputError: with what the loss says of it.
    """
    try:
        jax.eval_shape(score, params, model_state)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise InputError(f"score_on is no minibatch that the loss takes: {first_line(error)}") from error


def check_loss(loss: Loss, params: Any, model_state: Any, stream: Stream) -> None:
    """Refuses a loss that is no scalar, or a model state that changes its shapes; nothing is computed.

    Raises:
      InputError: telling what it gives.
    """
    batches = stream.batches

    def of_first_worker(data: Any, params: Any, model_state: Any) -> Any:
        own = jax.tree.map(
            lambda own, part: jax.tree.map(lambda x: x[0, 0], part) if own else part, batches.per_worker, data
        )
        planned = jax.tree.map(lambda x: x[0], batches.plan(run_key(0), jax.numpy.int32(0), 1))
        return loss(params, model_state, batches.draw(own, planned, run_key(0)), run_key(0))

    found = jax.eval_shape(of_first_worker, stream.shapes, params, model_state)
    if not isinstance(found, tuple | list) or len(found) != 2:
        given = "one value" if hasattr(found, "shape") else type(found).__name__
        raise InputError(f"{_called(loss)} gives {given}: return (loss, model_state)")
    value, state = found
    if getattr(value, "shape", None) != () or not jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
        given = f"{value.dtype}{list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
        if getattr(state, "shape", None) == ():
            raise InputError(f"{_called(loss)} gives {given} and a scalar: return (loss, model_state), in this order")
        raise InputError(f"{_called(loss)} gives a loss of {given}: a float scalar is needed, such as its mean")
    before, after = (jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in (model_state, state))
    if before != after:
        raise InputError(f"{_called(loss)} makes {after} of a model state of {before}: keep its shapes and dtypes")


def check_metric(name: str, metric: SampleMetric, params: Any, model_state: Any, split: Any) -> None:
    """Refuses a metric that is not a figure of each sample; nothing is computed.

    Raises:
      InputError: telling its shape.
    """
    samples = empty_batch(split, 1) if is_dataset(split) else split
    few = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape[1:]), x.dtype), samples)
    found = jax.eval_shape(metric, params, model_state, few)
    if getattr(found, "shape", None) != (3,):
        given = getattr(found, "shape", type(found).__name__)
        raise InputError(f"the metric {name!r} gives {given} for 3 samples: give a figure of each, float[3]")


def _called(function: Any) -> str:
    """What a user's function is called."""
    return f"{getattr(function, '__qualname__', repr(function))}()"


def metric_of(task: Task) -> Metric:
    """By which its models are chosen and reported: that of the task, or the first of its metrics."""
    return task.metric or plain_metric(next(iter(task.metrics)) if task.metrics else "loss")


def sample_loss(loss: Loss) -> SampleMetric:
    """The loss of each sample on its own, as a metric; what is random in it is fixed."""

    def metric(params: Any, model_state: Any, batch: Any) -> jax.Array:
        def of_sample(sample: Any) -> jax.Array:
            alone = jax.tree.map(lambda x: x[None], sample)
            return loss(params, model_state, alone, run_key(0))[0]

        return jax.vmap(of_sample)(batch)

    return metric
