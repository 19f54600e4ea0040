"""Going on with another number of workers than a checkpoint has.

Fewer: those with the best scores are kept. More: new ones start from the leader of their group.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from lsgd_jax.cluster import processes
from lsgd_jax.collectives import GROUP, WORKER
from lsgd_jax.engine.numerics import wrap_keys
from lsgd_jax.engine.state import SHARED, TrainState, shared_fields, state_shardings
from lsgd_jax.engine.topology import Topology
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.optimizers.finite import all_finite
from lsgd_jax.optimizers.window import window_mean
from lsgd_jax.trainer.checkpoints import Checkpoints
from lsgd_jax.trainer.newcomers import OVER_WORKERS, begin_new
from lsgd_jax.trainer.run import Run


class FreshFields(NamedTuple):
    """What of a state depends on the number of workers, as if the run began with the new ones.

    Attributes:
      keys: key[groups, workers].
      learning_rate: float32[], which may be scaled by that number.
      opt_state: fields of the optimizer's state that the old one lacks: with one group there is no local leader.
    """

    keys: jax.Array
    learning_rate: jax.Array
    opt_state: dict[str, Any]


class Places(NamedTuple):
    """Who is where among the new workers; leaves have their shape, (groups, workers).

    Attributes:
      source: int, the rank that each had among the old ones, or of the one that it starts from.
      new: bool, whether it starts from another.
    """

    source: np.ndarray
    new: np.ndarray


def restore(run: Run, checkpoints: Checkpoints, step: int, shape: tuple[int, int]) -> TrainState:
    """The state of a run's workers, from a checkpoint of others, which is read whole in every process.

    Args:
      run: what is to be gone on with.
      checkpoints: where to look.
      step: of the checkpoint.
      shape: its (groups, workers).
    """
    old = checkpoints.restore_on_host(step, run.state_shapes(shape))
    scores = np.asarray(jax.vmap(jax.vmap(window_mean))(old.losses))
    places = place(scores, _healthy(old.params), run.topology.shape)
    for line in changes(places, shape):
        processes.say(line)
    fresh = run.init_state()
    fresh_fields = FreshFields(fresh.keys, fresh.learning_rate, unknown_fields(old.opt_state, fresh.opt_state))
    del fresh  # its parameters would take memory
    return settle(old, fresh_fields, places, run.method, run.topology)


def place(scores: np.ndarray, healthy: np.ndarray, shape: tuple[int, int]) -> Places:
    """Finds a place for the best workers, and workers for all places.

    As many as there is room for are kept, those with the lowest scores; who has none counts
    as the worst, and who is not healthy is not kept where anybody is. They stay in their groups as
    far as these exist and have room, the best first; the others fill what is left. A new worker
    starts from the best in its group, or of all where that is empty. Ties go to the lowest rank.

    Args:
      scores: float[groups, workers] of the old ones.
      healthy: bool[groups, workers], whether their parameters are finite.
      shape: (groups, workers) of the new ones.
    """
    groups, workers = shape
    ranks = np.arange(scores.size)
    able = healthy.ravel() if healthy.any() else np.ones(scores.size, bool)
    order = ranks[np.lexsort((ranks, np.where(np.isfinite(scores), scores, np.inf).ravel()))]
    kept = [int(rank) for rank in order if able[rank]][: groups * workers]  # the best first

    members: list[list[int]] = [[] for _ in range(groups)]
    homeless = []
    for rank in kept:
        group = rank // scores.shape[1]
        if group < groups and len(members[group]) < workers:
            members[group].append(rank)
        else:
            homeless.append(rank)
    for rank in homeless:
        next(group for group in members if len(group) < workers).append(rank)

    source, new = np.empty(shape, int), np.zeros(shape, bool)
    for j, group in enumerate(members):
        leader = min(group or kept, key=kept.index)
        count = len(group)
        source[j, :count], source[j, count:], new[j, count:] = sorted(group), leader, True
    return Places(source, new)


def _healthy(params: Any) -> np.ndarray:
    """bool[groups, workers]: whose parameters, NumPy arrays, are finite; one worker at a time is on a device."""
    shape = jax.tree.leaves(params)[0].shape[:2]
    finite = [all_finite(jax.tree.map(lambda x, at=at: x[at], params)) for at in np.ndindex(shape)]
    return np.array(finite, bool).reshape(shape)


def settle(
    old: TrainState, fresh: FreshFields, places: Places, method: DistributedOptimizer, topology: Topology
) -> TrainState:
    """The state of the new workers, on their devices.

    A worker that is kept takes everything along, its key and the number of its steps too. A new one has the
    parameters and model state of the one that it starts from, a fresh optimizer state and no losses, as a
    worker that was lost and starts again; but where gradients are shared in each step all have to stay equal,
    and it takes the optimizer's state too. Shards of the data are dealt anew; what a language model carries along
    a text is another text's until its rows begin again. With `downpour` what the one that it starts from has not
    pushed yet is pushed twice.

    Args:
      old: of the old workers, NumPy arrays; `keys` are raw.
      fresh: what else the new ones need.
      places: who is where.
      method: of the new ones.
      topology: where they live.
    """

    def taken(leaf: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """A leaf of the old workers, in the places of the new; each process puts those of its own."""
        flat = leaf.reshape(-1, *leaf.shape[2:])
        shape = (*topology.shape, *leaf.shape[2:])

        def of_device(index: Any) -> np.ndarray:
            return flat[(places.source[index[:2]], *index[2:])]

        return jax.make_array_from_callback(shape, sharding, of_device)

    shared = jax.device_put(shared_fields(old), topology.replicated)
    own = {name: getattr(old, name) for name in TrainState._fields if name not in SHARED}
    kept = TrainState(**jax.tree.map(taken, own, topology.of_workers(own)), **shared)
    kept = kept._replace(
        keys=wrap_keys(kept.keys),
        opt_state=with_fields(kept.opt_state, fresh.opt_state) if fresh.opt_state else kept.opt_state,
        learning_rate=fresh.learning_rate,
    )
    new = processes.put(places.new, topology.per_worker)
    begin = jax.jit(_begin_new(method), donate_argnums=0, out_shardings=state_shardings(topology, kept))
    return begin(kept, fresh.keys, new)


def _begin_new(method: DistributedOptimizer) -> Any:
    """Makes `(state, fresh keys, new) -> state`, in which those that are new have begun."""

    def begin(state: TrainState, keys: jax.Array, new: jax.Array) -> TrainState:
        axes = (OVER_WORKERS, 0, 0)
        of_group = jax.vmap(functools.partial(begin_new, method), axes, OVER_WORKERS, axis_name=WORKER)
        over_workers = jax.vmap(of_group, axes, OVER_WORKERS, axis_name=GROUP)
        return over_workers(state, keys, new)

    return begin


def unknown_fields(old: Any, fresh: Any) -> dict[str, Any]:
    """The fields of a fresh optimizer state that an old one has in no such form; of a state in it, likewise."""
    structure: Any = jax.tree.structure
    found = {}
    for name in fresh._fields if structure(old) != structure(fresh) else ():
        before, new = getattr(old, name), getattr(fresh, name)
        if structure(before) != structure(new):
            inner = type(before) is type(new) and hasattr(new, "_fields")
            found[name] = unknown_fields(before, new) if inner else new
    return found


def with_fields(state: Any, fields: dict[str, Any]) -> Any:
    """An optimizer state with those that were unknown."""
    pairs = {name: (getattr(state, name), new) for name, new in fields.items()}
    return state._replace(
        **{name: with_fields(old, new) if hasattr(old, "_fields") else new for name, (old, new) in pairs.items()}
    )


def changes(places: Places, before: tuple[int, int]) -> list[str]:
    """What happens to the workers, for people: a line for each that is left out, has another number, or is new."""
    lines = []
    kept = set(places.source[~places.new].tolist())
    out = [str(rank) for rank in range(math.prod(before)) if rank not in kept]
    if out:
        lines.append(f"left out: worker {', '.join(out)} of {before[0]} × {before[1]}")
    for rank, (source, new) in enumerate(zip(places.source.flat, places.new.flat, strict=True)):
        if new:
            lines.append(f"worker {rank} starts from what was worker {source}")
        elif rank != source:
            lines.append(f"worker {rank} is what was worker {source}")
    return lines
