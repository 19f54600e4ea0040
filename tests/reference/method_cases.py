"""Every method with several settings, in JAX and in NumPy."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy_methods
import optax
from jax import lax
from numpy_lsgd import Base, Sgd
from regression import GROUPS, QUICK, Batch, Problem, in_lanes, local_step

import lsgd_jax
from lsgd_jax import WORKER, Axes, DistributedOptimizer, periodic

SGD = Sgd(learning_rate=0.02, momentum=0.9, nesterov=True, weight_decay=0.01)
PLAIN = Sgd(learning_rate=0.02)
DECAYED = Sgd(learning_rate=0.02, weight_decay=0.05)
SLOW = Sgd(learning_rate=0.002, momentum=0.9, nesterov=True, weight_decay=0.01)  # for sums over all workers
REFERENCES: dict[str, Callable[..., numpy_methods.Independent]] = {
    "independent": numpy_methods.Independent,
    "local_sgd": numpy_methods.LocalSgd,
    "easgd": numpy_methods.Easgd,
    "eamsgd": numpy_methods.Eamsgd,
    "downpour": numpy_methods.Downpour,
    "diloco": numpy_methods.Diloco,
    "grawa": numpy_methods.Grawa,
    "dppf": numpy_methods.Dppf,
}


def compiled_once(base: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same, fast where it is called step by step."""
    return optax.GradientTransformation(base.init, jax.jit(base.update))


ADAM = compiled_once(optax.adam(0.01))
ADAM_AND_ADAMW = compiled_once(
    optax.partition({"w": optax.adam(0.01), "b": optax.adamw(0.02, weight_decay=0.1)}, {"w": "w", "b": "b"})
)


@dataclass(frozen=True, eq=False)
class Case:
    """A method with its settings; `groups` is None for a flat set of workers."""

    method: str
    arguments: dict[str, Any]
    base: Base = SGD
    groups: int | None = GROUPS

    @cached_property
    def optimizer(self) -> DistributedOptimizer:
        arguments = {name: in_optax(x) if name == "outer" else x for name, x in self.arguments.items()}
        return getattr(lsgd_jax, self.method)(in_optax(self.base), **arguments)

    def team(self, problem: Problem, *, reseed: bool = False) -> numpy_methods.Independent:
        return REFERENCES[self.method](problem.starts, self.base, self.groups or 1, reseed, **self.arguments)


def in_optax(base: Base) -> optax.GradientTransformation:
    """The same optimizer in optax."""
    if not isinstance(base, Sgd):
        return base
    sgd = optax.sgd(base.learning_rate, momentum=base.momentum or None, nesterov=base.nesterov)
    return optax.chain(optax.add_decayed_weights(base.weight_decay), sgd)


CASES = {
    "independent": Case("independent", {}),
    "local_sgd, 3 and 6": Case("local_sgd", {"local_period": 3, "global_period": 6}),
    "local_sgd, 1 and 7": Case("local_sgd", {"local_period": 1, "global_period": 7}),
    "local_sgd, one group": Case("local_sgd", {"local_period": 4, "global_period": 7}, groups=1),
    "local_sgd, 1, flat": Case("local_sgd", {"global_period": 1}, groups=None),
    "easgd, 3": Case("easgd", {"beta": 0.43, "period": 3}),
    "easgd, 7, beta of 1, flat": Case("easgd", {"beta": 1.0, "period": 7}, groups=None),
    "eamsgd, 3": Case("eamsgd", {"momentum": 0.7, "beta": 0.5, "period": 3}, DECAYED),
    "eamsgd, 7, no weight decay": Case("eamsgd", {"momentum": 0.9, "beta": 1.0, "period": 7}, PLAIN),
    "downpour, 1": Case("downpour", {"period": 1}, SLOW),
    "downpour, 3": Case("downpour", {"period": 3}, SLOW),
    "downpour, 7, flat": Case("downpour", {"period": 7}, SLOW, None),
    "diloco, 1, Adam": Case("diloco", {"outer": ADAM, "period": 1}),
    "diloco, 3, Nesterov": Case("diloco", {"outer": Sgd(0.3, 0.5, nesterov=True), "period": 3}),
    "diloco, 7, weight decay": Case("diloco", {"outer": Sgd(0.7, 0.9, weight_decay=0.1), "period": 7}),
    "grawa, 1, window of 1": Case("grawa", {"pull": 0.2, "period": 1, "window": 1}),
    "grawa, 3": Case("grawa", {"pull": 0.4, "period": 3, "window": 4}),
    "grawa, 7, pull of 1, flat": Case("grawa", {"pull": 1.0, "period": 7, "window": 61}, groups=None),
    "dppf, 1, no pull": Case("dppf", {"pull": 0.0, "push": 0.02, "period": 1}),
    "dppf, 3": Case("dppf", {"pull": 0.4, "push": 0.7, "period": 3}),
    "dppf, 7, pull of 1": Case("dppf", {"pull": 1.0, "push": 0.3, "period": 7}),
}
# One of each method, among 2 groups: with a period of 3 and nothing at its limit.
TYPICAL = {
    "independent": CASES["independent"],
    "local_sgd": CASES["local_sgd, 3 and 6"],
    "easgd": CASES["easgd, 3"],
    "eamsgd": CASES["eamsgd, 3"],
    "downpour": CASES["downpour, 3"],
    "diloco": CASES["diloco, 3, Nesterov"],
    "grawa": CASES["grawa, 3"],
    "dppf": CASES["dppf, 3"],
}


class Trained(NamedTuple):
    """What all workers went through: leaves [workers, steps, ...], and [workers, ...] in the state at the end."""

    trajectory: Any
    centers: Any
    state: Any


@cache
def trainer(case: Case) -> Callable[[Problem], Trained]:
    """Trains with the case through `periodic`, in lanes of one device."""
    flat = case.groups is None
    run = partial(_with_centers, case.optimizer, Axes(group=()) if flat else Axes())
    mapped = jax.jit(jax.vmap(run, axis_name=WORKER), compiler_options=QUICK) if flat else in_lanes(run, case.groups)
    return lambda problem: jax.device_get(mapped(problem.initial, problem.batches))


def _with_centers(optimizer: DistributedOptimizer, axes: Axes, params: Any, batches: Batch) -> Trained:
    """What one worker sees."""
    transform = periodic(optimizer, group_axis=axes.group[0] if axes.group else None)

    def step(carry: Any, batch: Batch) -> Any:
        params, state = local_step(transform, *carry, batch)
        return (params, state), (params, optimizer.center(params, state.inner, axes))

    (_, state), (trajectory, centers) = lax.scan(step, (params, transform.init(params)), batches)
    return Trained(trajectory, centers, state)
