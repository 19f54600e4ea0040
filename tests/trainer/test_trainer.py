"""The trainer with tasks, data and methods of one's own."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tanh_task import logits, loss, wrong
from thorough import mostly, thorough

from lsgd_jax import Axes, Topology, data_parallel, eamsgd, easgd, lsgd
from lsgd_jax.cluster import processes
from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source, image_task
from lsgd_jax.config.train import train
from lsgd_jax.data.grain_source import from_grain
from lsgd_jax.data.sources import TrainingData, from_arrays, from_function
from lsgd_jax.engine.method_checks import follows_factor
from lsgd_jax.engine.schedules import Schedule, follow_factor
from lsgd_jax.errors import InputError, RunFailedError
from lsgd_jax.tasks import evaluation
from lsgd_jax.tasks.task import Task
from lsgd_jax.trainer import trainer as module
from lsgd_jax.trainer.records import read_leaders
from lsgd_jax.trainer.saved_models import load_model
from lsgd_jax.trainer.trainer import Result, Trainer

RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(203, 7)).astype(np.float32)}
DATA["y"] = (DATA["x"].sum(1) > 0).astype(np.int32)
HELD_OUT = jax.tree.map(lambda x: x[:37], DATA)
METHOD = lsgd(optax.sgd(0.1), local_period=2, global_period=4, global_pull=0.5)


def init(key: jax.Array) -> tuple[Any, Any]:
    first, second = jax.random.split(key)
    return {"a": 0.5 * jax.random.normal(first, (7, 16)), "b": 0.5 * jax.random.normal(second, (16, 2))}, {}


def task(train: TrainingData | None = None, **more: Any) -> Task:
    given: dict[str, Any] = {"validation": HELD_OUT, "test": HELD_OUT, "metrics": {"error": wrong}} | more
    return Task(init, loss, train=train or from_arrays(DATA, 8), **given)


def trainer(workdir: Path | None = None, *, devices: int = 1, **more: Any) -> Trainer:
    given: dict[str, Any] = {"task": task(), "method": METHOD, "eval_every": 8, "checkpoint_every": 8} | more
    given.setdefault("topology", Topology(2, 4, jax.devices()[:devices]))
    return Trainer(**given, workdir=workdir)


GLOO = "UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:24496: Connection reset by peer"


@pytest.mark.parametrize(
    ("alone", "told", "error"),
    [
        (False, GLOO, RunFailedError),
        (True, GLOO, jax.errors.JaxRuntimeError),
        (False, "INTERNAL: an assertion of XLA", jax.errors.JaxRuntimeError),
    ],
)
def test_a_script_whose_other_process_has_ended_is_told_so_in_one_line(
    alone: bool, told: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(processes, "alone", lambda: alone)
        raise jax.errors.JaxRuntimeError(told)

    monkeypatch.setattr(module, "run_trainer", failing)
    with pytest.raises(error, match=re.escape(told)) as raised:
        trainer().fit(steps=8)
    if error is RunFailedError:
        assert str(raised.value).endswith("start all again, with resume=True to go on from the last checkpoint")
        assert raised.value.__suppress_context__, "no second traceback"


def test_a_process_that_has_not_joined_the_others_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSGD_JAX_ONE_OF", "2")
    with pytest.raises(InputError, match=r"started as one of 2, and has not joined the others: call jax\.distributed"):
        trainer().fit(8)
    monkeypatch.setenv("LSGD_JAX_ONE_OF", "1")
    assert trainer(eval_every=2).fit(2).summary


@pytest.fixture(scope="module")
def plain() -> Result:
    """What the usual trainer comes to in 8 steps."""
    return trainer().fit(8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run; who changes it takes a copy."""
    workdir = tmp_path_factory.mktemp("written") / "run"
    trainer(workdir).fit(8, figures=False)
    return workdir


def assert_same(one: Result, other: Result) -> None:
    jax.tree.map(np.testing.assert_array_equal, one[:3], other[:3])
    strip = [[{**row, "seconds": 0} for row in result.metrics] for result in (one, other)]
    assert json.dumps(strip[0]) == json.dumps(strip[1])


