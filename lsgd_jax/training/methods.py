"""From settings to a distributed optimizer: the one place that knows every method by name."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from lsgd_jax.optimizers.data_parallel import data_parallel
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, schedule
from lsgd_jax.optimizers.lsgd import lsgd
from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import InputError

Method = Callable[[optax.GradientTransformation, Config], DistributedOptimizer]


def _lsgd(base: optax.GradientTransformation, config: Config) -> DistributedOptimizer:
    level: dict[str, Any] = {}
    if config.groups > 1:  # one group has only the global leader
        level = {
            "local_pull": config.local_pull,
            "local_period": config.local_period,
            "stale_local_pull": config.stale_local_pull,
        }
    return lsgd(
        base,
        **level,
        global_pull=config.global_pull,
        global_period=config.global_period,
        stale_global_pull=config.stale_global_pull,
        window=config.leader_window,
        wire_dtype=_wire_dtype(config.wire_dtype),
    )


def _data_parallel(base: optax.GradientTransformation, config: Config) -> DistributedOptimizer:
    del config
    return data_parallel(base)


METHODS: dict[str, Method] = {"lsgd": _lsgd, "data_parallel": _data_parallel}

BASE_OPTIMIZERS: dict[str, Callable[[Config], optax.GradientTransformation]] = {
    # Weight decay enters the momentum, as in the authors' runs.
    "sgd": lambda config: optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(config.learning_rate, momentum=config.momentum or None, nesterov=config.momentum > 0),
    ),
    "adamw": lambda config: optax.adamw(config.learning_rate, weight_decay=config.weight_decay),
}


def make_method(config: Config) -> DistributedOptimizer:
    """Makes the distributed optimizer that the settings describe.

    Raises:
      InputError: for an unknown name, or arguments that the method refuses.
    """
    for flag, choices in (("algorithm", METHODS), ("optimizer", BASE_OPTIMIZERS)):
        if getattr(config, flag) not in choices:
            raise InputError(f"unknown --{flag}={getattr(config, flag)}: choose one of {', '.join(sorted(choices))}")
    try:
        method = METHODS[config.algorithm](BASE_OPTIMIZERS[config.optimizer](config), config)
        schedule(method, config.groups)
    except ValueError as error:
        raise InputError(str(error)) from error
    return method


def _wire_dtype(name: str | None) -> jnp.dtype | None:
    if name not in (None, "bfloat16", "float16", "int8"):
        raise InputError(f"unknown --wire_dtype={name}: use bfloat16, float16 or int8, or leave it out")
    return None if name is None else jnp.dtype(name)
