"""Layer 2: what a distributed optimizer is.

A small set of pure functions of *one worker's* parameters and state, over named
axes. They run unchanged on devices of a mesh, on lanes of `vmap`, or on both.
`periodic` makes an optax transform of one; the train step drives one directly.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lsgd_jax.collectives import GROUP, WORKER, Leader, check_bound

# Steps are counted in int32.
LARGEST_COUNT = 2**31 - 1


class Axes(NamedTuple):
    """The bound axis names that make up each logical axis, outermost first.

    A flat set of workers has `group=()`: it is one group.
    """

    group: tuple[str, ...] = (GROUP,)
    worker: tuple[str, ...] = (WORKER,)

    def names(self, logical: tuple[str, ...]) -> tuple[str, ...]:
        """The bound names of some logical axes: of (GROUP, WORKER), say."""
        return (self.group if GROUP in logical else ()) + (self.worker if WORKER in logical else ())

    @property
    def all(self) -> tuple[str, ...]:
        """The bound names of all workers of all groups."""
        return self.group + self.worker


class Outcome(NamedTuple):
    """What a communication did to one worker.

    Attributes:
      params: the parameters after it.
      state: the method's state after it.
      leader: who was elected, or None for a method without leaders.
      restarted: bool[], whether the worker's parameters were not finite and have
        been replaced. `DistributedOptimizer.restart` then renews its state.
    """

    params: optax.Params
    state: Any
    leader: Leader | None
    restarted: jax.Array


class Communication(NamedTuple):
    """One kind of communication of a method, in two halves.

    Attributes:
      period: local steps of a worker between two of them.
      axes: the logical axes it crosses: (WORKER,) inside each group, or
        (GROUP, WORKER) among all workers.
      begin: `(params, state, score, axis_name) -> heard`: all that is sent, and a pytree of what
        arrives. `score` is the worker's float[] score and `axis_name` the bound names of `axes`: mesh
        axes and lanes, all of them to be used. `lax.psum`, `lax.pmin` and `lsgd_jax.collectives` take
        them; `lax.ppermute` knows no lanes.
      finish: `(params, state, heard, axis_name) -> Outcome`: what the worker makes of what it has
        heard. It sends nothing.
      offset: steps by which it comes after those that the period divides.
      whole: of one that moves a part of the parameters, what takes its place in the train step where a worker is
        lost, which needs all of them; else None.
      late: what `overlapped` makes of it: "as_is", a pull that may be toward what was; "mixed", parameters that are
        replaced, for which what was learned since would be lost; or "never".
      delay: local steps for which what is heard is kept in the state, and changes nothing yet; what makes it take
        effect is a communication of its own, which sends nothing.
    """

    period: int
    axes: tuple[str, ...]
    begin: Callable[[Any, Any, jax.Array, tuple[str, ...]], Any]
    finish: Callable[[Any, Any, Any, tuple[str, ...]], Outcome]
    offset: int = 0
    whole: Any = None
    late: Literal["as_is", "mixed", "never"] = "as_is"
    delay: int = 0

    @property
    def ahead(self) -> bool:
        """Whether it may be under way while local steps are taken."""
        return self.delay > 0

    def due(self, step: Any) -> Any:
        """Whether it takes place after this local step, counted from 1."""
        return (step - self.offset) % self.period == 0

    def apply(self, params: Any, state: Any, score: jax.Array, axis_name: tuple[str, ...]) -> Outcome:
        """Both halves, one after the other."""
        return self.finish(params, state, self.begin(params, state, score, axis_name), axis_name)

    @property
    def level(self) -> str:
        """ "global" if it crosses groups, "local" if it stays inside one."""
        return "global" if GROUP in self.axes else "local"


class Update(Protocol):
    """`update(grads, state, params, value=loss) -> (updates, state)`."""

    def __call__(
        self, grads: optax.Updates, state: Any, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, Any]: ...


def keep_gradients(grads: Any, axes: Axes) -> Any:
    """The `reduce_gradients` of methods whose workers step independently: the identity."""
    del axes
    return grads


class DistributedOptimizer(NamedTuple):
    """A distributed optimizer: `lsgd` and those beside it.

    Attributes:
      init: `(params, axes) -> state`, of one worker. It may communicate, once: a
        center starts as the mean of the workers.
      update: one local step; never communicates.
      center: `(params, state, axes) -> params`, the model to evaluate.
      restart: `(params, state) -> state`, of a worker that starts again from
        `params`: the base optimizer's state is fresh, what it has received from
        others stays.
      communications: those that happen now and then, in the order in which they
        are applied when several are due.
      reduce_gradients: `(grads, axes) -> grads`; `keep_gradients` but for methods
        that average gradients.
      window: how many losses make a score, or None if the method needs no score.
      arguments: `(name, value)` of the factory that has made it, the base optimizer aside; for people who compare runs.
    """

    init: Callable[[Any, Axes], Any]
    update: Update
    center: Callable[[Any, Any, Axes], Any]
    restart: Callable[[Any, Any], Any]
    communications: tuple[Communication, ...] = ()
    reduce_gradients: Callable[[Any, Axes], Any] = keep_gradients
    window: int | None = None
    arguments: tuple[tuple[str, int | float | str | None], ...] = ()


def update_of(base: optax.GradientTransformation) -> Update:
    """The `update` of methods whose state is a NamedTuple with the base optimizer's state as `base`."""
    base = optax.with_extra_args_support(base)

    def update(
        grads: optax.Updates, state: Any, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        updates, base_state = base.update(grads, state.base, params, value=value, **extra)
        return updates, state._replace(base=base_state)

    return update


def restart_of(base: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    """Their `restart`: fresh is the base optimizer's state alone."""
    return lambda params, state: state._replace(base=base.init(params))


def scalar_like(params: optax.Params, axes: Axes) -> jax.Array:
    """float32[]: a zero that varies over mapped axes as the parameters do, for state that is made of none of them."""
    leaves = jax.tree.leaves(params)
    if not leaves:
        check_bound(axes.all)
    like = leaves[0] if leaves else lax.axis_index(axes.all)
    return jnp.full_like(like, 0, shape=(), dtype=jnp.float32)


def communications_of(method: DistributedOptimizer, groups: int) -> tuple[Communication, ...]:
    """The communications that happen with this many groups, in the order in which they do where several are due.

    Those inside groups come first, those that are `ahead` last. One group has no level of its own: only what crosses
    all workers is left.

    Raises:
      ValueError: if a period is no whole number of at least 1, shorter than the delay, or a global one no multiple
        of a local one.
    """
    for communication in method.communications:
        if not isinstance(communication.period, int):
            raise ValueError(f"a communication's period is {communication.period!r}: it must be a whole number")
        check_count("a communication's period", communication.period)
    everywhere = tuple(c for c in method.communications if c.level == "global")
    inside = tuple(c for c in method.communications if c.level == "local") if groups > 1 else ()
    for communication in inside + everywhere:
        if communication.delay > communication.period:
            raise ValueError(
                f"delay={communication.delay} is longer than the period of {communication.period} steps: "
                "use at most that"
            )
    for outer in everywhere:
        for inner in inside:
            if outer.period % inner.period:
                raise ValueError(
                    f"global_period={outer.period} is no multiple of local_period={inner.period}: "
                    "with several groups it must be, since a global communication follows a local one"
                )
    return tuple(sorted(inside + everywhere, key=lambda c: c.ahead))


def is_overlapped(method: DistributedOptimizer) -> bool:
    """Whether communications of the method are under way while local steps are taken."""
    return any(c.ahead for c in method.communications)


def steps_between(method: DistributedOptimizer, groups: int) -> int:
    """Local steps from one of the steps after which a communication may be due to the next; 0 where none ever is."""
    return math.gcd(*(steps for c in communications_of(method, groups) for steps in (c.period, c.offset)))


def check_fraction(name: str, fraction: float) -> float:
    """The number. Raises ValueError unless it lies in [0, 1]."""
    if not 0 <= check_number(name, fraction) <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {fraction}")
    return float(fraction)


def check_count(name: str, count: float) -> int:
    """The number. Raises ValueError unless it is a whole one of at least 1 that a counter of steps can reach."""
    if not check_number(name, count) >= 1 or count % 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {count}")
    if count > LARGEST_COUNT:
        raise ValueError(f"{name} must be at most {LARGEST_COUNT:,}, got {count}")
    return int(count)


def check_number(name: str, number: Any) -> float:
    """The number. Raises ValueError if it is none, or not known when the method is made."""
    if isinstance(number, jax.core.Tracer):
        raise ValueError(
            f"{name} is traced: make the method with numbers, outside of jax.jit, jax.vmap and jax.grad; "
            "a pull that changes with the step is a schedule of leader_pull"
        )
    real = type(number) in (int, float) or jnp.issubdtype(np.asarray(number).dtype, jnp.number)
    if np.ndim(number) or not real or np.iscomplexobj(number):
        raise ValueError(f"{name} must be a number, got {number!r}")
    return float(number)
