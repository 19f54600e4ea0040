"""Leaders that are elected on held-out samples, by flags, and the experiment that tells how good leaders are."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import elections
import numpy as np
import pytest

from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source, image_task, text_task
from lsgd_jax.config.train import train
from lsgd_jax.data.datasets import load_dataset
from lsgd_jax.data.images import preprocess
from lsgd_jax.errors import InputError
from lsgd_jax.trainer.records import read_leaders

FLAGS = ["--model=mlp", "--groups=1", "--workers=4", "--steps=32", "--global_period=8", "--batch_size=16"]


def test_a_leaders_place_is_counted_by_validation_losses() -> None:
    best, third = (elections.ballot(1, 8, leader, [0.3, 0.1, 0.2, 0.4]) for leader in (1, 0))
    assert best == elections.Ballot(1, 8, 1, 1, 0.0, pytest.approx(0.3))
    assert third == elections.Ballot(1, 8, 0, 3, pytest.approx(0.2), pytest.approx(0.3))
    assert elections.told([best, third]).startswith(
        "the best worker led in 50% of 2 elections; the leader's mean place 2.0"
    )


@pytest.mark.slow
@pytest.mark.thorough
def test_the_experiment_looks_at_every_election_of_every_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["elections.py", *FLAGS, "--seeds=1,2", f"--workdir={tmp_path / 'out'}"]
    assert elections.main(argv) == 0
    assert "all: the best worker led in" in capsys.readouterr().out
    with (tmp_path / "out" / "elections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["step"]) for row in rows] == [(s, t) for s in "12" for t in ("8", "16", "24", "32")]
    config = Config(
        str(tmp_path / "run"), model="mlp", groups=1, workers=4, steps=32, global_period=8, batch_size=16, seed=2
    )
    train(config, figures=False)
    leaders = [str(row.leader) for row in read_leaders(tmp_path / "run")]
    assert [row["leader"] for row in rows[4:]] == leaders, "a run that is looked at is that of train.py"


def test_flags_set_the_first_validation_samples_apart(tmp_path: Path) -> None:
    config = Config(str(tmp_path / "run"), model="mlp", score_samples=8, seed=3)
    source: Any = find_source(config)
    images, labels = image_task(config, source).score_on
    dataset = load_dataset(source, seed=3)
    np.testing.assert_array_equal(labels, dataset.validation.labels[:8])
    np.testing.assert_allclose(images, preprocess(dataset.validation.images[:8], dataset.preprocessing))
    assert image_task(dataclasses.replace(config, score_samples=0), source).score_on is None


def test_of_a_text_they_are_windows(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log " * 200)
    config = Config(
        str(tmp_path / "run"), text_file=str(tmp_path / "text.txt"), sequence_length=16, batch_size=2, score_samples=4
    )
    source: Any = find_source(config)
    windows = text_task(config, source).score_on.tokens
    assert windows.shape == (4, 17)
    np.testing.assert_array_equal(windows[:, :-1].ravel(), source.read().validation.tokens[: 4 * 16])


def test_a_model_that_carries_a_state_is_not_scored_on_other_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log " * 200)
    config = Config(str(tmp_path / "run"), text_file=str(tmp_path / "text.txt"), model="lstm", score_samples=8)
    with pytest.raises(InputError, match=r"--score_samples=8: what the lstm carries"):
        train(config)