@pytest.mark.slow
def test_a_task_of_ones_own_is_learned_and_nothing_is_written_without_a_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = trainer().fit(96)
    assert [row["step"] for row in result.metrics] == list(range(8, 97, 8))
    assert result.metrics[-1]["validation_error"] < 0.3 < result.metrics[0]["validation_error"]
    assert result.summary is not None
    assert (result.summary["dataset"], result.summary["groups"], result.summary["metric"]) == ("task", 2, "error")
    assert result.metrics[-1]["bytes_communicated"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_metric_counts_each_sample_once(plain: Result) -> None:
    params, model_state = plain.center
    last = plain.metrics[-1]
    assert last["test_error"] == pytest.approx(float(wrong(params, model_state, HELD_OUT).mean()))
    better = "leader" if last["leader_validation_error"] < last["validation_error"] else "center"
    jax.tree.map(np.testing.assert_array_equal, plain.best, getattr(plain, better))


@pytest.mark.slow
def test_without_metrics_models_are_judged_by_their_loss() -> None:
    result = trainer(task=task(metrics=None, test=None)).fit(8)
    expected, _ = loss(*result.center, HELD_OUT, jax.random.key(0))
    assert result.metrics[-1]["validation_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert "test_loss" not in result.metrics[-1]


def test_without_validation_data_there_is_the_training_loss() -> None:
    result = trainer(task=task(validation=None, test=None)).fit(8)
    assert math.isfinite(result.metrics[-1]["train_loss"])
    jax.tree.map(np.testing.assert_array_equal, result.best, result.center)


@pytest.mark.parametrize("speeds", [None, [1, 1, 0.5, 0.25]])
def test_leaders_are_elected_on_samples_that_a_task_sets_apart(speeds: Any, tmp_path: Path) -> None:
    apart = jax.tree.map(lambda x: x[:16], HELD_OUT)
    method, topology = lsgd(optax.sgd(0.1), global_period=4), Topology(1, 4, jax.devices()[:1])
    of = task(score_on=apart)
    result = trainer(tmp_path / "run", task=of, topology=topology, method=method, worker_speeds=speeds).fit(16)
    scores = {row.step: row.score for row in read_leaders(tmp_path / "run")}
    assert list(scores) == [4, 8, 12, 16]
    of_leader, _ = loss(*result.leader, apart, jax.random.key(0))
    assert scores[16] == pytest.approx(float(of_leader), rel=1e-5), "who leads is not pulled"
    assert result.metrics[-1]["train_loss"] != pytest.approx(scores[16]), "that of minibatches, as ever"
    assert of.digest != task().digest


SAMPLES = grain.MapDataset.source([{"x": x, "y": y} for x, y in zip(DATA["x"], DATA["y"], strict=True)])


def batch_of(worker: int, step: int) -> Any:
    chosen = np.random.default_rng((worker, step)).integers(len(DATA["y"]), size=8)
    return jax.tree.map(lambda x: x[chosen], DATA)


def test_a_validation_set_of_grains_is_judged_as_arrays_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)  # 10 batches, the last of a single sample

    def judged(validation: Any) -> list[dict[str, Any]]:
        of = task(from_grain(SAMPLES, 8), validation=validation, test=None)
        return trainer(task=of, topology=Topology(1, 2), method=lsgd(optax.sgd(0.1), global_period=4)).fit(8).metrics

    arrays, streamed = judged(HELD_OUT), judged(SAMPLES[:37])
    for of_arrays, of_stream in zip(arrays, streamed, strict=True):
        names = [name for name in of_arrays if "validation" in name]
        assert len(names) == 2
        np.testing.assert_allclose([of_stream[n] for n in names], [of_arrays[n] for n in names], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.processes
def test_processes_that_read_a_validation_set_give_what_a_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)
    model = init(jax.random.key(0))
    errors = lambda params, state, batch: {"error": wrong(params, state, batch)}  # noqa: E731
    judged = [
        evaluation.evaluate_splits(errors, {"test": SAMPLES[:37]}, Topology(1, 2), processes)(model, "")
        for processes in (0, 1)
    ]
    assert judged[0] == judged[1]


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.int8])
def test_integers_of_32_bits_are_data(dtype: Any) -> None:
    bits = np.iinfo(np.int32 if dtype is np.int64 else dtype)
    assert from_arrays({"x": np.array([bits.min, bits.max], dtype)}, 1).batch_size == 1


