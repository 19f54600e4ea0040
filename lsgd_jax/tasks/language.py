"""Predicting the next token of a text that fits in memory: its next byte, or that of a tokenizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsgd_jax.data.sampling import shard_size
from lsgd_jax.data.sources import Stream, TrainingData, resident
from lsgd_jax.data.text import TextSource
from lsgd_jax.data.text_batches import TextBatch, make_text_batches, put_text_on_devices, windows_in
from lsgd_jax.engine.local_steps import Loss
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import InputError
from lsgd_jax.models import FunctionalModel
from lsgd_jax.models.language import LANGUAGE_MODELS, make_language_model
from lsgd_jax.models.transformer import Remat
from lsgd_jax.tasks.evaluation import OfSplit, SplitEvaluation
from lsgd_jax.tasks.metric import SPLITS, Metric
from lsgd_jax.tasks.perplexity import EvaluationText, make_evaluate_text, put_evaluation_text
from lsgd_jax.tasks.task import Task

# Guessing a byte costs 8 bits: what is worse than that is no better than diverged.
BITS_PER_BYTE = Metric("bits_per_byte", "bits per byte", "", scale=1.0, digits=3, worst=8.0)


def language_modelling(
    source: TextSource,
    batch_size: int,
    *,
    model: str,
    sequence_length: int,
    width: int,
    layers: int,
    dropout: float = 0.0,
    sampling: str = "shard",
    compute_dtype: str = "float32",
    remat: Remat | None = None,
    score_samples: int = 0,
) -> Task:
    """Predicting the next token of a text that fits in memory, which is read now.

    Args:
      source: the text.
      batch_size: windows in a worker's minibatch.
      model: its name, one of `lsgd_jax.models.language.LANGUAGE_MODELS`.
      sequence_length: tokens of a window.
      width: units of a layer.
      layers: how many.
      dropout: share of units that are dropped while training.
      sampling: "shard", each worker its own part of the text; "reshuffle", windows dealt anew each
        epoch; or "iid", any at random.
      compute_dtype: of products while training.
      remat: of a transformer: what is computed again for the gradient.
      score_samples: validation windows by whose loss leaders are elected; 0 for the workers' own minibatches.

    Raises:
      InputError: if the text cannot be read, or is too short.
    """
    texts, vocabulary = source.read(), source.vocabulary.size
    sizes: dict[str, Any] = {"sequence_length": sequence_length, "width": width, "layers": layers, "dropout": dropout}
    network = make_language_model(model, vocabulary, batch_size, **sizes)

    def open_text(topology: Topology, seed: int, steps: int) -> Stream:
        del steps
        size = tokens_of_worker(len(texts.train.tokens), sampling, topology.size)
        check_windows(size, sampling, batch_size, sequence_length)
        carries = LANGUAGE_MODELS[model].carries
        batches = make_text_batches(sampling, size, batch_size, sequence_length, carries=carries)
        return resident(batches, put_text_on_devices(texts.train.tokens, topology, sampling, seed))

    return Task(
        compute_dtype=compute_dtype,
        init=network.init,
        loss=language_loss(
            make_language_model(model, vocabulary, batch_size, **sizes, compute_dtype=compute_dtype, remat=remat)
        ),
        gathers=True,
        train=TrainingData(batch_size, open_text),
        name=source.name,
        unit="tokens",
        units_per_sample=sequence_length,
        metric=BITS_PER_BYTE,
        evaluate=lambda topology: _evaluate_splits(
            make_evaluate_text(network, topology),
            {name: put_evaluation_text(getattr(texts, name), sequence_length, vocabulary, topology) for name in SPLITS},
        ),
        # What is carried belongs to one worker's place in its text: evaluations start without.
        prepare_center=lambda topology, seed: lambda center: (center[0], {}),
        description={"kind": "text", "model": model, "vocabulary": vocabulary, **sizes},
        score_on=first_windows(texts.validation.tokens, sequence_length, score_samples) if score_samples else None,
    )


def first_windows(tokens: np.ndarray, length: int, count: int) -> TextBatch:
    """The first windows of a validation text, side by side."""
    windows = np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(count)])
    return TextBatch(jnp.asarray(windows, jnp.int32), jnp.array(True))


def tokens_of_worker(train_tokens: int, sampling: str, workers: int) -> int:
    """Tokens that a worker draws from."""
    return train_tokens if sampling == "iid" else shard_size(train_tokens, workers)


def check_windows(size: int, sampling: str, batch_size: int, length: int) -> None:
    """Refuses a batch that does not fit into the text that it is drawn from.

    Args:
      size: tokens of that text.
      sampling: with "iid" windows may overlap.
      batch_size: windows in a minibatch.
      length: tokens of a window.

    Raises:
      InputError: telling all three.
    """
    if windows_in(size, length) < (1 if sampling == "iid" else batch_size):
        where = "the training text" if sampling == "iid" else "a worker's shard"
        raise InputError(
            f"--batch_size={batch_size} of --sequence_length={length} does not fit into {where} of "
            f"{size:,} tokens: use a smaller batch, shorter sequences or fewer workers, or --sampling=iid"
        )


def language_loss(model: FunctionalModel) -> Loss:
    """The mean cross-entropy of the next token over a minibatch, in nats.

    What the model carries goes on until its rows begin again. A worker that was lost
    and starts again has the leader's until then.
    """

    def loss(params: Any, model_state: Any, batch: TextBatch, key: jax.Array) -> tuple[jax.Array, Any]:
        model_state = jax.tree.map(lambda x: jnp.where(batch.begins, 0, x), model_state)
        logits, model_state = model.apply(params, model_state, batch.tokens[:, :-1], key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:]).mean(), model_state

    return loss


def _evaluate_splits(evaluate: jax.stages.Wrapped, texts: Mapping[str, EvaluationText]) -> SplitEvaluation:
    def of_split(text: EvaluationText) -> OfSplit:
        return OfSplit(
            figures=lambda candidate: evaluate(candidate[0], text),
            lower=lambda candidate: evaluate.lower(candidate[0], text),
        )

    return SplitEvaluation({name: of_split(text) for name, text in texts.items()})
