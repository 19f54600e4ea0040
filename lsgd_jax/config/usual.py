"""Settings that suit a kind of data, for those that are not given: chosen by runs, which results/training.md tells."""

from collections.abc import Mapping
from typing import Any

from lsgd_jax.config.config import Config
from lsgd_jax.errors import InputError

# In place of those of `Config`, which suit the digits.
USUAL: dict[str, dict[str, Any]] = {
    "other images": {"learning_rate": 0.02, "local_period": 4, "global_period": 16},
    "text": {"optimizer": "adamw", "learning_rate": 1e-3, "local_period": 4, "global_period": 16},
}
# A setting keeps the default of `Config` where another one is given: a rate suits its optimizer, and one period is a
# multiple of the other.
DECIDED_BY = {"learning_rate": "optimizer", "local_period": "global_period", "global_period": "local_period"}


def usual_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which a kind of data differs from `Config`, but for those that are given or follow from them."""
    usual = USUAL.get(kind_of_data(given), {})
    return {name: usual[name] for name in usual if not {name, DECIDED_BY.get(name)} & set(given)}


def kind_of_data(given: Mapping[str, Any]) -> str:
    """ "digits", "other images" or "text", or "task" for a user's own; nothing is downloaded."""
    from lsgd_jax.models.language import LANGUAGE_MODELS  # only now: --help cannot wait for JAX

    if given.get("task") is not None:
        return "task"
    if given.get("text_file") is not None or given.get("model") in LANGUAGE_MODELS:
        return "text"
    if (name := given.get("dataset", Config.dataset)) == Config.dataset:
        return "digits"
    return "text" if _is_text_set(name, given.get("data_dir")) else "other images"


def _is_text_set(name: str, data_dir: str | None) -> bool:
    from lsgd_jax.data.prepared import find_builder
    from lsgd_jax.data.text import is_text

    try:
        return is_text(find_builder(name, data_dir))
    except InputError:  # which is told when the set is needed
        return False
