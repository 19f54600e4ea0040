"""Settings that suit the data, where none are given."""

from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from prepared_sets import labelled, write_set

from lsgd_jax.commands.settings import usual_help
from lsgd_jax.config.checks import load_config
from lsgd_jax.config.config import Config
from lsgd_jax.config.usual import USUAL


def loaded(**given: Any) -> Config:
    return load_config("unused", {"workdir": "unused"} | given, resume=False)


def test_digits_and_tasks_of_ones_own_have_the_defaults_of_the_settings() -> None:
    assert loaded() == Config("unused")
    assert loaded(task="mine.py:task") == Config("unused", task="mine.py:task")


def test_other_images_and_text_have_theirs(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "images", {"train": labelled(*range(8)), "test": labelled(8)})
    images = {"dataset": "tiny", "data_dir": folder}
    assert loaded(**images) == Config("unused", **images, **USUAL["other images"])
    text = {"text_file": "words.txt"}
    assert loaded(**text) == Config("unused", **text, **USUAL["text"])
    texts = {"train": [{"text": "a"}], "test": [{"text": "b"}]}
    folder = write_set(tmp_path / "texts", texts, image=None, label=None, text=tfds.features.Text())
    text_set = {"dataset": "tiny", "data_dir": folder}
    assert loaded(**text_set) == Config("unused", **text_set, **USUAL["text"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"learning_rate": 0.5}, {"optimizer": "adamw", "learning_rate": 0.5, "global_period": 16}),
        ({"optimizer": "sgd"}, {"optimizer": "sgd", "learning_rate": 0.05, "global_period": 16}),
        ({"global_period": 64}, {"local_period": 16, "global_period": 64, "learning_rate": 1e-3}),
        ({"local_period": 32}, {"local_period": 32, "global_period": 64, "optimizer": "adamw"}),
    ],
)
def test_what_is_given_is_kept_with_what_follows_from_it(given: dict[str, Any], expected: dict[str, Any]) -> None:
    config = loaded(text_file="words.txt", **given)
    assert {name: getattr(config, name) for name in expected} == expected


def test_help_tells_them() -> None:
    assert usual_help()[1].split()[2:] == ["--learning_rate=0.02", "--local_period=4", "--global_period=16"]
    assert usual_help()[2].split()[:3] == ["text", "--optimizer=adamw", "--learning_rate=0.001"]
