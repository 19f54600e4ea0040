"""Labels that are no classes: -1 for an image without one, and those past the last class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prepared_sets import LABEL, bytes_of, examples, labelled, minibatches, write_imagenet, write_set
from refusals import refusal

from lsgd_jax.data.datasets import Source, find_dataset, load_dataset
from lsgd_jax.data.images import Images
from lsgd_jax.data.streamed import StreamedSource, streamed_splits


def unlabelled(*numbers: int) -> list[dict[str, Any]]:
    return [example | {"label": -1} for example in labelled(*numbers)]


def test_of_a_set_in_memory_whose_test_split_has_no_labels_validation_is_reported(tmp_path: Path) -> None:
    splits = {"train": labelled(*range(20)), "validation": labelled(20, 21), "test": unlabelled(25, 26, 27)}
    dataset = load_dataset(find_dataset("tiny", data_dir=write_set(tmp_path / "a", splits)), seed=0)
    of_validation = load_dataset(
        find_dataset("tiny", data_dir=write_set(tmp_path / "b", splits | {"test": labelled(20, 21)})), seed=0
    )
    assert sorted(bytes_of(dataset.test)) == sorted(bytes_of(of_validation.test))
    assert sorted(dataset.test.labels.tolist()) == [0, 1]


@pytest.mark.parametrize("more", [{}, {"validation": unlabelled(25)}])
def test_without_any_labelled_images_to_report_on_a_set_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    folder = write_set(tmp_path, {"train": labelled(*range(20)), "test": unlabelled(20, 21)} | more)
    with refusal("'tiny'", "no labels"):
        load_dataset(find_dataset("tiny", data_dir=folder), seed=0)


def shrink(folder: str, classes: int) -> None:
    """Makes the set say that it has fewer classes than its labels."""
    path = Path(folder) / "tiny" / "1.0.0" / "features.json"
    text = path.read_text()
    assert f'"numClasses": "{LABEL.num_classes}"' in text
    path.write_text(text.replace(f'"numClasses": "{LABEL.num_classes}"', f'"numClasses": "{classes}"'))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused_with_its_image(tmp_path: Path, split: str, label: int) -> None:
    fine = [example for example in labelled(*range(20)) if example["label"] < 3]
    splits = {"train": fine, "test": fine}
    splits[split] = [*fine, labelled(3)[0] | {"label": label}]
    folder = write_set(tmp_path, splits)
    shrink(folder, classes=3)
    source = find_dataset("tiny", data_dir=folder)
    assert source.classes == 3
    with refusal("'tiny'", f"of the {split} split", f"the label {label}", "classes 0 to 2", "image "):
        load_dataset(source, seed=0)


IMAGES = np.zeros((6, 2, 2, 1), np.uint8)
GOOD = Images(IMAGES, np.array([0, 1, 2, 0, 1, 2], np.int32))


@pytest.mark.parametrize(
    ("train", "test", "culprits"),
    [
        (GOOD._replace(labels=np.array([0, 1, -1, 0, 3, 2])), GOOD, ("image 2 of the train split", "label -1")),
        (GOOD, GOOD._replace(labels=np.array([0, 1, 2, 0, 3, 2])), ("image 4 of the test split", "label 3")),
        (GOOD, Images(IMAGES[:0], GOOD.labels[:0]), ("test split", "0 images")),
        (Images(IMAGES[:1], GOOD.labels[:1]), GOOD, ("train split", "1 images")),
    ],
)
def test_data_of_ones_own_are_looked_at_too(train: Images, test: Images, culprits: tuple[str, ...]) -> None:
    source = Source("mine", (2, 2, 1), 3, 6, None, False, lambda: (train, test))
    with refusal("'mine'", *culprits):
        load_dataset(source, seed=0)


def test_a_streamed_image_whose_label_is_no_class_is_named_when_it_is_met(tmp_path: Path) -> None:
    train, test = examples(*range(24)), examples(0, 1, 2)
    folder = write_imagenet(tmp_path, [example | {"label": -1} for example in train], validation=test)
    source = find_dataset("tiny", data_dir=folder)
    assert isinstance(source, StreamedSource)
    _, held_out, test_images = streamed_splits(source, 0)
    with refusal("'tiny'", "image ", " of the train split", "the label -1"):
        minibatches(source)(1, 0)
    with refusal("'tiny'", "of the train split", "the label -1"):
        held_out[0]
    assert sorted(int(image.labels) for image in test_images) == [0, 1, 2]


def test_a_split_without_examples_counts_as_absent(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path, examples(*range(20)), validation=examples(1, 2), test=examples(3))
    path = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    saved = json.loads(path.read_text())
    for split in saved["splits"]:
        if split["name"] == "test":
            split["shardLengths"] = ["0"]
    path.write_text(json.dumps(saved))
    source = find_dataset("tiny", data_dir=folder)
    assert isinstance(source, StreamedSource)
    assert (source.test.split, len(source.test)) == ("validation", 2)
