"""Which windows of a text each worker sees at each step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.cluster.processes import put
from lsgd_jax.data.dealing import Dealt, dealt_batches, put_dealt
from lsgd_jax.data.sampling import epoch_order, shard_size
from lsgd_jax.engine.local_steps import Batches
from lsgd_jax.engine.topology import Topology


class TextBatch(NamedTuple):
    """A minibatch of windows.

    Attributes:
      tokens: int32[batch, length + 1], each window with the token after it.
      begins: bool[], whether no window goes on where that of the last step ended.
    """

    tokens: jax.Array
    begins: jax.Array


class Planned(NamedTuple):
    """Where the windows of each step start, int32[steps, batch], and whether they begin anew, bool[steps]."""

    starts: jax.Array
    begins: jax.Array


def put_text_on_devices(train: np.ndarray, topology: Topology, sampling: str, seed: int = 0) -> jax.Array | Dealt:
    """A training text, unsigned integers [tokens], where the step reads it.

    Sampling "shard" cuts it into contiguous parts, [groups, workers, shard], each
    device holding its workers'. Sampling "iid" and "reshuffle" give every device the whole
    text; `seed` is that of the deals.
    """
    if sampling == "reshuffle":
        return put_dealt(train, topology, seed)
    if sampling == "iid":
        return put(train, topology.replicated)
    size = shard_size(len(train), topology.size)
    return put(train[: size * topology.size].reshape(*topology.shape, size), topology.per_worker)


def windows_in(size: int, length: int) -> int:
    """Windows side by side in a text of so many tokens, with a token after each; not more than 0 if it is shorter."""
    return (size - 1) // length


def make_text_batches(sampling: str, size: int, batch_size: int, length: int, *, carries: bool) -> Batches:
    """Minibatches of windows of a text.

    With sampling "shard" a model that carries a state reads its worker's shard in
    `batch_size` contiguous rows, a window of each at every step, from beginning to end
    in each epoch. For others an epoch is all windows in a new order. With "reshuffle"
    the windows of the whole text are dealt anew to the workers in each epoch, with
    "iid" they are anywhere in it. What does not fill a batch is left out.

    Args:
      sampling: "shard", "reshuffle" or "iid".
      size: tokens of a worker's shard, or of the whole text for "iid".
      batch_size: windows in a minibatch, at most `windows_in(size, length)` for "shard".
      length: tokens in a window.
      carries: whether the model goes on from the state at the end of the last step.
    """
    steps_per_epoch = windows_in(size, length) // batch_size

    def draw(text: jax.Array, planned: Any, key: jax.Array) -> TextBatch:
        del key  # all is planned
        return TextBatch(text[planned.starts[:, None] + jnp.arange(length + 1)].astype(jnp.int32), planned.begins)

    def plan_rows(key: jax.Array, first_step: jax.Array, steps: int) -> Planned:
        del key  # the order is that of the text
        step = (first_step + jnp.arange(steps)) % steps_per_epoch
        rows = jnp.arange(batch_size) * steps_per_epoch
        return Planned((rows + step[:, None]) * length, step == 0)

    def plan_windows(key: jax.Array, first_step: jax.Array, steps: int) -> Planned:
        order = epoch_order(key, first_step, steps, windows_in(size, length), batch_size)
        return Planned(order * length, jnp.ones(steps, bool))

    def plan_iid(key: jax.Array, first_step: jax.Array, steps: int) -> Planned:
        keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(first_step + jnp.arange(steps))
        starts = jax.vmap(lambda key: jax.random.randint(key, (batch_size,), 0, size - length))(keys)
        return Planned(starts, jnp.ones(steps, bool))

    def draw_windows(text: jax.Array, windows: jax.Array, key: jax.Array) -> TextBatch:
        return draw(text, Planned(windows * length, jnp.array(True)), key)

    if sampling == "reshuffle":
        return dealt_batches(lambda text: windows_in(len(text), length), batch_size, draw_windows)
    plan_shard = plan_rows if carries else plan_windows
    return Batches(plan=plan_iid if sampling == "iid" else plan_shard, draw=draw, per_worker=sampling == "shard")
