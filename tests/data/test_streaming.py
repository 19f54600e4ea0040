"""Sets that do not fit in memory: crops, which images are drawn when, real loader processes, and whole runs."""

import io
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prepared_sets import HELD_OUT, TEST, TRAIN, decoded, examples, jpeg, minibatches, write_imagenet, write_set
from refusals import refusal

from lsgd_jax.cluster.stopping import SIGNALS
from lsgd_jax.config.config import Config, check_config
from lsgd_jax.config.from_config import trainer_of
from lsgd_jax.config.train import train
from lsgd_jax.data import datasets, sources, streamed
from lsgd_jax.data.crops import centre_crop, random_box, random_crop
from lsgd_jax.data.datasets import find_dataset
from lsgd_jax.data.grain_source import OfWorkers, of_worker, stacked
from lsgd_jax.data.loader import stream
from lsgd_jax.data.prefetch import OfRanks, Prefetcher, local_ranks
from lsgd_jax.data.sources import block_length
from lsgd_jax.data.streamed import EncodedRecords, StreamedSource, streamed_splits
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError
from lsgd_jax.models import make_model
from lsgd_jax.tasks import evaluation

SIDE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_imagenet(tmp_path_factory.mktemp("imagenet"), examples(*range(TRAIN)))


@pytest.fixture(autouse=True)
def small_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "LARGEST_SIDE", SIDE)


