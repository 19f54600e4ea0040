"""Data sets: handwritten digits, prepared TFDS sets, and what is no data set to train on."""

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared_sets import PIXELS, bytes_of, labelled, png, write_set
from refusals import refusal
from sklearn.datasets import load_digits

from lsgd_jax.data import datasets
from lsgd_jax.data.datasets import Dataset, Source, find_dataset, load_dataset
from lsgd_jax.data.images import Images, preprocess

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "tfds"
needs_cifar = pytest.mark.skipif(not (CIFAR / "cifar10").is_dir(), reason=f"no CIFAR-10 in {CIFAR}")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(find_dataset("digits"), seed=0)


def test_digits_have_the_sizes_of_the_design(digits: Dataset) -> None:
    source = find_dataset("digits")
    assert [len(split.labels) for split in (digits.train, digits.validation, digits.test)] == [1294, 144, 359]
    assert (source.samples, source.train_samples) == (1294 + 144, 1294)
    assert (source.image_shape, source.input_shape, source.classes) == ((8, 8, 1), (8, 8, 1), 10)
    assert (digits.preprocessing.crop, digits.preprocessing.flip) == (None, False)
    for split in (digits.train, digits.validation, digits.test):
        assert split.images.shape == (len(split.labels), 8, 8, 1)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert split.images.max() == 16
        assert set(split.labels.tolist()) == set(range(10))


def test_digits_are_dealt_out_whole_and_with_their_labels(digits: Dataset) -> None:
    bunch = load_digits()
    raw = bunch.images.astype(np.uint8)
    everything = [(image.tobytes(), int(label)) for image, label in zip(raw, bunch.target, strict=True)]
    dealt = [
        (image, int(label))
        for split in (digits.train, digits.validation, digits.test)
        for image, label in zip(bytes_of(split), split.labels, strict=True)
    ]
    assert sorted(dealt) == sorted(everything), "each exactly once, so that no image is in two splits"


def test_only_the_test_split_of_digits_is_the_same_for_every_seed(digits: Dataset) -> None:
    other = load_dataset(find_dataset("digits"), seed=1)
    np.testing.assert_array_equal(other.test.images, digits.test.images)
    np.testing.assert_array_equal(other.test.labels, digits.test.labels)
    assert len(set(bytes_of(other.validation)) & set(bytes_of(digits.validation))) < 50, "about 14 by chance"
    again = load_dataset(find_dataset("digits"), seed=0)
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    np.testing.assert_array_equal(again.validation.labels, digits.validation.labels)


def test_all_but_the_test_images_have_mean_0_and_standard_deviation_1_after_preprocessing(digits: Dataset) -> None:
    raw = np.concatenate([digits.train.images, digits.validation.images])
    images = np.asarray(preprocess(raw, digits.preprocessing), np.float64)
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


