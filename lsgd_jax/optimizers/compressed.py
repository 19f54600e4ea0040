"""A method whose communications send few bits, and later what they have left out.

Seide et al.: "1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of Speech
DNNs", Interspeech 2014, for error feedback; Basu et al.: "Qsparse-local-SGD", NeurIPS 2019, arXiv:1906.02367, for
means of workers that take local steps; Sarfi et al.: "Communication Efficient LLM Pre-training with SparseLoCo", 2025,
arXiv:2508.15706, for DiLoCo.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.collectives import Codec, Leader, compressed_from_leader, compressed_mean, mean, varying
from lsgd_jax.collectives.codec import CODED
from lsgd_jax.optimizers.arithmetic import widened
from lsgd_jax.optimizers.distributed_optimizer import Axes, Communication, DistributedOptimizer, Outcome, check_number
from lsgd_jax.optimizers.finite import all_finite, select, where_heard
from lsgd_jax.optimizers.overlapped import OverlappedState
from lsgd_jax.optimizers.sending import FromLeader, MeanOf


class Memory(NamedTuple):
    """What a worker keeps of a kind of communication; trees like what is sent, in float32 or wider.

    Attributes:
      heard: what all its workers have heard last, the same for all of them; None for a mean of changes.
      unsent: what this worker has not sent yet; None for a leader's message.
    """

    heard: Any
    unsent: Any


class CompressedState(NamedTuple):
    """State of one worker.

    Attributes:
      inner: that of the method.
      memories: of each of its communications.
    """

    inner: Any
    memories: tuple[Memory, ...]


def compressed(
    method: DistributedOptimizer, *, bits: int | None = None, top_k: float | None = None
) -> DistributedOptimizer:
    r"""Sends differences in few bits, with error feedback.

    Numbers are sent in blocks of 256, by C: in 8 or 4 bits with a scale for each block, or of each block the entries of
    the largest magnitude alone, in 32, 8 or 4 bits, each with its place in a byte. Bits of each parameter, in place of
    32: 8.06 and 4.06 with ``bits`` of 8 and 4; 1.69 with ``bits=8, top_k=0.1``, 0.31 with ``bits=4, top_k=0.02``.

    A leader sends what differs from r, which all have heard last, whoever it came from::

      r <- r + C(x~ - r)      and r is heard in place of x~

    so that no error outlives the next message. Entries that `top_k` leaves out are not heard, NaN: nothing pulls there.
    If a worker is lost the leader's parameters are sent as they are, in the train step.

    A mean takes two messages: each worker sends every part of the parameters to its owner, a worker, who decodes them,
    adds them up in float32, and sends the mean back. e_i holds what worker i has not sent yet; that of an owner also
    holds the rounding error of its mean::

      e_i <- e_i + x_i - r
      s_i = what is sent of e_i,   e_i <- e_i - s_i,   r <- r + mean(s_i)      and r is heard in place of mean(x_i)

    or, where the method itself takes means of changes Δ_i (`diloco`), without r: e_i <- e_i + Δ_i, and mean(s_i) is
    heard. At the start r is the mean of the workers and e_i zero.

    It keeps a copy of the parameters for each level of leaders, two for each of means, one for those of changes. Of
    several wrappers it is the innermost: ``overlapped(fragments(compressed(method), n))``.

    Args:
      method: what communicates.
      bits: 8 or 4, of a number; None for 32 with `top_k`.
      top_k: the share of entries that is sent, in (0, 1); at least one of each block. None for all.

    Returns:
      A `DistributedOptimizer`.

    Raises:
      ValueError: if neither `bits` nor `top_k` is given, or one is no such number; if the method has no period, sends
        by functions of its own rather than `FromLeader` or `MeanOf`, or has a `wire_dtype`; or for `top_k` if workers
        are pulled toward a mean, as by `easgd`: most entries of it would be old, and hold them back.
    """
    codec = _codec(bits, top_k)
    if not method.communications:
        raise ValueError("the method has no communication to compress: use one with a period, such as lsgd")
    for communication in method.communications:
        _check_compressible(communication, top_k)

    @functools.wraps(method.init)  # whose name tells the factory
    def init(params: optax.Params, axes: Axes) -> CompressedState:
        inner = method.init(params, axes)

        def begin_memory(communication: Communication) -> Memory:
            begin: Any = communication.begin
            names = axes.names(communication.axes)
            sent = widened(begin.of(params, inner, names))
            heard = None if _of_changes(begin) else mean(sent, names)
            return Memory(heard, None if isinstance(begin, FromLeader) else optax.tree.zeros_like(sent))

        state = CompressedState(inner, tuple(map(begin_memory, method.communications)))
        return jax.tree.map(lambda leaf: varying(leaf, axes.all), state)  # as what is gathered is, by its type

    def update(
        grads: optax.Updates, state: CompressedState, params: optax.Params, *, value: Any, **extra: Any
    ) -> tuple[optax.Updates, CompressedState]:
        updates, inner = method.update(grads, state.inner, params, value=value, **extra)
        return updates, state._replace(inner=inner)

    def restart(params: optax.Params, state: CompressedState) -> CompressedState:
        """What a worker that starts again has not sent yet is not its own."""
        memories = [memory._replace(unsent=optax.tree.zeros_like(memory.unsent)) for memory in state.memories]
        return CompressedState(method.restart(params, state.inner), tuple(memories))

    def in_few_bits(i: int, communication: Communication) -> Communication:
        begin: Any = communication.begin
        return (_of_leader if isinstance(begin, FromLeader) else _of_mean)(communication, begin, i, codec)

    return method._replace(
        init=init,
        update=update,
        center=lambda params, state, axes: method.center(params, state.inner, axes),
        restart=restart,
        communications=tuple(in_few_bits(i, c) for i, c in enumerate(method.communications)),
        arguments=(*method.arguments, ("bits", bits), ("top_k", top_k)),
    )


def _of_leader(whole: Communication, sends: FromLeader, i: int, codec: Codec) -> Communication:
    """A leader's message in few bits."""

    def begin(
        params: optax.Params, state: CompressedState, score: jax.Array, axis_name: tuple[str, ...]
    ) -> tuple[Leader, Any]:
        """The leader, and what is heard; NaN where nothing is."""
        own, last = widened(sends.of(params, state.inner, axis_name)), state.memories[i].heard
        leader = sends.elect(own, state.inner, score, axis_name)
        difference = jax.tree.map(jnp.subtract, own, last)
        difference = compressed_from_leader(difference, leader, axis_name, codec, method=sends.broadcast)
        news = jax.tree.map(lambda r, d: jnp.where(leader.valid, (r + d).astype(r.dtype), jnp.nan), last, difference)
        return leader, news

    def finish(
        params: optax.Params, state: CompressedState, heard: tuple[Leader, Any], axis_name: tuple[str, ...]
    ) -> Outcome:
        leader, news = heard
        outcome = whole.finish(
            params, state.inner, (leader, _in_its_dtypes(news, sends, params, state, axis_name)), axis_name
        )
        return _remembered(outcome, state, i, Memory(where_heard(news, state.memories[i].heard), None))

    def begin_whole(params: optax.Params, state: CompressedState, score: jax.Array, axis_name: tuple[str, ...]) -> Any:
        return sends(params, state.inner, score, axis_name)

    def finish_whole(
        params: optax.Params, state: CompressedState, heard: tuple[Leader, Any], axis_name: tuple[str, ...]
    ) -> Outcome:
        outcome = whole.finish(params, state.inner, heard, axis_name)
        leader, told = heard
        memory = Memory(select(leader.valid, widened(told), state.memories[i].heard), None)
        return _remembered(outcome, state, i, memory)

    complete = whole._replace(begin=begin_whole, finish=finish_whole) if codec.kept else None
    return whole._replace(begin=begin, finish=finish, whole=complete)


