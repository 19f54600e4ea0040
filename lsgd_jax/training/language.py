"""Predicting the next byte of a text that fits in memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.training.config import TEXT_MODEL, Config
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.evaluation import Candidate, Evaluate
from lsgd_jax.training.kind import Kind
from lsgd_jax.training.local_steps import Loss
from lsgd_jax.training.metric import SPLITS, Metric
from lsgd_jax.training.models import Dtype, FunctionalModel
from lsgd_jax.training.models.language import LANGUAGE_MODELS, check_language_model, make_language_model
from lsgd_jax.training.perplexity import make_evaluate_text, put_evaluation_text
from lsgd_jax.training.sampling import shard_size
from lsgd_jax.training.sources import Stream, TrainingData, standing
from lsgd_jax.training.task import Task
from lsgd_jax.training.text import BYTES, Texts, TextSource
from lsgd_jax.training.topology import Topology
from lsgd_jax.training.windows import TextBatch, make_text_batches, put_text_on_devices, windows_in

# Guessing costs 8 bits: what is worse than that is no better than diverged.
BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", "", scale=1.0, digits=3, worst=8.0)

BATCH_SIZE = 32


def make_task(config: Config, source: TextSource) -> Task:
    """Reads the text and makes the task."""
    texts = source.read()
    source = dataclasses.replace(source, train_bytes=len(texts.train))  # now that it is known
    batch_size, length = batch_size_of(config, source), config.sequence_length
    size, _ = _bytes_of_worker(config, len(texts.train))
    name, model = model_name(config), model_of(config, source)
    batches = make_text_batches(config.sampling, size, batch_size, length, carries=LANGUAGE_MODELS[name].carries)

    def open_text(topology: Topology, seed: int, steps: int) -> Stream:
        del steps
        data = put_text_on_devices(texts.train, topology, config.sampling, seed)
        return standing(batches, data)

    return Task(
        init=model.init,
        loss=language_loss(model_of(config, source, config.compute_dtype)),
        train=TrainingData(batch_size, open_text),
        name=source.name,
        unit="tokens",
        units_per_sample=length,
        metric=BITS_PER_BYTE,
        evaluate=lambda topology: _make_evaluate_splits(model, texts, length, topology),
        # What is carried belongs to one worker's place in its text: evaluations start without.
        renew=lambda topology, seed: lambda center: (center[0], {}),
        description={
            "kind": "text",
            "model": name,
            "vocabulary": BYTES,
            "sequence_length": length,
            **_sizes(config),
        },
    )


def language_loss(model: FunctionalModel) -> Loss:
    """The mean cross-entropy of the next byte over a minibatch, in nats.

    What the model carries goes on until its rows begin again. A worker that was lost
    and starts again has the leader's until then.
    """

    def loss(params: Any, model_state: Any, batch: TextBatch, key: jax.Array) -> tuple[jax.Array, Any]:
        model_state = jax.tree.map(lambda x: jnp.where(batch.begins, 0, x), model_state)
        logits, model_state = model.apply(params, model_state, batch.tokens[:, :-1], key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:]).mean(), model_state

    return loss


def model_name(config: Config) -> str:
    """The model of the settings, which do not know of every set by its name that it is text."""
    return config.model or TEXT_MODEL


def model_of(config: Config, source: TextSource, compute_dtype: Dtype = None) -> FunctionalModel:
    """The model of the settings."""
    rows, length = batch_size_of(config, source), config.sequence_length
    return make_language_model(model_name(config), BYTES, rows, length, **_sizes(config), compute_dtype=compute_dtype)


def batch_size_of(config: Config, source: TextSource) -> int:
    """A worker's batch size.

    Raises:
      InputError: if the model is not one of text, or the batch does not fit into the
        text that it is drawn from, as far as its size is known.
    """
    check_language_model(model_name(config))
    if config.sampling == "reshuffle" and LANGUAGE_MODELS[model_name(config)].carries:
        raise InputError(
            f"--sampling=reshuffle: the {model_name(config)} reads a text from beginning to end: "
            "use --sampling=shard, or --model=transformer"
        )
    batch_size = BATCH_SIZE if config.batch_size is None else config.batch_size
    if source.train_bytes is None:
        return batch_size
    size, where = _bytes_of_worker(config, source.train_bytes)
    most = windows_in(size, config.sequence_length)
    if config.sampling != "iid" and config.batch_size is None:
        batch_size = max(1, min(batch_size, most))
    if most < (1 if config.sampling == "iid" else batch_size):  # with "iid" windows may overlap
        raise InputError(
            f"--batch_size={batch_size} of --sequence_length={config.sequence_length} does not fit into {where} of "
            f"{size:,} bytes: use a smaller batch, shorter sequences or fewer workers, or --sampling=iid"
        )
    return batch_size


def _bytes_of_worker(config: Config, train_bytes: int) -> tuple[int, str]:
    """(bytes that a worker draws from, what they are)."""
    if config.sampling == "iid":
        return train_bytes, "the training text"
    return shard_size(train_bytes, config.groups * config.workers), "a worker's shard"


def _sizes(config: Config) -> dict[str, Any]:
    """Width, layers and dropout: those of the settings, or the model's usual ones."""
    usual, given = LANGUAGE_MODELS[model_name(config)], (config.model_width, config.model_layers, config.dropout)
    names = ("width", "layers", "dropout")
    return {name: getattr(usual, name) if x is None else x for name, x in zip(names, given, strict=True)}


def _make_evaluate_splits(model: FunctionalModel, texts: Texts, length: int, topology: Topology) -> Evaluate:
    evaluate = make_evaluate_text(model)
    splits = {name: put_evaluation_text(getattr(texts, name), length, topology) for name in SPLITS}

    def evaluate_splits(candidate: Candidate, prefix: str) -> dict[str, float]:
        params, _ = candidate
        figures = {name: evaluate(params, text) for name, text in splits.items()}
        return {f"{prefix}{name}_{key}": float(x) for name, text in figures.items() for key, x in text.items()}

    return evaluate_splits


KIND = Kind(BITS_PER_BYTE, batch_size_of, lambda config, source: model_of(config, source).init, make_task)