def test_moments_are_of_each_channel_of_all_but_the_test_images_for_every_seed(tmp_path: Path) -> None:
    folder = write_set(tmp_path, {"train": labelled(*range(20)), "test": labelled(*range(20, 30))})
    dataset = load_dataset(find_dataset("tiny", data_dir=folder), seed=5)
    other = load_dataset(find_dataset("tiny", data_dir=folder), seed=6)
    assert dataset.preprocessing == other.preprocessing
    raw = np.concatenate([dataset.train.images, dataset.validation.images])
    pixels = raw.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(dataset.preprocessing.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(dataset.preprocessing.std, pixels.std(0), rtol=1e-12)


def test_a_channel_that_is_constant_can_be_normalized() -> None:
    black = Images(np.zeros((30, 2, 2, 1), np.uint8), np.zeros(30, np.int32))
    source = Source("black", (2, 2, 1), 1, 30, None, False, lambda: (black, black))
    dataset = load_dataset(source, seed=0)
    assert np.isfinite(np.asarray(preprocess(dataset.train.images, dataset.preprocessing))).all()


@pytest.mark.parametrize("evaluated", ["test", "validation"])
def test_a_prepared_set_is_read_from_its_folder(tmp_path: Path, evaluated: str) -> None:
    folder = write_set(tmp_path, {"train": labelled(*range(20)), evaluated: labelled(*range(20, 30))})
    source = find_dataset("tiny", data_dir=folder)
    assert (source.image_shape, source.input_shape, source.classes) == ((5, 7, 3), (5, 7, 3), 4)
    assert (source.samples, source.train_samples, source.crop, source.flip) == (20, 18, None, False)
    dataset = load_dataset(source, seed=0)
    seen = []
    for split, count in ((dataset.train, 18), (dataset.validation, 2), (dataset.test, 10)):
        numbers = [int(np.flatnonzero((image == PIXELS).all((1, 2, 3)))[0]) for image in split.images]
        assert [number % 4 for number in numbers] == split.labels.tolist()
        assert (len(numbers), split.images.dtype, split.labels.dtype) == (count, np.uint8, np.int32)
        seen.append(set(numbers))
    assert seen[0] | seen[1] == set(range(20)), "the lossless pixels of every training image"
    assert seen[2] == set(range(20, 30))


def test_of_a_test_and_a_validation_split_the_test_split_is_reported(tmp_path: Path) -> None:
    splits = {"train": labelled(*range(20)), "validation": labelled(20, 21, 22), "test": labelled(25, 26)}
    dataset = load_dataset(find_dataset("tiny", data_dir=write_set(tmp_path, splits)), seed=0)
    assert sorted(bytes_of(dataset.test)) == sorted(image.tobytes() for image in PIXELS[25:27])


UNFIT: dict[str, tuple[dict[str, list[Any]], dict[str, Any], tuple[str, ...]]] = {
    "no labels": (
        {"train": [{"image": png(PIXELS[0])}], "test": [{"image": png(PIXELS[1])}]},
        {"label": None},
        ("'label'",),
    ),
    "labels that are no classes": (
        {"train": labelled(0), "test": labelled(1)},
        {"label": tfds.features.Scalar(dtype=np.int32)},
        ("'label'",),
    ),
    "no images": ({"train": [{"label": 0}], "test": [{"label": 1}]}, {"image": None}, ("'image'",)),
    "no training split": ({"test": labelled(0), "validation": labelled(1)}, {}, ("'train'", "['test', 'validation']")),
    "nothing to evaluate on": ({"train": labelled(0), "extra": labelled(1)}, {}, ("'test'", "['extra', 'train']")),
}


@pytest.mark.parametrize(("splits", "features", "culprits"), UNFIT.values(), ids=UNFIT)
def test_a_set_that_is_no_image_classification_set_is_refused(
    tmp_path: Path, splits: Any, features: Any, culprits: tuple[str, ...]
) -> None:
    folder = write_set(tmp_path, splits, **features)
    with refusal("'tiny'", *culprits):
        find_dataset("tiny", data_dir=folder)


def test_a_set_in_a_format_that_needs_tensorflow_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write_set(tmp_path, {"train": labelled(*range(20)), "test": labelled(20, 21)})
    path = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    source = find_dataset("tiny", data_dir=folder)
    with refusal("'tiny'", folder, "tfrecord", "array_record"):
        load_dataset(source, seed=0)


@pytest.mark.parametrize(
    ("name", "culprits"),
    [
        ("cifra10", ("'cifra10'", "did you mean 'cifar10'?")),
        ("digit", ("'digit'", "did you mean 'digits'?")),
        ("zzzqqqzzz", ("'zzzqqqzzz'", "use 'digits', 'cifar10', or another TFDS set")),
        ("a/b/c", ("cannot open", "'a/b/c'")),
        ("", ("cannot open", "''")),
        ("cifar10:9.9.9", ("cannot open", "'cifar10:9.9.9'")),
        ("cifar10/unknown", ("cannot open", "'cifar10/unknown'")),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(tmp_path: Path, name: str, culprits: tuple[str, ...]) -> None:
    with refusal(*culprits):
        find_dataset(name, data_dir=str(tmp_path))


def test_a_set_that_is_not_prepared_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with refusal("'cifar10'", str(tmp_path), "--data_dir", "--download", "[train,tensorflow]"):
        find_dataset("cifar10", data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "culprits"),
    [
        ("cifar10", ("cifar10/", "is in", "as cifar10:1.0.0:", "--dataset=cifar10:1.0.0")),
        ("cifar10:9.9.9", ("cannot open", "9.9.9", "has cifar10:1.0.0: use that")),
        ("cifra10", ("unknown data set 'cifra10'", "did you mean 'cifar10'?")),
    ],
)
def test_the_versions_that_are_there_are_named(tmp_path: Path, asked: str, culprits: tuple[str, ...]) -> None:
    folder = write_set(tmp_path, {"train": labelled(*range(20)), "test": labelled(20, 21)})
    (tmp_path / "tiny").rename(tmp_path / "cifar10")
    info = tmp_path / "cifar10" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"tiny"', '"cifar10"'))
    for file in info.parent.glob("tiny-*"):
        file.rename(file.with_name(file.name.replace("tiny", "cifar10")))
    with refusal(*culprits):
        find_dataset(asked, data_dir=folder)
    assert find_dataset("cifar10:1.0.0", data_dir=folder).classes == 4


def test_a_download_without_tensorflow_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "tensorflow" else real(name, *args)
    )
    with refusal("--download", "TensorFlow", "pip install 'lsgd_jax[train,tensorflow]'"):
        find_dataset("cifar10", data_dir=str(tmp_path), download=True)
    assert list(tmp_path.iterdir()) == []


def test_a_prepared_set_is_not_downloaded_again(tmp_path: Path) -> None:
    folder = write_set(tmp_path, {"train": labelled(*range(20)), "test": labelled(20, 21)})
    assert find_dataset("tiny", data_dir=folder, download=True).samples == 20


def first_images(source: Source, monkeypatch: pytest.MonkeyPatch, count: int = 40) -> Dataset:
    """The data set of the first images of each split."""
    whole = datasets._read
    monkeypatch.setattr(datasets, "_read", lambda builder, split: whole(builder, f"{split}[:{count}]"))
    return load_dataset(source, seed=0)


@needs_cifar
@pytest.mark.parametrize("name", ["cifar10", "cifar10:3.0.2"])
def test_cifar10_is_cropped_flipped_and_normalized_as_in_the_paper(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_dataset(name, data_dir=str(CIFAR))
    assert (source.image_shape, source.classes, source.samples, source.train_samples) == ((32, 32, 3), 10, 50000, 45000)
    assert (source.crop, source.flip, source.input_shape) == (28, True, (28, 28, 3))
    dataset = first_images(source, monkeypatch)
    assert [len(split.labels) for split in dataset[:3]] == [36, 4, 40]
    assert dataset.train.images.shape == (36, 32, 32, 3)
    how = dataset.preprocessing
    assert (how.crop, how.flip) == (28, True)
    np.testing.assert_allclose(np.array(how.mean) / 255, [0.4914, 0.4822, 0.4465], rtol=1e-6)
    np.testing.assert_allclose(np.array(how.std) / 255, [0.2023, 0.1994, 0.2010], rtol=1e-6)
    pixels = np.asarray(preprocess(dataset.train.images, how))
    assert pixels.shape == (36, 28, 28, 3)
    assert abs(pixels.mean()) < 0.5
    assert 0.7 < pixels.std() < 1.5


@needs_cifar
def test_cifar10_images_come_with_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = first_images(find_dataset("cifar10", data_dir=str(CIFAR)), monkeypatch)
    stored = tfds.data_source("cifar10", split="test[:40]", data_dir=str(CIFAR))
    for image, label, example in zip(dataset.test.images, dataset.test.labels, stored, strict=True):
        np.testing.assert_array_equal(image, example["image"])
        assert label == example["label"]
    assert len(set(dataset.test.labels.tolist())) > 5


def test_a_source_cannot_be_changed_by_accident() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_dataset("digits").crop = 4  # type: ignore[misc]
