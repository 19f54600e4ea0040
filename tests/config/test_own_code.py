"""Tasks and methods of one's own from the command line."""

import json
import re
from pathlib import Path
from typing import Any

import grain
import pytest
from absl.testing import flagsaver
from commands import refused, train

from lsgd_jax.compare import command as compare

pytestmark = pytest.mark.usefixtures("fresh_flags")

_ = grain  # it defines flags, once

PAGE = (Path(__file__).parents[2] / "docs/own_method.md").read_text()
TASK = """
import grain, jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from lsgd_jax import Task, from_arrays, from_grain, nnx_task

x = np.random.default_rng(0).normal(size=(160, 6)).astype(np.float32)
y = (x.sum(1) > 0).astype(np.int32)
held_out = {"x": x[:32], "y": y[:32]}

class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))

def loss(net, batch, rngs):
    return optax.softmax_cross_entropy_with_integer_labels(net(batch["x"]), batch["y"]).mean()

def wrong(net, batch):
    return (net(batch["x"]).argmax(-1) != batch["y"]).astype(jnp.float32)

def mine():
    samples = grain.MapDataset.source([{"x": a, "y": b} for a, b in zip(x[32:], y[32:])])
    return nnx_task(Net, loss, train=from_grain(samples, 8), validation=held_out, test=held_out,
                    metrics={"wrong": wrong}, name="mine")

nothing = 3

def no_task():
    return {}

def broken():
    raise ZeroDivisionError("mine")
"""
METHOD = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "def gossip" in block)
CHOOSY = """
def choosy(base, *, pull=1):
    if 1 < pull:
        raise ValueError("pull must be at most 1")
"""
FLAGS = ["--groups=1", "--workers=2", "--steps=8", "--eval_every=4", "--global_period=4", "--learning_rate=0.2"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "gossip.py").write_text(METHOD)
    (tmp_path / "choosy.py").write_text(CHOOSY)
    return tmp_path