def _of_mean(whole: Communication, sends: MeanOf, i: int, codec: Codec) -> Communication:
    """A mean in few bits."""

    def begin(
        params: optax.Params, state: CompressedState, score: jax.Array, axis_name: tuple[str, ...]
    ) -> tuple[Any, Any]:
        """What is heard, and what this worker has not sent then."""
        del score
        own, memory = widened(sends.of(params, state.inner, axis_name)), state.memories[i]
        change = own if sends.change else jax.tree.map(jnp.subtract, own, memory.heard)
        due = jax.tree.map(jnp.add, memory.unsent, change)
        takes_part = all_finite(own)
        average, sent = compressed_mean(due, axis_name, codec, where=takes_part)
        told = jax.tree.map(lambda d, m: m.astype(d.dtype), due, average)
        told = told if sends.change else jax.tree.map(jnp.add, memory.heard, told)
        left = jax.tree.map(lambda d, s: (d - s).astype(d.dtype), due, sent)
        return told, select(takes_part, left, memory.unsent)

    def finish(
        params: optax.Params, state: CompressedState, heard: tuple[Any, Any], axis_name: tuple[str, ...]
    ) -> Outcome:
        told, unsent = heard
        outcome = whole.finish(params, state.inner, _in_its_dtypes(told, sends, params, state, axis_name), axis_name)
        known = None if sends.change else select(all_finite(told), told, state.memories[i].heard)
        return _remembered(outcome, state, i, Memory(known, unsent))

    return whole._replace(begin=begin, finish=finish)