@pytest.fixture
def source(folder: str) -> StreamedSource:
    found = find_dataset("tiny", data_dir=folder)
    assert isinstance(found, StreamedSource)
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No process outlives the test."""
    yield
    assert multiprocessing.active_children() == []


# Crops


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**32 - 1))
def test_a_random_box_lies_in_the_image_and_has_the_area_and_ratio_it_should(
    width: int, height: int, seed: int
) -> None:
    left, top, w, h = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert min(w, h) >= 1
    # Sides are rounded to pixels.
    assert (w - 0.5) / (h + 0.5) <= 4 / 3
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    if 3 / 4 <= width / height <= 4 / 3:
        assert (w + 0.5) * (h + 0.5) >= 0.08 * width * height


def test_areas_of_random_boxes_are_uniform_and_ratios_uniform_in_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(1000, 1000, rng) for _ in range(4000)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 2] / boxes[:, 3]) / np.log(4 / 3)
    # Large areas of a ratio other than 1 do not fit in a square, so look below three quarters.
    small = area < 0.75
    np.testing.assert_allclose(np.quantile(area[small], [0.25, 0.5, 0.75]), [0.2475, 0.415, 0.5825], atol=0.03)
    np.testing.assert_allclose(np.quantile(ratio[small], [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.08)
    places = boxes[:, 0] / np.maximum(1, 1000 - boxes[:, 2])
    np.testing.assert_allclose(np.quantile(places, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)


def test_an_image_too_long_for_any_ratio_gives_its_central_part() -> None:
    rng = np.random.default_rng(0)
    assert random_box(1000, 30, rng) == (480, 0, 40, 30)
    assert random_box(30, 1000, rng) == (0, 480, 30, 40)


def test_a_random_crop_is_the_box_resized_and_sometimes_flipped() -> None:
    encoded, flips = jpeg(40, 50, 3), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        left, top, width, height = random_box(50, 40, rng)
        flips.append(rng.random() < 0.5)
        part = decoded(encoded).crop((left, top, left + width, top + height))
        pixels = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR))
        expected = pixels[:, ::-1] if flips[-1] else pixels
        cropped = random_crop(encoded, 24, np.random.default_rng(seed))
        # At its edge a crop also sees the pixels just outside of it.
        difference = np.abs(cropped - expected.astype(int))
        assert difference[2:-2, 2:-2].max() <= 1
        assert difference.max() < 20
    assert 4 < sum(flips) < 16


def test_a_large_image_is_decoded_smaller_and_looks_the_same() -> None:
    encoded = jpeg(801, 1203, 5)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        left, top, width, height = random_box(1203, 801, rng)
        part = decoded(encoded).crop((left, top, left + width, top + height))
        pixels = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR), np.float32)
        expected = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        assert np.abs(random_crop(encoded, 24, np.random.default_rng(seed)) - expected).max() < 8


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 256), (50, 80), (300, 301)])
def test_the_centre_crop_is_224_of_256(height: int, width: int) -> None:
    encoded = jpeg(height, width, 1)
    scale = 256 / min(height, width)
    resized = decoded(encoded).resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
    assert min(resized.size) == 256
    top, left = round((resized.height - 224) / 2), round((resized.width - 224) / 2)
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(centre_crop(encoded, 224), expected)


def test_gray_images_among_coloured_ones_become_rgb() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 77, np.uint8)).save(buffer, "JPEG")
    assert (centre_crop(buffer.getvalue(), 8) == 77).all()
    assert random_crop(buffer.getvalue(), 8, np.random.default_rng(0)).shape == (8, 8, 3)


# Which images


def test_of_imagenets_splits_validation_is_reported_since_test_has_no_labels(source: StreamedSource) -> None:
    assert (source.test.split, len(source.test), source.train_samples) == ("validation", TEST, TRAIN - HELD_OUT)
    assert (source.input_shape, source.classes, source.held_out) == ((SIDE, SIDE, 3), 40, HELD_OUT)


def epochs_of(sampling: str, epochs: int, *, samples: int = 22) -> list[list[list[list[int]]]]:
    """The samples of 3 workers, by epoch, worker and batch: 22 make shards of 7, of which 2 batches of 3 are seen."""
    numbers = grain.MapDataset.range(samples)
    drawn = OfWorkers(tuple(of_worker(numbers, sampling, 3, 3, 0, rank) for rank in range(3)))
    return [[[drawn(rank, 2 * epoch + i).tolist() for i in (0, 1)] for rank in range(3)] for epoch in range(epochs)]


def seen_by(epochs: list[list[list[list[int]]]], rank: int) -> set[int]:
    return {sample for epoch in epochs for batch in epoch[rank] for sample in batch}


def test_shards_are_disjoint_and_cover_an_epoch_in_a_new_order_each_time() -> None:
    epochs = epochs_of("shard", 30)
    seen = [seen_by(epochs, rank) for rank in range(3)]
    assert [len(shard) for shard in seen] == [7, 7, 7], "what is left out of one epoch is in another"
    assert len(set.union(*seen)) == 21
    for epoch in epochs:
        assert len({sample for worker in epoch for batch in worker for sample in batch}) == 18
    assert len({str(epoch) for epoch in epochs}) == 30


def test_shards_that_are_dealt_anew_are_disjoint_in_each_epoch_and_reach_everything() -> None:
    epochs = epochs_of("reshuffle", 12)
    for epoch in epochs:
        assert len({sample for worker in epoch for batch in worker for sample in batch}) == 18
    seen = [seen_by(epochs, rank) for rank in range(3)]
    assert min(map(len, seen)) > 15, "with shards of its own a worker would see 7"
    assert set.union(*seen) == set(range(22))


def test_workers_draw_from_all_samples_with_iid() -> None:
    epochs = epochs_of("iid", 20)
    assert len({str(batch) for epoch in epochs for worker in epoch for batch in worker}) > 110, "of 120"
    assert [seen_by(epochs, rank) for rank in range(3)] == [set(range(22))] * 3


@pytest.mark.parametrize("sampling", ["shard", "reshuffle", "iid"])
def test_what_is_random_in_a_dataset_is_drawn_anew_each_time_a_sample_comes(sampling: str) -> None:
    noisy = grain.MapDataset.range(6).seed(0).random_map(lambda number, rng: (number, rng.integers(2**60)))
    drawn = OfWorkers(tuple(of_worker(noisy, sampling, 3, 2, 0, rank) for rank in range(2)))
    found = [sample for step in range(30) for rank in range(2) for sample in zip(*drawn(rank, step), strict=True)]
    assert len(found) == len({noise for _, noise in found}) == 180
    np.testing.assert_array_equal(drawn(1, 7)[1], drawn(1, 7)[1])


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["shard", "reshuffle", "iid"])
def test_images_that_are_held_out_are_never_trained_on(source: StreamedSource, sampling: str) -> None:
    _, validation, test = streamed_splits(source, seed=0)
    held_out = {int(image.labels) for image in validation}
    assert len(held_out) == HELD_OUT
    assert {int(image.labels) for image in test} == set(range(TRAIN, TRAIN + TEST))
    drawn = minibatches(source, sampling=sampling)
    seen = {label for step in range(60) for rank in range(3) for label in drawn(rank, step).labels.tolist()}
    assert not seen & held_out
    assert len(seen) == (21 if sampling == "shard" else TRAIN - HELD_OUT), "in all epochs"
    other = {int(image.labels) for image in streamed_splits(source, seed=1)[1]}
    assert other != held_out


def test_a_minibatch_holds_images_with_their_labels(source: StreamedSource) -> None:
    drawn = minibatches(source)
    batch = drawn(1, 5)
    assert (batch.images.shape, batch.images.dtype) == ((3, SIDE, SIDE, 3), np.uint8)
    assert (batch.labels.shape, batch.labels.dtype) == ((3,), np.int32)
    for pixels, label in zip(batch.images, batch.labels, strict=True):
        colours = np.asarray(decoded(examples(int(label))[0]["image"])).reshape(-1, 3).astype(int)
        low, high = colours.min(0), colours.max(0)
        assert ((pixels >= low - 1) & (pixels <= high + 1)).all()


def test_a_worker_sees_the_same_whichever_others_are_loaded_here(source: StreamedSource) -> None:
    drawn = minibatches(source)
    every, one = OfRanks(drawn, (0, 1, 2)), OfRanks(drawn, (2,))
    for step in (0, 1, 5):
        np.testing.assert_array_equal(every(3 * step + 2).images, one(step).images)
    assert (minibatches(source, seed=1)(2, 0).images != drawn(2, 0).images).any()


# Processes


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.usefixtures("nothing_left")
def test_the_number_of_processes_does_not_change_what_is_loaded(source: StreamedSource) -> None:
    drawn = OfRanks(minibatches(source), (0, 1, 2))
    here, there = (list(stream(drawn, range(4, 11), processes)) for processes in (0, 2))
    assert len(here) == 7
    for mine, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(mine.images, theirs.images)
        np.testing.assert_array_equal(mine.labels, theirs.labels)


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
@pytest.mark.thorough
def test_an_image_that_cannot_be_decoded_is_named_and_a_process_that_is_killed_is_told(
    tmp_path: Path, source: StreamedSource
) -> None:
    damaged = examples(*range(TRAIN))
    for example in damaged:
        example["image"] = example["image"][:150]
    broken = find_dataset("tiny", data_dir=write_imagenet(tmp_path, damaged))
    assert isinstance(broken, StreamedSource)
    with refusal("'tiny'", "train", "cannot decode image ", "prepare the set again"):
        list(stream(OfRanks(minibatches(broken), (0, 1, 2)), range(4), 1))
    loaded = stream(OfRanks(minibatches(source), (0, 1, 2)), range(10**6), 1)
    next(loaded)
    (process,) = multiprocessing.active_children()
    assert process.pid is not None
    for number in SIGNALS:  # as a terminal or a scheduler sends them to all processes of a program
        os.kill(process.pid, number)
    for _ in range(5):
        next(loaded)
    os.kill(process.pid, signal.SIGKILL)
    with refusal("--loader_processes", "/dev/shm"):
        for _ in loaded:
            pass


# Blocks


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 2, 3])
def test_blocks_hold_each_step_at_its_place_from_whatever_step_on(source: StreamedSource, first: int) -> None:
    topology, length, steps = Topology(2, 2), 3, 8
    drawn = minibatches(source, workers=4)
    assert local_ranks(topology) == (0, 1, 2, 3)
    data_for = Prefetcher(drawn, drawn(0, 0), topology, length=length, steps=steps, processes=0)
    for step in range(first, steps):
        block = data_for(step, 1)
        assert block.images.shape == (2, 2, length, 3, SIDE, SIDE, 3)
        assert block.images.sharding == topology.per_worker
        for rank in range(4):
            place, expected = (rank // 2, rank % 2, step % length), drawn(rank, step)
            np.testing.assert_array_equal(np.asarray(block.images)[place], expected.images)
            np.testing.assert_array_equal(np.asarray(block.labels)[place], expected.labels)
    data_for.close()


def test_a_block_takes_half_a_gibibyte_and_has_one_step_at_least() -> None:
    for batch_size in (1, 100_000, 300_000, 10**7):
        length = block_length(batch_size * SIDE * SIDE * 3, Topology(1, 2))
        size = length * 2 * batch_size * SIDE * SIDE * 3
        assert length == 1 or size <= sources.BLOCK_BYTES
        assert length == 64 or size + size // length > sources.BLOCK_BYTES


# Runs


def config(folder: str, workdir: Path, **more: Any) -> Config:
    given: dict[str, Any] = {
        "dataset": "tiny", "data_dir": folder, "model": "mlp", "groups": 1, "workers": 2, "global_period": 4,
        "batch_size": 4, "steps": 12, "eval_every": 12, "checkpoint_every": 5, "loader_processes": 0,
    }  # fmt: skip
    return Config(workdir=str(workdir), **(given | more))


@pytest.mark.slow
def test_evaluation_counts_as_numpy_does(
    folder: str, source: StreamedSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 3)
    run = trainer_of(config(folder, tmp_path), source).build(12)
    params, model_state = run.task.init(jax.random.key(3))
    model = make_model(config(folder, tmp_path).model_name, source.input_shape, source.classes)
    figures = run.task.evaluate((params, model_state), "leader_")
    for split, dataset in zip(("validation", "test"), streamed_splits(source, 0)[1:], strict=True):
        images, labels = stacked(list(dataset))
        pixels = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        logits = np.asarray(model.apply(params, model_state, pixels.astype(np.float32), None)[0], np.float64)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
        np.testing.assert_allclose(figures[f"leader_{split}_loss"], losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(figures[f"leader_{split}_error"], (logits.argmax(1) != labels).mean(), rtol=1e-6)


def last_state(workdir: Path) -> list[np.ndarray]:
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((workdir / "checkpoints" / "12" / "state").absolute())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_left")
def test_a_run_is_the_same_bit_for_bit_if_stopped_and_with_processes(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    summary = train(config(folder, whole), figures=False)
    assert summary is not None
    assert (summary["step"], summary["dataset"]) == (12, "tiny")
    assert 0 <= summary["test_error"] <= 1

    step_bytes = 2 * 4 * SIDE * SIDE * 3
    monkeypatch.setattr(sources, "BLOCK_BYTES", 3 * step_bytes)  # calls are cut elsewhere, too
    assert train(config(folder, stopped, steps=5, eval_every=5), figures=False) is not None
    assert train(config(folder, stopped, loader_processes=2), resume=True, figures=False) is not None
    for one, other in zip(last_state(whole), last_state(stopped), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_loss"] == summary["test_loss"]


def test_settings_that_do_not_fit_are_refused_before_anything_is_read(folder: str, tmp_path: Path) -> None:
    with refusal("--batch_size=12", "shard of 11"):
        train(config(folder, tmp_path / "a", batch_size=12))
    with refusal("'cnn7'", "24×24", "12×12"):
        train(config(folder, tmp_path / "b", model="cnn7"))
    with refusal("--loader_processes=-1"):
        check_config(config(folder, tmp_path, loader_processes=-1))
    assert not (tmp_path / "a").exists()


# Sets


def test_images_of_one_size_are_streamed_where_they_do_not_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [{"image": jpeg(10, 16, n), "label": n % 4} for n in range(20)]
    feature = tfds.features.Image(shape=(10, 16, 3), encoding_format="jpeg")
    folder = write_set(tmp_path, {"train": images, "test": images[:5]}, image=feature)
    monkeypatch.setattr(datasets, "MAX_BYTES", 25 * 10 * 16 * 3)
    assert not isinstance(find_dataset("tiny", data_dir=folder), StreamedSource)
    monkeypatch.setattr(datasets, "MAX_BYTES", 25 * 10 * 16 * 3 - 1)
    source = find_dataset("tiny", data_dir=folder)
    assert isinstance(source, StreamedSource)
    assert (source.input_shape, source.test.split, source.train_samples) == ((8, 8, 3), "test", 18)


def test_sets_that_cannot_be_streamed_are_refused_with_what_to_do(tmp_path: Path) -> None:
    gray = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(buffer, "PNG")
    images = [{"image": buffer.getvalue(), "label": 0}] * 3
    folder = write_set(tmp_path / "gray", {"train": images, "test": images}, image=gray)
    with refusal("'tiny'", "images of various sizes", "3 channels, not 1"):
        find_dataset("tiny", data_dir=folder)

    folder = write_imagenet(tmp_path / "unlabelled", examples(0), validation=[examples(0)[0] | {"label": -1}])
    with refusal("'tiny'", "no labels"):
        find_dataset("tiny", data_dir=folder)

    folder = write_imagenet(tmp_path / "other", examples(0, 1))
    path = tmp_path / "other" / "tiny" / "1.0.0" / "dataset_info.json"
    saved = path.read_text()
    path.write_text(json.dumps(json.loads(saved) | {"fileFormat": "tfrecord"}))
    with refusal("'tiny'", "tfrecord", "array_record"):
        find_dataset("tiny", data_dir=folder)
    path.write_text(saved)
    for file in path.parent.glob("*train*"):
        file.unlink()
    with refusal("'tiny'", "train", "prepare the set again"):
        find_dataset("tiny", data_dir=folder)


def test_what_array_record_raises_is_told_in_one_line() -> None:
    class Broken:
        def __getitem__(self, number: int) -> Any:
            raise RuntimeError(f"cut off at {number}\nand more")

        def __getitems__(self, numbers: list[int]) -> list[Any]:
            return [self[number] for number in numbers]

    records = EncodedRecords("set", "train", Broken())
    for read in (lambda: records[3], lambda: records.read([3])):
        with pytest.raises(InputError, match=r"cannot read the train split of 'set' \(cut off at 3\): prepare"):
            read()