SOURCES: dict[str, Callable[[], TrainingData]] = {
    "arrays": lambda: from_arrays(DATA, 8),
    "arrays, dealt anew and augmented": lambda: from_arrays(
        DATA,
        8,
        sampling="reshuffle",
        augment=lambda batch, key: batch | {"x": batch["x"] + 0.1 * jax.random.normal(key, (8, 7))},
    ),
    "a function": lambda: from_function(batch_of),
    "Grain": lambda: from_grain(SAMPLES, 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", mostly(SOURCES, "arrays, dealt anew and augmented", "Grain"))
def test_a_run_that_was_stopped_goes_on_bit_for_bit_from_whatever_source(tmp_path: Path, source: str) -> None:
    whole = trainer(tmp_path / "whole", task=task(SOURCES[source]())).fit(24, figures=False)
    parts = trainer(tmp_path / "parts", task=task(SOURCES[source]()))
    stop = StopRequest()
    stop.ask()
    assert parts.fit(24, stop=stop).summary is None  # before its first round
    parts.fit(16, resume=True, figures=False)
    assert_same(parts.fit(24, resume=True, figures=False), whole)
    assert whole.summary is not None
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["test_error"] == whole.summary["test_error"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [thorough(data_parallel(optax.sgd(0.1))), easgd(optax.adam(0.01), period=4)])
def test_a_run_does_not_depend_on_the_devices(method: Any) -> None:
    one, eight = (trainer(method=method, task=task(test=None), devices=devices).fit(16) for devices in (1, 8))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.center, eight.center)


@pytest.mark.slow
def test_another_number_of_workers_goes_on(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    smaller = trainer(tmp_path, topology=Topology(1, 3), method=lambda topology: METHOD)
    with pytest.raises(InputError, match=r"groups was 2, is 1, workers was 4, is 3.*elastic=True"):
        smaller.fit(16, resume=True)
    result = smaller.fit(16, resume=True, elastic=True, figures=False)
    assert [row["groups"] * row["workers"] for row in result.metrics] == [8, 3]


@pytest.mark.slow
def test_workers_may_differ_in_speed() -> None:
    result = trainer(worker_speeds=[1.0] * 7 + [0.5]).fit(16)
    assert result.metrics[-1]["simulated_seconds"] > 16


@pytest.mark.slow
def test_the_trainer_of_flags_is_the_same(tmp_path: Path) -> None:
    """Digits by the command line's settings, and by the objects that these stand for."""
    config = Config(str(tmp_path), model="mlp", steps=16, groups=1, workers=2, global_period=4, eval_every=8)
    summary = train(config, figures=False)
    assert summary is not None
    objects = Trainer(
        image_task(config, find_source(config)),
        lsgd(optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.05, 0.9, nesterov=True)), global_period=4),
        Topology(1, 2),
        eval_every=8,
    )
    result = objects.fit(16)
    for figure in ("validation_loss", "test_error", "leader_test_loss", "train_loss", "bytes_communicated"):
        assert result.metrics[-1][figure] == pytest.approx(summary[figure], rel=1e-6)


@pytest.mark.slow
@pytest.mark.thorough
def test_another_number_of_steps_under_a_cosine_is_told_when_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    follows = lsgd(optax.chain(optax.sgd(1.0), follow_factor()), local_period=2, global_period=4, global_pull=0.5)
    cosine = Schedule("cosine", learning_rate=0.1)
    for steps in (8, 16):
        trainer(tmp_path, method=follows, schedule=cosine).fit(steps, resume=steps > 8, figures=False)
    assert "steps was 8, is 16: the cosine ends there" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"learning_rate was 0\.1, is 0\.2"):
        trainer(tmp_path, method=follows, schedule=Schedule("cosine", learning_rate=0.2)).fit(24, resume=True)