@pytest.mark.slow
def test_a_task_and_a_method_of_ones_own_are_trained_by_the_command_line(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--task={files}/task.py:mine", f"--algorithm={files}/gossip.py:gossip", "--method_args=period=2"]
    note = (
        f"note: --global_period is not used by {files}/gossip.py:gossip, whose arguments are given by --method_args\n"
    )
    with flagsaver.flagsaver():
        assert train.main(["train.py", f"--workdir={files}/run", *arguments, *FLAGS, "--nocompilation_cache"]) == 0
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert (summary["metric"], summary["dataset"], summary["batch_size"]) == ("wrong", "task.py:mine", 8)
    assert summary["bytes_communicated"] == 4 * 2 * (6 * 8 + 8 + 8 * 2 + 2 + 1) * 4 * 2 // 2, "and who is finite"
    out = capsys.readouterr().out
    assert "wrong" in out
    assert note in out
    (files / "gossip.py").write_text(METHOD + "# changed\n")
    with flagsaver.flagsaver():
        assert train.main(["train.py", f"--workdir={files}/run", "--resume", "--steps=12"]) == 0
    assert "note: gossip.py has changed since the run in " in capsys.readouterr().out
    with flagsaver.flagsaver():
        assert train.main(["train.py", f"--workdir={files}/run", "--resume", "--method_args=period=4"]) == 2


@pytest.mark.slow
@pytest.mark.thorough
def test_a_comparison_has_tasks_and_methods_of_ones_own_in_its_report_as_long_as_they_do_not_change(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    methods = f"--methods=lsgd,{files}/gossip.py:gossip"
    flags = [f"--task={files}/task.py:mine", methods, f"--workdir={files}/compare", *FLAGS, "--nocompilation_cache"]
    compare.FLAGS.unparse_flags()  # they are its own, and may have been given in this process before
    assert compare.main(["compare.py", *flags]) == 0
    page = files / "compare" / "runs.html"
    assert f"all runs on one page, for a browser: {page.resolve().as_uri()}" in capfd.readouterr().out
    assert "<td>lsgd/as_given/seed=1</td>" in page.read_text()
    report = (files / "compare" / "report.md").read_text()
    assert f"{files}/gossip.py:gossip" in report
    assert (files / "compare" / "curves.png").exists()
    (files / "gossip.py").write_text(METHOD + "# changed\n")
    capfd.readouterr()
    compare.FLAGS.unparse_flags()
    assert compare.main(["compare.py", *flags]) == 2
    assert "compare.py: error: gossip.py has changed since the run in " in capfd.readouterr().err


READ_BY_PROCESSES = """
import grain

class Louder(grain.transforms.RandomMap):
    def random_map(self, element, rng):
        return {"x": element["x"] * np.float32(1 + rng.random()), "y": element["y"]}

def read_by_processes():
    louder = grain.MapDataset.source(EXAMPLES).seed(3).random_map(Louder())
    return dataclasses.replace(mine(), train=from_grain(louder, 8, processes=1))
"""


@pytest.mark.slow
@pytest.mark.processes
def test_a_file_of_ones_own_is_known_to_the_processes_that_read_its_data(files: Path) -> None:
    examples = "\nimport dataclasses\nEXAMPLES = [{'x': a, 'y': b} for a, b in zip(x, y)]\n"
    (files / "task.py").write_text(TASK + examples + READ_BY_PROCESSES)
    with flagsaver.flagsaver():
        arguments = [f"--task={files}/task.py:read_by_processes", f"--workdir={files}/run", *FLAGS]
        assert train.main(["train.py", *arguments, "--nocompilation_cache"]) == 0


BAD: dict[str, tuple[list[str], str]] = {
    "no name": (["--task=task.py"], "must be FILE.py:NAME or package.module:NAME"),
    "a missing file": (["--task=nowhere.py:mine"], "there is no file nowhere.py"),
    "a missing package": (["--task=no.such.package:mine"], "there is no module no.such.package"),
    "a missing name": (["--task={}/task.py:yours"], "task.py has no yours"),
    "what cannot be called": (["--task={}/task.py:nothing"], "nothing is int, and cannot be called"),
    "what makes no task": (["--task={}/task.py:no_task"], "it gives dict: return a lsgd_jax.Task"),
    "a model for a task": (["--task={}/task.py:mine", "--model=mlp"], "--model is for our own models"),
    "a data set for a task": (["--task={}/task.py:mine", "--dataset=cifar10"], "has its own data"),
    "another batch size": (["--task={}/task.py:mine", "--batch_size=4"], "sets it, to 8"),
    "workers that differ in speed on a stream": (
        ["--task={}/task.py:mine", "--groups=1", "--workers=2", "--worker_speeds=1,0.5"],
        "come to all workers step by step",
    ),
    "a task that needs arguments": (["--task={}/task.py:wrong"], "it has to take no argument"),
    "a sampling for a task": (["--task={}/task.py:mine", "--sampling=iid"], "--sampling is for our own tasks"),
    "a method without a period": (
        ["--algorithm={}/gossip.py:gossip", "--method_args=period=0"],
        "a communication's period must be a whole number of at least 1, got 0",
    ),
    "a method with half a period": (
        ["--algorithm={}/gossip.py:gossip", "--method_args=period=8.5"],
        "a communication's period is 8.5: it must be a whole number",
    ),
    "a missing method": (["--algorithm={}/gossip.py:talk"], "gossip.py has no talk"),
    "what makes no method": (["--algorithm={}/task.py:wrong"], "missing a required argument: 'batch'"),
    "an argument that it does not take": (
        ["--algorithm={}/gossip.py:gossip", "--method_args=speed=3"],
        "got an unexpected keyword argument 'speed'",
    ),
    "an argument of another kind": (
        ["--algorithm={}/choosy.py:choosy", "--method_args=pull=x"],
        "choosy.py:choosy: '<' not supported between instances of 'int' and 'str'",
    ),
    "an argument that it refuses": (
        ["--algorithm={}/choosy.py:choosy", "--method_args=pull=2"],
        "choosy.py:choosy: pull must be at most 1",
    ),
    "no arguments": (["--algorithm={}/gossip.py:gossip", "--method_args=4"], "must be name=value, separated by commas"),
    "arguments of ours": (["--method_args=beta=1"], "--method_args is for a method of your own"),
}


def test_a_method_that_ignores_the_learning_rate_is_refused(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (files / "deaf.py").write_text(METHOD.replace("value=value, **extra)", "value=value)"))
    arguments = [f"--task={files}/task.py:mine", f"--algorithm={files}/deaf.py:gossip", f"--workdir={files}/run"]
    with flagsaver.flagsaver():
        assert train.main(["train.py", *arguments, *FLAGS, "--nocompilation_cache"]) == 2
    assert "its update does not follow --learning_rate: pass **extra on" in capfd.readouterr().err


@pytest.mark.parametrize(("flags", "told"), BAD.values(), ids=BAD)
def test_what_is_no_code_of_ones_own_is_told_in_one_line(
    files: Path, capfd: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    message = refused(capfd, f"--workdir={files}/run", *(flag.format(files) for flag in flags))
    assert told in message
    assert not (files / "run").exists()


def test_an_error_inside_ones_own_code_keeps_its_traceback(files: Path) -> None:
    with flagsaver.flagsaver(), pytest.raises(ZeroDivisionError, match="mine"):
        train.main(["train.py", f"--workdir={files}/run", f"--task={files}/task.py:broken"])


def test_own_code_may_be_in_a_package(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "mypackage").mkdir()
    (files / "mypackage" / "tasks.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(files))
    from lsgd_jax.config.own_code import load_task

    task: Any = load_task("mypackage.tasks:mine")
    assert (task.name, task.train.batch_size) == ("mine", 8)
