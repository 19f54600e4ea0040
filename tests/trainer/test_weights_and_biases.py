"""The metrics of a run in Weights & Biases, offline: what it would send is what the run has written down."""

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tanh_task import loss, wrong

from lsgd_jax import Topology, Trainer, from_arrays, local_sgd
from lsgd_jax.errors import InputError
from lsgd_jax.tasks.task import Task
from lsgd_jax.trainer.events import finite_numbers
from lsgd_jax.trainer.weights_and_biases import check_wandb

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")

BLOCK, FULL, LAST = 2**15, 1, 4


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "some project")


def records(path: Path) -> Iterator[Any]:
    """The records in a file of Weights & Biases: a log in LevelDB's format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK  # what is left of a block is empty
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (FULL, LAST):
            yield Record.FromString(whole)
            whole = b""


def kept(folder: Path) -> tuple[Any, dict[int, dict[str, float]], dict[str, Any]]:
    """What Weights & Biases keeps in a folder to be sent: the run, its rows by step, and its settings."""
    (path,) = folder.glob("*.wandb")
    found = list(records(path))
    run = next(record.run for record in found if record.HasField("run"))
    settings = {item.key: json.loads(item.value_json) for item in run.config.update}
    rows = {}
    for history in (record.history for record in found if record.HasField("history")):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        rows[history.step.num] = {name: x for name, x in items.items() if not name.startswith("_")}
    return run, rows, settings


@pytest.mark.usefixtures("offline")
def test_it_is_given_the_rows_of_metrics_and_goes_on_with_the_run(tmp_path: Path) -> None:
    workdir = tmp_path / "one"
    data = {"x": np.ones((8, 3), np.float32), "y": np.arange(8) % 2}
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    task = Task(lambda key: (params, {}), loss, train=from_arrays(data, 2), validation=data, metrics={"error": wrong})
    trainer = Trainer(task, local_sgd(optax.sgd(0.1), global_period=2), Topology(1, 2), workdir=workdir, eval_every=2)
    trainer.fit(4, figures=False, wandb=True)
    trainer.fit(6, figures=False, wandb=True, resume=True)
    folders = sorted((workdir / "wandb").glob("offline-run-*"))
    written = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [2, 4, 6]
    runs, rows = [], {}
    for folder in folders:
        run, of_session, settings = kept(folder)
        runs.append((run.project, run.display_name, run.run_id))
        rows |= of_session
        assert settings["batch_size"] == 2
    assert len(folders) == 2
    assert set(runs) == {("some project", "one", json.loads((workdir / "wandb.json").read_text())["id"])}
    assert rows == {row["step"]: dict(finite_numbers(row)) for row in written}


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lsgd_jax\[wandb\]'"):
        check_wandb()


def test_without_a_key_it_says_how_to_do_without(tmp_path: Path) -> None:
    environment = {name: x for name, x in os.environ.items() if not name.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    call = [sys.executable, "-c", "from lsgd_jax.trainer.weights_and_biases import check_wandb; check_wandb()"]
    done = subprocess.run(call, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert re.search(r"InputError: --wandb: .*[^.]: set WANDB_MODE=offline", done.stderr), done.stderr


def test_a_run_without_files_cannot_be_sent() -> None:
    data = {"x": np.ones((8, 3), np.float32), "y": np.arange(8) % 2}
    task = Task(lambda key: ({"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}, {}), loss, train=from_arrays(data, 2))
    with pytest.raises(InputError, match="give the Trainer a workdir"):
        Trainer(task, local_sgd(optax.sgd(0.1), global_period=2)).fit(2, wandb=True)