def _in_its_dtypes(
    tree: Any, sends: FromLeader | MeanOf, params: optax.Params, state: CompressedState, axis_name: tuple[str, ...]
) -> Any:
    """What is heard, as the method sends it; from shapes alone, since a second half sends nothing."""
    like = jax.eval_shape(lambda params, inner: sends.of(params, inner, axis_name), params, state.inner)
    return optax.tree.cast_like(tree, like)


def _remembered(outcome: Outcome, state: CompressedState, i: int, memory: Memory) -> Outcome:
    memories = (*state.memories[:i], memory, *state.memories[i + 1 :])
    return outcome._replace(state=CompressedState(outcome.state, memories))


def _of_changes(begin: FromLeader | MeanOf) -> bool:
    return isinstance(begin, MeanOf) and begin.change


def _codec(bits: int | None, top_k: float | None) -> Codec:
    """Raises ValueError unless one or both are given, and are such numbers."""
    if bits is None and top_k is None:
        raise ValueError("bits or top_k must be given, or both: bits=8, say")
    if bits not in (None, 4, 8):
        raise ValueError(f"bits must be 8 or 4, got {bits}")
    if top_k is not None and not 0 < check_number("top_k", top_k) < 1:
        raise ValueError(f"top_k must lie between 0 and 1, got {top_k}")
    return Codec(bits, None if top_k is None else max(1, round(top_k * CODED)))


def _check_compressible(communication: Communication, top_k: float | None) -> None:
    """Raises ValueError unless a communication can be sent so."""
    begin = communication.begin
    if not isinstance(begin, FromLeader | MeanOf):
        raise ValueError(
            "the method sends by a function of its own, or is wrapped already: let its begin be FromLeader or MeanOf, "
            "and compress first: overlapped(fragments(compressed(method), n))"
        )
    if isinstance(begin, FromLeader) and begin.wire_dtype is not None:
        raise ValueError(f"the leader's parameters travel as {begin.wire_dtype} already: leave wire_dtype out")
    if top_k is not None and isinstance(begin, MeanOf) and communication.late == "as_is":
        raise ValueError(
            "top_k: a pull toward a mean of which most entries are old would hold workers back: use bits, or a method "
            "whose workers become their mean, such as local_sgd"
        )


def with_common_references(state: Any, fresh: Any) -> Any:
    """The state of a worker in a new group, whose workers need not have heard the same.

    Args:
      state: that of a method, or of wrappers around it.
      fresh: what `init` gives where all the new workers are. What differences are to, and what is under way or has not
        been sent, are taken from it, if the method is compressed.
    """
    if isinstance(state, OverlappedState) and isinstance(state.inner, CompressedState):
        return OverlappedState(with_common_references(state.inner, fresh.inner), fresh.heard)
    return state._replace(memories=fresh.memories) if isinstance(state, CompressedState) else state


def is_compressed(state: Any) -> bool:
    """Whether a state is that of a method that is compressed."""
    return isinstance(state, CompressedState) or (isinstance(state, OverlappedState) and is_compressed(state.inner))
