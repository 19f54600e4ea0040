"""Training and evaluating language models: against NumPy, on one device and on many, and as a command."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import refused, train
from refusals import refusal
from regression import QUICK
from thorough import thorough
from tokenizers import Tokenizer, models, pre_tokenizers

from lsgd_jax import Topology, init_state, load_center, make_train_step
from lsgd_jax.config import train as training
from lsgd_jax.config.checks import load_config
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source, text_task
from lsgd_jax.config.make_method import base_optimizer, make_method
from lsgd_jax.data.text import Text, TextSource, encoded, split_text
from lsgd_jax.data.text_batches import TextBatch
from lsgd_jax.engine.state import state_shardings
from lsgd_jax.models.language import make_language_model
from lsgd_jax.tasks import perplexity
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.tasks.language import BITS_PER_BYTE, language_loss
from lsgd_jax.tasks.perplexity import make_evaluate_text, put_evaluation_text
from lsgd_jax.tasks.task import open_task
from lsgd_jax.trainer.conditions import check_data
from lsgd_jax.trainer.records import read_metrics

pytestmark = pytest.mark.usefixtures("fresh_flags")


KEY = jax.random.key(5)
PLAY = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
WORDS = b"the cat sat on the mat and the dog sat on the log "


def random_text(size: int) -> Text:
    return Text(np.random.default_rng(size).integers(97, 123, size, dtype=np.uint8), size)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("size", "length"), [(2, 5), (41, 5), (42, 5), (500, 7)])
def test_every_byte_but_the_first_is_predicted_once_from_the_one_before(
    devices: int, size: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "ROWS", 3)
    text = random_text(size)
    put = put_evaluation_text(text, length, 256, Topology(2, 4, jax.devices()[:devices]))
    assert {shard.data.shape[1] for shard in put.inputs.addressable_shards} == {put.inputs.shape[1] // devices}
    inputs, targets, real = (np.asarray(x).swapaxes(0, 1).reshape(-1) for x in put[:3])
    assert put.inputs.shape[2] == length
    assert real.sum() == size - 1
    np.testing.assert_array_equal(inputs[real], text.tokens[:-1])
    np.testing.assert_array_equal(targets[real], text.tokens[1:])


def bigram(vocabulary: int = 128) -> Any:
    """A model whose logits are a row of a table, plus how many windows have been read in the row."""

    def init(key: jax.Array) -> Any:
        del key
        return {"table": jnp.zeros((vocabulary, vocabulary))}, {"read": jnp.zeros((1, 1))}

    def apply(params: Any, model_state: Any, tokens: jax.Array, key: jax.Array | None) -> Any:
        assert key is None, "an evaluation draws nothing"
        shift = model_state["read"][..., None] * jnp.arange(vocabulary) / vocabulary
        return params["table"][tokens] + shift, {"read": model_state["read"] + 1}

    return make_language_model("lstm", 2, 1, 1, 1, 1)._replace(init=init, apply=apply)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_the_figures_are_those_of_numpy_with_the_state_carried_along_each_row(
    devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perplexity, "ROWS", 4)
    text, length = random_text(173)._replace(bytes=2 * 173), 6  # 4 rows of 8 windows; the last row is short
    tokens = text.tokens
    table = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)
    topology = Topology(2, 4, jax.devices()[:devices])
    params = jax.device_put({"table": table}, topology.replicated)
    got = make_evaluate_text(bigram(), topology)(params, put_evaluation_text(text, length, 128, topology))
    losses, wrong = [], []
    for position in range(172):
        read = position % (8 * length) // length
        logits = table[tokens[position]].astype(np.float64) + read * np.arange(128) / 128
        losses.append(np.log(np.exp(logits).sum()) - logits[tokens[position + 1]])
        wrong.append(logits.argmax() != tokens[position + 1])
    loss = np.mean(losses)
    expected = {
        "loss": loss,
        "error": np.mean(wrong),
        "perplexity": np.exp(loss),
        "bits_per_byte": loss / np.log(2) / 2,
    }
    assert {name: float(x) for name, x in got.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_wrong_everywhere_and_counts_as_guessing(broken: float) -> None:
    alone = Topology(1, 1, jax.devices()[:1])
    put = put_evaluation_text(random_text(50), 6, 128, alone)
    params = {"table": np.full((128, 128), broken, np.float32)}
    figures = {name: float(x) for name, x in make_evaluate_text(bigram(), alone)(params, put).items()}
    assert figures.pop("error") == 1
    assert not any(np.isfinite(x) for x in figures.values())
    assert BITS_PER_BYTE.bounded(figures["bits_per_byte"]) == 8.0


def test_what_is_worse_than_the_worst_counts_as_the_worst() -> None:
    row = {"test_bits_per_byte": 21.5, "leader_test_bits_per_byte": 2.5, "validation_bits_per_byte": None}
    assert [BITS_PER_BYTE.read(row, split) for split in ("test", "leader_test", "validation")] == [8.0, 2.5, 8.0]
    assert (ERROR.title, ERROR.shown(0.0789), BITS_PER_BYTE.title, BITS_PER_BYTE.shown(2.5)) == (
        "error [%]", "7.89", "bits per byte", "2.500"
    )  # fmt: skip


def config(workdir: Any = "unused", **changes: Any) -> Config:
    """Two workers with little models, which communicate every second step.

    By SGD: the bias of an attention's keys has no gradient but rounding, which Adam makes steps of.
    """
    common: dict[str, Any] = {
        "text_file": "a.txt", "groups": 1, "workers": 2, "global_period": 2, "batch_size": 2, "sequence_length": 8,
        "model_width": 8, "model_layers": 1, "learning_rate": 0.05, "model": "lstm",
    }  # fmt: skip
    return Config(str(workdir), **common | changes)


@functools.cache
def source(size: int = 120) -> TextSource:
    texts = encoded(split_text(np.frombuffer((WORDS * 20)[:size], np.uint8)))
    return TextSource("words", lambda: texts)


def trained(model: str, devices: int) -> Any:
    """(state, figures of worker 0) after 5 steps: 54 bytes a worker, an epoch of 3 steps."""
    settings = config(model=model, dropout=0.5 if model == "lstm" else 0.0)
    topology = Topology(1, 2, jax.devices()[:devices])
    task, method = open_task(text_task(settings, source()), topology, seed=0, steps=8), make_method(settings)
    state = started(model)._replace(keys=jax.random.split(KEY, (1, 2)))
    state = jax.device_put(state, state_shardings(topology, state))
    step = make_train_step(method, topology, task.loss, task.batches, compiler_options=QUICK)
    while int(state.step) < 5:
        state, _ = step(state, task.data_for(int(state.step), 1), jnp.int32(5 - int(state.step)))
    worker = jax.device_put(jax.tree.map(lambda x: np.asarray(x)[0, 0], state.params), topology.replicated)
    return jax.tree.map(np.asarray, state._replace(keys=None)), task.evaluate((worker, {}), "")


@functools.cache
def started(model: str) -> Any:
    """The state before the first step, compiled once for all devices."""
    settings, alone = config(model=model), Topology(1, 2, jax.devices()[:1])
    init = text_task(settings, source()).init
    return jax.device_get(init_state(make_method(settings), alone, init, KEY)._replace(keys=None))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lstm", thorough("transformer")])
def test_training_and_evaluation_do_not_depend_on_the_devices(model: str) -> None:
    (alone, figures), (spread, spread_figures) = trained(model, 1), trained(model, 8)
    assert alone.step == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), alone, spread)
    assert figures == pytest.approx(spread_figures, rel=1e-5)
    assert figures["test_bits_per_byte"] == pytest.approx(np.log2(figures["test_perplexity"]), rel=1e-5)
    carried = jax.tree.leaves(alone.model_state)
    assert all((leaf != 0).any() for leaf in carried)
    assert len(carried) == (2 if model == "lstm" else 0)


@pytest.mark.slow
def test_the_state_that_a_worker_carries_counts_from_the_beginning_of_the_epoch() -> None:
    model = make_language_model("lstm", 256, 2, 8, 4, 1)
    params, zeros = jax.jit(model.init)(KEY)
    loss = jax.jit(language_loss(model))
    tokens = jnp.asarray(np.frombuffer(WORDS[:18], np.uint8).reshape(2, 9), jnp.int32)
    some = jax.tree.map(lambda x: x + 0.3, zeros)
    at_start, goes_on = (loss(params, some, TextBatch(tokens, jnp.array(begins)), None) for begins in (True, False))
    fresh = loss(params, zeros, TextBatch(tokens, jnp.array(False)), None)
    jax.tree.map(np.testing.assert_array_equal, at_start, fresh)
    assert goes_on[0] != fresh[0]
    logits, _ = model.apply(params, some, tokens[:, :-1], None)
    chances = np.take_along_axis(np.asarray(jax.nn.softmax(logits)), np.asarray(tokens)[:, 1:, None], -1)
    assert float(goes_on[0]) == pytest.approx(-np.log(chances).mean(), rel=1e-5)


def test_gradients_are_clipped_before_anything_else() -> None:
    params = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    grads = {"a": jnp.array([0.0, 30.0]), "b": jnp.array([40.0])}

    def update(**changes: Any) -> Any:
        optimizer = base_optimizer(config(optimizer="sgd", momentum=0.0, learning_rate=1.0, **changes))
        return optimizer.update(grads, optimizer.init(params), params)[0]

    clipped = update(clip_norm=5.0, weight_decay=0.5)
    np.testing.assert_allclose(clipped["a"], [-1.5, -3.0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [-2.0 - 4.0], rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, update(weight_decay=0.0, clip_norm=51.0), update(weight_decay=0.0))


def run(workdir: Path, **changes: Any) -> Any:
    text = workdir.parent / "words.txt"
    text.write_bytes(WORDS * 20)
    return config(workdir, text_file=str(text), steps=6, eval_every=3, checkpoint_every=2, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("language") / "whole"
    training.train(run(workdir))
    return workdir


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_leaves_bits_per_byte_in_its_metrics_figure_and_table(finished: Path) -> None:
    rows = read_metrics(finished)
    figures = {f"{split}_{name}" for split in ("validation", "test", "leader_validation", "leader_test")
               for name in ("loss", "error", "perplexity", "bits_per_byte")}  # fmt: skip
    assert all(set(row) >= figures | {"step", "train_loss", "bytes_communicated"} for row in rows)
    assert (finished / "figures" / "bits_per_byte.png").exists()
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["metric"], summary["dataset"], summary["model"]) == ("bits_per_byte", "words.txt", "lstm")
    assert summary["worker_test_bits_per_byte"] == pytest.approx([summary["test_bits_per_byte"]] * 2, rel=0.1)
    table = train.table(summary | {"leader_test_bits_per_byte": None, "test_bits_per_byte": 2.25}, "runs/x")
    assert "words.txt: lstm" in table
    assert "6 steps of 16 tokens" in table
    lines = {line[:6]: line.removesuffix("  best").split()[-1] for line in table.splitlines() if line}
    assert "bits per byte" in table
    assert (lines["center"], lines["leader"]) == ("2.250", "8.000")


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_amid_an_epoch_with_the_text_moved(finished: Path, tmp_path: Path) -> None:
    workdir, moved = tmp_path / "run", tmp_path / "moved.txt"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.rmtree(workdir / "center")
    (workdir / "summary.json").unlink()
    moved.write_bytes(WORDS * 20)
    training.train(load_config(str(workdir), {"text_file": str(moved)}, resume=True), resume=True)
    first, second = ([{**row, "seconds": 0} for row in read_metrics(folder)][-1] for folder in (finished, workdir))
    assert first == second
    arrays = [jax.tree.leaves(load_center(folder)[1]) for folder in (finished, workdir)]
    for one, other in zip(*arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_saved_center_begins_a_text_at_every_call(finished: Path) -> None:
    model, params = load_center(finished)
    text = np.frombuffer((WORDS * 20)[-50:], np.uint8).astype(np.int32)[None]  # all of the test text
    logits = np.asarray(model(text[:, :-1]), np.float64)
    assert logits.shape == (1, 49, 256)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, text[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(model(text.repeat(3, 0)[:, :-1])[2], logits[0], rtol=1e-4, atol=1e-5)
    assert sum(x.size for x in jax.tree.leaves(params)) == 256 * 8 + 4 * 8 * (8 + 8 + 1) + 256
    assert 0 < losses.mean() < 6


@pytest.mark.slow
def test_a_run_on_tokens_is_judged_by_bits_per_byte_and_saves_a_model_of_them(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    words = Tokenizer(models.WordLevel({word: token for token, word in enumerate(WORDS.decode().split())}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(file))
    training.train(run(tmp_path / "run", tokenizer=str(file), sequence_length=4))
    last = read_metrics(tmp_path / "run")[-1]
    # The test text is the last of 20 times the same: 13 words.
    assert last["test_bits_per_byte"] == pytest.approx(last["test_loss"] / np.log(2) * 13 / len(WORDS), rel=1e-5)
    model, params = load_center(tmp_path / "run")
    assert params["embedding"].shape == (13, 8)
    tokens = np.array([words.encode("the dog sat on").ids], np.int32)
    assert model(tokens).shape == (1, 4, 13)
    moved = tmp_path / "moved.json"
    shutil.move(file, moved)
    given = {"tokenizer": str(moved)}
    assert load_config(str(tmp_path / "run"), given, resume=True).tokenizer == str(moved)
    moved.write_text(moved.read_text() + "\n")
    config = load_config(str(tmp_path / "run"), given, resume=True)
    with refusal("the run in", "began with", "--tokenizer"):
        check_data(tmp_path / "run", find_source(config))


# The arguments, and what the message must contain.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "a missing file": (["--text_file=missing.txt"], ["missing.txt", "name a text file"]),
    "a folder": (["--text_file={folder}"], ["is no file"]),
    "an empty file": (["--text_file={empty}"], ["has 0 bytes"]),
    "a file and a data set": (["--text_file={text}", "--dataset=cifar10"], ["--text_file", "--dataset=cifar10"]),
    "a model of images": (["--text_file={text}", "--model=cnn3"], ["--model=cnn3", "lstm, transformer"]),
    "a model of text for images": (["--model=lstm"], ["--model=lstm", "cnn3, cnn7, mlp", "--text_file"]),
    "a tokenizer for images": (["--tokenizer={text}"], ["--tokenizer", "--text_file"]),
    "no tokenizer": (["--text_file={text}", "--tokenizer={text}"], ["--tokenizer={text}", "is no tokenizer"]),
    "a missing tokenizer": (["--text_file={text}", "--tokenizer=missing.json"], ["missing.json", "No such file"]),
    "a width for images": (["--model_width=3"], ["--model_width", "--text_file"]),
    "dropout for images": (["--dropout=0.3"], ["--dropout", "--text_file"]),
    "no width": (["--text_file={text}", "--model_width=0"], ["--model_width=0"]),
    "no layers": (["--text_file={text}", "--model_layers=0"], ["--model_layers=0"]),
    "all dropped": (["--text_file={text}", "--dropout=1"], ["--dropout=1", "[0, 1)"]),
    "no norm": (["--clip_norm=0"], ["--clip_norm=0", "more than 0"]),
    "no sequence": (["--text_file={text}", "--sequence_length=0"], ["--sequence_length=0"]),
    "a sequence longer than a shard": (
        ["--text_file={text}", "--sequence_length=120"], ["--sequence_length=120", "shard of 112 tokens", "shorter"]
    ),
    "a batch larger than a shard": (
        ["--text_file={text}", "--sequence_length=10", "--batch_size=12"], ["--batch_size=12", "shard of 112 tokens"]
    ),
    "a sequence longer than the text": (
        ["--text_file={text}", "--sampling=iid", "--sequence_length=900"], ["--sequence_length=900", "of 900 tokens"]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "culprits"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing_behind(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    culprits: list[str],
) -> None:
    monkeypatch.setattr(training, "trainer_of", lambda *_: pytest.fail("the mistake was not seen"))
    (tmp_path / "text").write_bytes(WORDS * 20)
    (tmp_path / "empty").write_bytes(b"")
    names = {"text": tmp_path / "text", "folder": tmp_path, "empty": tmp_path / "empty"}
    message = refused(capfd, f"--workdir={tmp_path / 'run'}", *(argument.format(**names) for argument in arguments))
    assert [culprit for culprit in culprits if culprit.format(**names) not in message] == [], message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text"]


def test_a_file_that_is_not_utf_8_is_refused_before_anything_is_compiled(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "jit", lambda *_, **__: pytest.fail("something is compiled"))
    monkeypatch.setattr(train, "use_compilation_cache", lambda wanted: None)
    (tmp_path / "text").write_bytes(b"\xff" * 100)
    assert "not UTF-8" in refused(
        capfd,
        f"--workdir={tmp_path / 'run'}",
        f"--text_file={tmp_path / 'text'}",
        "--sequence_length=4",
        "--batch_size=1",
    )


@pytest.mark.skipif(not PLAY.is_file(), reason=f"no text in {PLAY}")
def test_a_real_text_is_found_and_fits() -> None:
    found = find_source(Config("unused", text_file=str(PLAY)))
    assert isinstance(found, TextSource)
    assert (found.name, found.train_tokens) == ("tinyshakespeare.txt", 1_115_394 - 2 * 55_769)
