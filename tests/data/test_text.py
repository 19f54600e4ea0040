"""Texts: files, prepared sets, how they are split, and which windows of them each worker sees."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from prepared_sets import write_set
from refusals import refusal

from lsgd_jax import Topology
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source
from lsgd_jax.data import text
from lsgd_jax.data.text import Texts, TextSource, encoded, split_text, text_file_source
from lsgd_jax.data.text_batches import make_text_batches, put_text_on_devices, windows_in

KEY = jax.random.key(3)


def written(folder: Path, content: bytes) -> str:
    path = folder / "some.txt"
    path.write_bytes(content)
    return str(path)


def read_bytes(texts: Texts) -> list[bytes]:
    assert [split.bytes for split in texts] == [len(split.tokens) for split in texts]
    return [split.tokens.tobytes() for split in texts]


@pytest.mark.parametrize("size", [40, 59, 60, 1000])
def test_a_file_is_cut_into_contiguous_splits_of_90_5_and_5_percent(tmp_path: Path, size: int) -> None:
    content = bytes(range(32, 127)) * 11
    source = text_file_source(written(tmp_path, content[:size]))
    train, validation, test = read_bytes(source.read())
    assert train + validation + test == content[:size]
    assert (len(validation), len(test)) == (size // 20, size // 20)
    assert (source.name, source.train_tokens) == ("some.txt", len(train))


def test_a_file_may_hold_any_utf_8_and_bytes_of_zero(tmp_path: Path) -> None:
    content = ("größer 文 \N{SNOWMAN}" * 9).encode() + bytes(40)
    assert b"".join(read_bytes(text_file_source(written(tmp_path, content)).read())) == content


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusal("--text_file=", "missing.txt", "No such file", "name a text file"):
        text_file_source(str(tmp_path / "missing.txt"))
    with refusal(f"--text_file={tmp_path} is no file"):
        text_file_source(str(tmp_path))
    with refusal("has 0 bytes"):
        text_file_source(written(tmp_path, b""))
    with refusal("has 39 bytes"):
        text_file_source(written(tmp_path, b"a" * 39))
    with refusal("not UTF-8", "at byte 50", "convert"):
        text_file_source(written(tmp_path, b"a" * 50 + "é".encode("latin-1") + b"b" * 50)).read()
    monkeypatch.setattr(text, "MAX_BYTES", 99)
    with refusal("--text_file=", "GiB", "choose"):
        text_file_source(written(tmp_path, b"a" * 100))


def prepared(folder: Path, **splits: list[str]) -> str:
    """A set of documents, without images and labels."""
    rows = {split: [{"text": document} for document in documents] for split, documents in splits.items()}
    return write_set(folder, rows, image=None, label=None, text=tfds.features.Text())


def found(folder: str) -> TextSource:
    source = find_source(Config("unused", dataset="tiny", data_dir=folder))
    assert isinstance(source, TextSource)
    assert (source.name, source.known_tokens) == ("tiny", None)
    return source


def test_a_prepared_set_of_texts_keeps_its_splits_and_joins_documents_by_line_breaks(tmp_path: Path) -> None:
    folder = prepared(tmp_path, train=["one é", "two", ""], validation=["three"], test=["four", "five"])
    got = read_bytes(found(folder).read())
    assert [sorted(split.split(b"\n")) for split in got] == [
        [b"", "one é".encode(), b"two"], [b"three"], [b"five", b"four"]
    ]  # fmt: skip


def test_splits_that_a_prepared_set_lacks_are_cut_from_the_end_of_its_training_text(tmp_path: Path) -> None:
    document = "".join(chr(33 + number % 90) for number in range(200)).encode()
    folder = prepared(tmp_path, train=[document.decode()], test=["the end"])
    assert read_bytes(found(folder).read()) == [document[:190], document[190:], b"the end"]
    everything = np.frombuffer(document, np.uint8)
    assert read_bytes(encoded(split_text(everything))) == [document[:180], document[180:190], document[190:]]
    with refusal("the validation text has 1 bytes"):
        encoded(split_text(everything[:20], test=everything))


def test_a_prepared_set_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, train=["a" * 100])
    source = found(folder)
    path = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"fileFormat": "tfrecord"}))
    with refusal("'tiny'", "array_record"):
        found(folder).read()
    path.write_text(whole)
    monkeypatch.setattr(text, "MAX_BYTES", 99)
    with refusal("'tiny'", "GiB", "choose"):
        found(folder)
    assert source.read().train.bytes == 90


def dealt(sampling: str, size: int, devices: int = 8) -> jax.Array:
    numbers = np.arange(size) % 251
    return put_text_on_devices(numbers.astype(np.uint8), Topology(2, 2, jax.devices()[:devices]), sampling)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_each_worker_has_a_contiguous_part_of_the_text(devices: int) -> None:
    shards = dealt("shard", 203, devices)
    np.testing.assert_array_equal(shards.reshape(-1), np.arange(200))
    assert (shards.shape, shards.dtype) == ((2, 2, 50), np.uint8)
    np.testing.assert_array_equal(dealt("iid", 203, devices), np.arange(203))


ROWS: dict[str, Any] = {"steps": 15, "sampling": "shard", "size": 119, "batch": 3, "length": 5, "carries": True}
WINDOWS: dict[str, Any] = {"steps": 10, "sampling": "shard", "size": 120, "batch": 3, "length": 7, "carries": False}
ANYWHERE: dict[str, Any] = {"steps": 60, "sampling": "iid", "size": 20, "batch": 4, "length": 6, "carries": True}


def drawn(first: int, *, steps: int, sampling: str, size: int, batch: int, length: int, carries: bool) -> Any:
    """(tokens [steps, batch, length + 1], begins [steps]) of a text whose bytes are their positions."""
    assert size <= 256
    return jax.tree.map(np.asarray, drawing(sampling, size, batch, length, carries, steps)(first))


@functools.cache
def drawing(sampling: str, size: int, batch: int, length: int, carries: bool, steps: int) -> Any:
    batches = make_text_batches(sampling, size, batch, length, carries=carries)
    numbers = jnp.arange(size, dtype=jnp.uint8)

    def draw(first: jax.Array) -> Any:
        return jax.vmap(lambda step: batches.draw(numbers, step, KEY))(batches.plan(KEY, first, steps))

    return jax.jit(draw)


def test_a_model_with_a_state_reads_contiguous_rows_and_begins_again_in_each_epoch() -> None:
    # 3 rows of 7 windows of 5 bytes, and the byte after them: 106 of 119 bytes; an eighth window does not fit.
    tokens, begins = drawn(0, **ROWS)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(begins, [step in (0, 7, 14) for step in range(15)])
    for step in range(15):
        for row in range(3):
            first = row * 35 + step % 7 * 5
            np.testing.assert_array_equal(tokens[step, row], np.arange(first, first + 6))
    targets = tokens[:7, :, 1:]
    np.testing.assert_array_equal(np.sort(targets.ravel()), np.arange(1, 106))


def test_a_model_without_a_state_reads_all_windows_in_a_new_order_each_epoch() -> None:
    assert windows_in(120, 7) == 17
    tokens, begins = drawn(0, **WINDOWS)
    assert begins.all()
    np.testing.assert_array_equal(tokens - tokens[..., :1], np.broadcast_to(np.arange(8), tokens.shape))
    starts = tokens[..., 0]
    assert set((starts % 7).ravel().tolist()) == {0}
    assert starts.max() <= 16 * 7
    epochs = starts.reshape(2, 15)
    assert [len(set(epoch.tolist())) for epoch in epochs] == [15, 15]
    assert (epochs[0] != epochs[1]).any()


def test_iid_windows_are_anywhere_in_the_whole_text() -> None:
    tokens, begins = drawn(0, **ANYWHERE)
    assert begins.all(), "also for a model with a state"
    assert set(tokens[..., 0].ravel().tolist()) == set(range(14)), "from the first to the last that fits"
    np.testing.assert_array_equal(tokens[..., -1] - tokens[..., 0], 6)


@pytest.mark.parametrize("how", [ROWS, WINDOWS, ANYWHERE], ids=["rows", "windows", "iid"])
def test_windows_do_not_depend_on_where_calls_are_cut(how: dict[str, Any]) -> None:
    whole = drawn(0, **how)
    for first in range(1, how["steps"], 3):
        for all_steps, some in zip(whole, drawn(first, **how), strict=True):
            np.testing.assert_array_equal(all_steps[first:], some[: how["steps"] - first])
