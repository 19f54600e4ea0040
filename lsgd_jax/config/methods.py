"""The methods that flags can name: the one place that knows them all.

A new method is a file in `lsgd_jax/optimizers/`, a name in `lsgd_jax/public.py` and in `lsgd_jax/__init__.py`, and an
entry in `METHODS`, after the settings in `MethodSettings` that no other method has had. Its flags and its line in
--help, its place in comparisons and its style in figures follow. Nothing here needs JAX.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lsgd_jax.config.setting import setting
from lsgd_jax.trainer.colours import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

_of_methods = functools.partial(setting, "communication")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """The settings of all methods; their help is preceded by the names of the methods that use them."""

    local_pull: float = _of_methods(0.1, "pull toward the group's leader, in [0, 1]")
    global_pull: float = _of_methods(0.1, "pull toward the leader of all, or the mean, in [0, 1]")
    stale_local_pull: float = _of_methods(0.0, "pull of every step toward the group's last leader, in [0, 1]")
    stale_global_pull: float = _of_methods(0.0, "pull of every step toward the last leader of all, in [0, 1]")
    local_period: int = _of_methods(16, "steps between two communications inside a group")
    global_period: int = _of_methods(64, "steps between two communications of all, a multiple of the local period")
    leader_window: int = _of_methods(10, "batches in a score, a mean of losses or of gradient norms")
    election: str = _of_methods("score", "score, the lowest leads, or random: what electing is worth")
    temperature: float = _of_methods(0.0, "0: a pull to the leader; or to a mean, by exp(-score / it)")
    wire_dtype: str | None = _of_methods(
        None, "bfloat16, float16 or int8, how a leader's model travels (default: as it is)"
    )
    beta: float = _of_methods(0.9, "how far the center moves to the workers, in [0, 1]")
    outer_learning_rate: float = _of_methods(0.7, "of the outer optimizer, SGD")
    outer_momentum: float = _of_methods(0.9, "its Nesterov momentum; 0 for none")
    push: float = _of_methods(0.1, "length of the push away from the mean")


SETTINGS = frozenset(field.name for field in dataclasses.fields(MethodSettings))
# One group has no use for these.
OF_GROUPS = frozenset({"local_pull", "local_period", "stale_local_pull"})


class Style(NamedTuple):
    """A colour (one for methods of a kind), a marker and a line style of Matplotlib."""

    colour: str
    marker: str
    line: Any


class Method(NamedTuple):
    """A method that flags can name.

    Attributes:
      factory: what makes it, a name at `lsgd_jax`: `(base, **arguments) -> DistributedOptimizer`.
      summary: its line in --help.
      style: how figures draw it: no two methods have the same marker.
      arguments: of the factory, by name the settings that they are.
      adapt: makes of these what the factory takes, if it takes something else.
      own_momentum: whether the momentum is the method's, and the base optimizer has none.
    """

    factory: str
    summary: str
    style: Style
    arguments: Mapping[str, str] = {}
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = lambda arguments: arguments
    own_momentum: bool = False


def _with_outer_sgd(arguments: dict[str, Any]) -> dict[str, Any]:
    import optax

    momentum = arguments.pop("outer_momentum")
    outer = optax.sgd(arguments.pop("outer_learning_rate"), momentum=momentum or None, nesterov=momentum > 0)
    return {**arguments, "outer": outer}


_PERIOD = {"period": "global_period"}

METHODS: dict[str, Method] = {
    "lsgd": Method(
        "lsgd",
        "now and then a pull to the worker that does best, in the group and of all (the paper)",
        Style(BLACK, "o", "-"),
        {
            "local_pull": "local_pull",
            "global_pull": "global_pull",
            "local_period": "local_period",
            "global_period": "global_period",
            "stale_local_pull": "stale_local_pull",
            "stale_global_pull": "stale_global_pull",
            "window": "leader_window",
            "wire_dtype": "wire_dtype",
            "election": "election",
            "temperature": "temperature",
        },
    ),
    "easgd": Method(
        "easgd",
        "workers and a center pull at each other",
        Style(BLUE, "s", "-"),
        {**_PERIOD, "beta": "beta"},
    ),
    "eamsgd": Method(
        "eamsgd",
        "easgd with the momentum of its own paper",
        Style(BLUE, "D", "--"),
        {**_PERIOD, "beta": "beta", "momentum": "momentum"},
        own_momentum=True,
    ),
    "downpour": Method(
        "downpour",
        "a center adds up what all workers add up, and they start again from it",
        Style(VERMILLION, "^", "-"),
        _PERIOD,
    ),
    "local_sgd": Method(
        "local_sgd",
        "workers become their mean, in the group and of all",
        Style(GREEN, "v", "-"),
        {"local_period": "local_period", "global_period": "global_period"},
    ),
    "diloco": Method(
        "diloco",
        "an outer optimizer takes the workers' mean displacement for a gradient",
        Style(GREEN, "P", "--"),
        {**_PERIOD, "outer_learning_rate": "outer_learning_rate", "outer_momentum": "outer_momentum"},
        _with_outer_sgd,
    ),
    "data_parallel": Method("data_parallel", "gradients are averaged in each step", Style(ORANGE, "X", "-")),
    "grawa": Method(
        "grawa",
        "a pull to the mean, in which workers with small gradients weigh more",
        Style(PURPLE, "<", "-"),
        {**_PERIOD, "pull": "global_pull", "window": "leader_window"},
    ),
    "dppf": Method(
        "dppf",
        "a pull to the mean, and a push of constant length away from it",
        Style(SKY, ">", "--"),
        {**_PERIOD, "pull": "global_pull", "push": "push"},
    ),
    "sgd": Method("independent", "one worker", Style(GREY, "*", "-.")),
    "none": Method("independent", "workers that never communicate", Style(GREY, "h", ":")),
}


def users_of(setting: str) -> tuple[str, ...]:
    """The methods that use a setting."""
    return tuple(name for name, method in METHODS.items() if setting in method.arguments.values())


def unused_by(algorithm: str, given: Iterable[str]) -> tuple[str, ...]:
    """Which of some settings are of methods, and not of this one; of a method of a user's own, all of them."""
    used = METHODS[algorithm].arguments.values() if algorithm in METHODS else ()
    return tuple(name for name in given if name in SETTINGS and name not in used)


def arguments_from(method: Method, config: Any) -> dict[str, Any]:
    """The arguments of a method's factory. One group has only the global level.

    Args:
      method: an entry of `METHODS`.
      config: the settings of a run, a `lsgd_jax.config.config.Config`.
    """
    used = {
        argument: getattr(config, setting)
        for argument, setting in method.arguments.items()
        if config.groups > 1 or setting not in OF_GROUPS
    }
    return method.adapt(used)
