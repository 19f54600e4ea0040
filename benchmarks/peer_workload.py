"""What both sides of `peer_torch.py` train: ours, and its description for the other side."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import text_workload
import workload

MODELS = ("cnn7", *text_workload.SIZES)


def ours(model: str, workers: int, period: int, method: str, dtype: str) -> workload.Training:
    """The compiled train step: workers that share a device step one after the other."""
    settings: dict[str, Any] = {
        "compute_dtype": dtype,
        "lanes": "sequential",
        "devices": jax.devices(),
        "period": period,
    }
    if model == "cnn7":
        return workload.train_step(model, 1, workers, **settings)
    return text_workload.text_train_step(model, workers, method=method, **settings)


def description(model: str, workers: int, period: int, dtypes: Sequence[str]) -> str:
    """What the other side is to do, as JSON."""
    common = {"model": model, "workers": workers, "period": period, "dtypes": list(dtypes)}
    if model == "cnn7":
        return json.dumps({**common, "batch_size": workload.BATCH_SIZE})
    of_text = {
        **text_workload.SIZES[model]._asdict(),
        "batch_size": text_workload.BATCH_SIZE,
        "vocabulary": text_workload.VOCABULARY,
        "length": text_workload.LENGTH,
        "learning_rate": text_workload.LEARNING_RATE,
        "weight_decay": text_workload.WEIGHT_DECAY,
    }
    return json.dumps({**common, **of_text})


def unit(model: str) -> str:
    """What is counted."""
    return "tokens" if model in text_workload.SIZES else "images"


def units_a_step(model: str) -> int:
    """How many a worker sees in a step."""
    return text_workload.BATCH_SIZE * text_workload.LENGTH if model in text_workload.SIZES else workload.BATCH_SIZE


def check_parameters(model: str, theirs: int) -> None:
    """Raises RuntimeError if the networks of both sides are not of the same size."""
    expected = (workload if model == "cnn7" else text_workload).parameter_count(model)
    if model == "lstm":  # nn.LSTM adds two bias vectors where we have one
        sizes = text_workload.SIZES[model]
        expected += sizes.layers * 4 * sizes.width
    if theirs != expected:
        raise RuntimeError(f"{model} has {theirs:,} parameters on the other side, not {expected:,}")