@pytest.mark.slow
def test_the_learning_rate_may_be_that_of_the_schedule(plain: Result) -> None:
    follows = lsgd(optax.chain(optax.sgd(1.0), follow_factor()), local_period=2, global_period=4, global_pull=0.5)
    of_schedule = trainer(method=follows, schedule=Schedule(learning_rate=0.1)).fit(8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of_schedule.center, plain.center)


@pytest.mark.slow
def test_the_trainers_schedule_acts_or_is_refused(plain: Result) -> None:
    follows = lsgd(optax.chain(optax.sgd(0.1), follow_factor()), local_period=2, global_period=4, global_pull=0.5)
    dropped = trainer(method=follows, schedule=Schedule("drop", (4,))).fit(8)
    assert_same(trainer(method=follows).fit(8), plain)
    assert dropped.metrics[-1]["train_loss"] != plain.metrics[-1]["train_loss"]
    with pytest.raises(InputError, match="schedule is 'drop', but the base optimizer does not follow it"):
        trainer(schedule=Schedule("drop", (4,))).fit(8)
    params, _ = jax.eval_shape(init, jax.random.key(0))
    assert [follows_factor(method, params) for method in (follows, METHOD, easgd(optax.adam(0.1)))] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("base", "follows"),
    [
        (optax.chain(optax.sgd(0.1, momentum=0.9), follow_factor()), True),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1), follow_factor()), True),
        (optax.chain(follow_factor(), optax.adam(0.1)), False),
        (optax.adam(0.1), False),
    ],
)
def test_updates_follow_a_factor_that_nothing_undoes(base: Any, follows: bool) -> None:
    params, _ = jax.eval_shape(init, jax.random.key(0))
    for make in (lsgd, easgd, data_parallel):
        assert follows_factor(make(base), params) is follows
    assert follows_factor(eamsgd(base), params) is follows


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_method(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    pull = {"local_period": 2, "global_period": 4, "global_pull": 0.5}
    for other, told in (
        (lsgd(optax.sgd(0.2), **pull), "its base optimizer or itself"),
        (lsgd(optax.sgd(0.1), **pull | {"global_pull": 0.4}), "global_pull was 0.5, is 0.4"),
        (lsgd(optax.sgd(0.1), **pull | {"global_period": 8}), "global_period was 4, is 8"),
        (easgd(optax.sgd(0.1)), "it was lsgd, is easgd"),
    ):
        with pytest.raises(InputError, match=rf"another run \(the method computes something else: {told}\)"):
            trainer(tmp_path, method=other).fit(16, resume=True)
    same = lsgd(optax.sgd(0.1), **pull)
    settings = json.loads((tmp_path / "config.json").read_text())
    for kept in (settings["method"], "jax 0.1, optax 0.1, 12", None):  # as other versions trace it, and before
        (tmp_path / "config.json").write_text(json.dumps(settings | {"method": kept}))
        result = trainer(tmp_path, method=same).fit(16, resume=True, figures=False)
    assert result.summary is not None
    assert result.summary["algorithm"] == "lsgd"


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_data_or_another_model(tmp_path: Path) -> None:
    def changed(sample: Any) -> Any:
        return sample | {"x": sample["x"] * np.float32(1.01)}

    def other_init(key: jax.Array) -> tuple[Any, Any]:
        params, state = init(key)
        return {**params, "b": params["b"][:, :1]}, state

    trainer(tmp_path, task=task(from_grain(SAMPLES, 8))).fit(8, figures=False)
    for other in (
        task(from_grain(SAMPLES.map(changed), 8)),
        task(from_grain(SAMPLES[:200], 8)),
        task(from_grain(SAMPLES, 8), validation=jax.tree.map(lambda x: x[:36], DATA)),
        task(from_grain(SAMPLES, 8), test=SAMPLES[:37].map(changed)),
    ):
        with pytest.raises(InputError, match=r"is not the data set that .*: give it the data that it had"):
            trainer(tmp_path, task=other).fit(16, resume=True)
    another = dataclasses.replace(task(from_grain(SAMPLES, 8)), init=other_init)
    with pytest.raises(InputError, match=r"\(the model has other parameters\)"):
        trainer(tmp_path, task=another).fit(16, resume=True)


def test_a_folder_without_a_run_is_told_from_one_whose_run_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run in "):
        load_model(tmp_path / "nowhere", task=task())


def test_a_result_is_shown_in_a_line(plain: Result) -> None:
    shown = repr(plain)
    assert re.fullmatch(r"Result\(1 evaluations, validation_error=0\.\d+, .*leader_test_error=0\.\d+\)", shown), shown


def test_messages_name_arguments_where_python_has_no_flags(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match=r"^workdir=.* is already used: name a new or empty folder$"):
        trainer(tmp_path).fit(8)
    with pytest.raises(InputError, match=r"^resume: there is no run in .*: leave resume out, or name"):
        trainer(tmp_path / "new").fit(8, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["center", "leader", "best"])
def test_models_of_a_run_of_ones_own_are_loaded_with_its_task(plain: Result, written: Path, which: str) -> None:
    jax.tree.map(np.testing.assert_array_equal, load_model(written, which, task()), getattr(plain, which))
    with pytest.raises(InputError, match=r"of a task of your own, 'task': pass it, as task="):
        load_model(written, which)
    with pytest.raises(InputError, match=r"cannot load .* or of another version or task"):
        load_model(written, which, Task(lambda key: ({"c": jnp.zeros(3)}, {}), loss, train=from_arrays(DATA, 8)))


@pytest.mark.slow
def test_a_plateau_looks_at_the_metric() -> None:
    follows = lsgd(optax.chain(optax.sgd(0.0), follow_factor()), local_period=2, global_period=4)
    assert trainer(method=follows, schedule=Schedule("plateau", patience=1)).fit(32).metrics


@pytest.mark.slow
def test_another_task_or_other_data_are_refused(written: Path) -> None:
    others = {
        "task was task, is renamed": trainer(written, task=task(name="renamed")),
        "seed was 0, is 1": trainer(written, seed=1),
        "batch_size was 8, is 4": trainer(written, task=task(from_arrays(DATA, 4))),
        "is not the data set": trainer(written, task=task(from_arrays(DATA | {"x": -DATA["x"]}, 8))),
        "loss was loss, is ": trainer(written, task=Task(init, lambda *of: loss(*of), train=from_arrays(DATA, 8))),
    }
    for told, other in others.items():
        with pytest.raises(InputError, match=told):
            other.fit(16, resume=True)
    with pytest.raises(InputError, match="already used: add"):
        trainer(written).fit(8)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a loss that is no scalar": (
        lambda: trainer(task=Task(init, lambda p, s, b, k: (logits(p, b), s), train=from_arrays(DATA, 8))).fit(8),
        r"<lambda>\(\) gives a loss of float32\[8, 2\]: a float scalar is needed",
    ),
    "a loss without the model state": (
        lambda: trainer(task=Task(init, lambda p, s, b, k: logits(p, b).sum(), train=from_arrays(DATA, 8))).fit(8),
        r"gives one value: return \(loss, model_state\)",
    ),
    "an init that gives no pair": (
        lambda: trainer(task=Task(lambda key: init(key)[0], loss, train=from_arrays(DATA, 8))).fit(8),
        r"gives dict: return \(params, model_state\)",
    ),
    "a metric of a wrong shape": (
        lambda: trainer(task=task(metrics={"error": lambda *of: wrong(*of).mean()})).fit(8),
        r"the metric 'error' gives \(\) for 3 samples",
    ),
    "leading axes that differ": (
        lambda: from_arrays(DATA | {"y": DATA["y"][1:]}, 8),
        r"tree\['x'\] 203, tree\['y'\] 202",
    ),
    "an empty split": (lambda: task(test={"x": np.zeros((0, 7))}), r"test\['x'\] has the shape \(0, 7\): there is no"),
    "objects": (lambda: from_arrays({"x": np.array(["a", "b"])}, 1), r"tree\['x'\] is an array of <U1: use numbers"),
    "no arrays": (lambda: from_arrays({}, 1), "tree holds no arrays"),
    "a batch larger than a shard": (
        lambda: trainer(task=task(from_arrays(DATA, 64))).fit(8),
        "batch_size=64 does not fit into a worker's shard of 25 samples",
    ),
    "an unknown sampling": (lambda: from_arrays(DATA, 8, sampling="random"), "unknown sampling 'random'"),
    "data that are no source": (lambda: Task(init, loss, train=DATA), "train is dict: use from_arrays"),  # type: ignore[arg-type]
    "a stream of Grain's": (lambda: from_grain(SAMPLES.to_iter_dataset(), 8), "use a grain.MapDataset"),
    "an optimizer for a method": (lambda: trainer(method=3).fit(8), "method is int: use lsgd"),
    "a function that makes no method": (
        lambda: trainer(method=lambda topology: optax.sgd(0.1)).fit(8),
        "method makes GradientTransformationExtraArgs of a topology",
    ),
    "a factory for a method": (lambda: trainer(method=lsgd), r"call it with a base optimizer, as lsgd\(optax.sgd"),
    "a pair for a topology": (lambda: trainer(topology=(2, 4)), "topology is tuple: use Topology"),
    "a name for a schedule": (lambda: trainer(schedule="cosine"), "schedule is str: use Schedule"),
    "a plateau without validation data": (
        lambda: trainer(schedule=Schedule("plateau"), task=task(validation=None)).fit(8),
        "which looks at validation data: give the task some",
    ),
    "a function for metrics": (lambda: task(metrics=wrong), "metrics has to name functions"),
    "a source for validation data": (
        lambda: task(validation=from_arrays(DATA, 8)),
        "validation is a source of minibatches: give arrays",
    ),
    "a number for an optimizer": (lambda: lsgd(0.1), "base is float: use an optax optimizer"),  # type: ignore[arg-type]
    "an optimizer that is not called": (
        lambda: easgd(base=optax.sgd),  # type: ignore[arg-type]
        "base is the function sgd, not called: use an optax optimizer, such as",
    ),
    "a batch of a half": (lambda: from_arrays(DATA, 8.5), "batch_size must be an integer of at least 1, got 8.5"),  # type: ignore[arg-type]
    "half a group": (lambda: Topology(1.5, 2), "groups must be a whole number"),  # type: ignore[arg-type]
    "a number for drops": (lambda: Schedule("drop", 16), "drop_at is 16: give the steps as a tuple"),  # type: ignore[arg-type]
    "several paces in one process": (
        lambda: trainer(asynchronous=True).fit(8),
        "asynchronous: this is the only process",
    ),
    "a method without a period": (
        lambda: trainer(
            method=METHOD._replace(communications=tuple(c._replace(period=0) for c in METHOD.communications))
        ).fit(8),
        "a communication's period must be a whole number of at least 1, got 0",
    ),
    "a dataset that draws anew": (
        lambda: from_grain(SAMPLES.map(lambda sample: sample | {"x": np.random.default_rng().normal(size=7)}), 8),
        "dataset gives other samples the second time",
    ),
    "a function for a task": (lambda: load_model(".", task=task), "task is function: pass the lsgd_jax.Task"),  # type: ignore[arg-type]
    "a path for a metric": (lambda: task(metrics={"my/error": wrong}), "the metric 'my/error' names columns and files"),
    "parameters that are integers": (
        lambda: trainer(task=Task(lambda key: ({"a": jnp.ones(3, int)}, {}), loss, train=from_arrays(DATA, 8))).fit(8),
        "makes no parameter of a floating dtype",
    ),
    "numbers just beyond 32 bits": (
        lambda: from_arrays({"x": np.array([-(2**31) - 1])}, 1),
        "integers beyond 32 bits",
    ),
    "integers beyond 32 bits": (lambda: from_arrays({"x": np.array([2**40])}, 1), "integers beyond 32 bits"),
    "lists for arrays": (lambda: from_arrays({"x": [1, 2]}, 1), r"tree\['x'\]\[0\] is a single number"),
    "a dataset without an end": (lambda: from_grain(SAMPLES.repeat(), 8), "dataset has no end"),
    "a dataset with gaps": (lambda: from_grain(SAMPLES.filter(lambda sample: sample["y"]), 8), "dataset has gaps"),
    "a dataset without samples": (lambda: from_grain(SAMPLES[:0], 8), "dataset has no sample"),
    "a dataset of text": (
        lambda: trainer(task=task(from_grain(SAMPLES.map(lambda sample: {"x": "a"}), 8))).fit(8),
        r"the first sample of the Grain dataset, .*\['x'\] is an array of <U1: use numbers",
    ),
    "a validation stream of Grain's": (
        lambda: task(validation=SAMPLES.to_iter_dataset()),
        "validation is .*, which has no random access: use a grain.MapDataset",
    ),
    "samples of different shapes": (
        lambda: trainer(
            task=task(
                from_grain(SAMPLES.map_with_index(lambda i, sample: sample | {"x": sample["x"][: 7 - i % 3 % 2]}), 8)
            )
        ).fit(8),
        "samples of a Grain dataset differ in their structure or shapes",
    ),
    "a function that draws anew": (
        lambda: from_function(lambda worker, step: {"x": np.random.default_rng().normal(size=8)}),
        "gives other values the second time",
    ),
    "a method that names axes": (
        lambda: trainer(
            method=METHOD._replace(center=lambda params, state, axes: jax.lax.pmean(params, ("group", "worker")))
        ).fit(8),
        "the method names an axis itself .*: use the names that it is given",
    ),
    "a communication that changes shapes": (
        lambda: trainer(
            method=METHOD._replace(
                communications=tuple(
                    c._replace(
                        finish=lambda params, *of, c=c: c.finish(params, *of)._replace(params={"a": params["a"]})
                    )
                    for c in METHOD.communications
                )
            )
        ).fit(8),
        "the method's a communication changes the parameters: keep shapes and dtypes",
    ),
    "a batch to score on that the loss does not take": (
        lambda: trainer(task=task(score_on={"x": DATA["x"]})).fit(8),
        "score_on is no minibatch that the loss takes: 'y'",
    ),
    "no steps": (lambda: trainer().fit(0), "steps must be an integer of at least 1"),
    "resuming nothing": (lambda: trainer().fit(8, resume=True), "give the Trainer its workdir"),
    "speeds of too few": (lambda: trainer(worker_speeds=[1.0]).fit(8), "must be a positive number for each worker"),
    "speeds with a stream": (
        lambda: trainer(worker_speeds=[1.0] * 8, task=task(from_function(batch_of))).fit(8),
        "data that come to all workers step by step: use from_arrays",
    ),
    "speeds without rounds": (
        lambda: trainer(worker_speeds=[1.0] * 8, method=data_parallel(optax.sgd(0.1))).fit(8),
        "do not go with this method",
    ),
}


@pytest.mark.parametrize(("make", "told"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_told_in_one_line_that_names_it(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_minibatch_of_another_shape_is_told_with_its_worker_and_step() -> None:
    source = from_function(lambda worker, step: batch_of(worker, step) if step < 3 else DATA)
    with pytest.raises(InputError, match=r"the minibatch of worker 0 at step 3 is .*float32\[203, 7\]"):
        trainer(task=task(source)).fit(8)


def test_an_error_in_ones_own_code_keeps_its_traceback() -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trainer(task=Task(init, broken, train=from_arrays(DATA, 8))).fit(8)


@pytest.mark.slow
def test_a_method_of_ones_own_goes_where_ours_do() -> None:
    method = METHOD._replace(center=lambda params, state, axes: jax.tree.map(jnp.zeros_like, params))
    assert isinstance(Axes(), tuple)
    result = trainer(method=method).fit(8)
    assert not any(leaf.any() for leaf in jax.tree.leaves(result.center[0]))
