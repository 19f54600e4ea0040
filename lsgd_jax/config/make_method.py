"""From settings to a distributed optimizer."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import lsgd_jax
from lsgd_jax.config.config import Config
from lsgd_jax.config.methods import METHODS, arguments_from
from lsgd_jax.config.own_code import arguments_of, is_own, load_function
from lsgd_jax.engine.schedules import follow_factor
from lsgd_jax.errors import InputError, first_line
from lsgd_jax.optimizers.any_pytree import floating
from lsgd_jax.optimizers.compressed import compressed
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, communications_of
from lsgd_jax.optimizers.fragments import fragments, parts_of
from lsgd_jax.optimizers.overlapped import overlapped


def _sgd(rate: float, momentum: float, decay: float) -> optax.GradientTransformation:
    # Weight decay enters the momentum, as in the authors' runs.
    return optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(rate, momentum=momentum or None, nesterov=momentum > 0)
    )


# By name: (learning rate, momentum, weight decay) to an optax optimizer.
BASE_OPTIMIZERS: dict[str, Callable[[float, float, float], optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adam": lambda rate, momentum, decay: optax.chain(optax.add_decayed_weights(decay), optax.adam(rate)),
    "adamw": lambda rate, momentum, decay: optax.adamw(rate, weight_decay=decay),
    "lars": lambda rate, momentum, decay: optax.lars(rate, weight_decay=decay, momentum=momentum),
}


def base_optimizer(config: Config, momentum: float | None = None) -> optax.GradientTransformationExtraArgs:
    """The optimizer of the local steps. `momentum` overrides that of the settings."""
    make = BASE_OPTIMIZERS[config.optimizer]
    base = make(learning_rate(config), config.momentum if momentum is None else momentum, config.weight_decay)
    # First of all: weight decay is no part of the gradient that is clipped.
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    return optax.chain(*clip, base, follow_factor())


def learning_rate(config: Config) -> float:
    """The full learning rate, scaled to the number of workers where that is asked for.

    That is for large batches: Goyal et al., "Accurate, Large Minibatch SGD: Training
    ImageNet in 1 Hour", 2017, arXiv:1706.02677, section 2.1.
    """
    return config.learning_rate * (config.groups * config.workers if config.scale_learning_rate else 1)


def make_method(config: Config) -> DistributedOptimizer:
    """Makes the distributed optimizer that the settings describe.

    Raises:
      InputError: for an unknown name, or arguments that the method refuses.
    """
    own = is_own(config.algorithm) and config.algorithm not in METHODS
    for flag, choices in (("algorithm", METHODS), ("optimizer", BASE_OPTIMIZERS)):
        if getattr(config, flag) not in choices and not (own and flag == "algorithm"):
            raise InputError(f"unknown --{flag}={getattr(config, flag)}: choose one of {', '.join(sorted(choices))}")
    if own:
        return _wrapped(_own_method(config), config)
    if config.method_args:
        raise InputError(f"--method_args is for a method of your own: {config.algorithm} has flags")
    entry = METHODS[config.algorithm]
    base = base_optimizer(config, momentum=0.0 if entry.own_momentum else None)
    try:
        method = getattr(lsgd_jax, entry.factory)(base, **arguments_from(entry, config))
        communications_of(method, config.groups)
    except ValueError as error:
        raise InputError(str(error)) from error
    return _wrapped(method, config)


def check_wrapped(config: Config, params: Any) -> None:
    """Refuses parameters, arrays or their shapes, that cannot be sent as the settings say.

    Raises:
      InputError: telling why.
    """
    try:
        sizes = jax.tree.map(lambda leaf: leaf.size, floating(params, params))
        parts_of(sizes, config.fragments, strided=False)
    except ValueError as error:
        raise InputError(f"--fragments={config.fragments}: {error}") from error


def _wrapped(method: DistributedOptimizer, config: Config) -> DistributedOptimizer:
    """The method, sending as the settings say.

    Raises:
      InputError: if it cannot.
    """
    few = {"compress": config.compress, "compress_top_k": config.compress_top_k}
    flag = " ".join(f"--{name}={value}" for name, value in few.items() if value is not None)
    try:
        if flag:
            method = compressed(method, bits=config.compress, top_k=config.compress_top_k)
        flag = f"--fragments={config.fragments}"
        if config.fragments > 1:
            method = fragments(method, config.fragments)
        flag = f"--overlap={config.overlap}"
        if config.overlap is not None:
            method = overlapped(method, delay=config.overlap, keep=config.overlap_keep)
            communications_of(method, config.groups)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error
    return method


def _own_method(config: Config) -> DistributedOptimizer:
    """That of a user's function.

    Raises:
      InputError: if it makes none, or one whose periods do not fit together.
    """
    factory, flag = load_function("algorithm", config.algorithm), f"--algorithm={config.algorithm}"
    arguments = arguments_of(factory, config.method_args, flag)
    try:
        method = factory(base_optimizer(config), **arguments)
    except (TypeError, ValueError) as error:  # it checks its arguments as ours do
        raise InputError(f"{flag}: {first_line(error)}") from error
    if not isinstance(method, DistributedOptimizer):
        raise InputError(f"{flag}: it gives {type(method).__name__}: return a lsgd_jax.DistributedOptimizer")
    try:
        communications_of(method, config.groups)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error
    return method
