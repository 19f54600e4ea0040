"""Layer 1: what workers say to each other, over named axes.

An axis may be an axis of a device mesh (`jax.shard_map`, `jax.pmap`), a lane
axis of `jax.vmap`, or a tuple that mixes both, outermost first. Every function
must be called where the axes are bound.
"""

from lsgd_jax.collectives.axes import GROUP, WORKER, AxisName, check_bound, tracked_axes, varies_over, varying
from lsgd_jax.collectives.broadcast import (
    BroadcastMethod,
    broadcast_from_first,
    broadcast_from_leader,
    check_broadcast_method,
)
from lsgd_jax.collectives.codec import Codec
from lsgd_jax.collectives.compressed import compressed_from_leader, compressed_mean
from lsgd_jax.collectives.election import Leader, elect_leader
from lsgd_jax.collectives.mean import mean
from lsgd_jax.collectives.sums import is_inexact, power_share, sum_dtype
from lsgd_jax.collectives.wire import check_wire_dtype

__all__ = [
    "GROUP",
    "WORKER",
    "AxisName",
    "BroadcastMethod",
    "Codec",
    "Leader",
    "broadcast_from_first",
    "broadcast_from_leader",
    "check_bound",
    "check_broadcast_method",
    "check_wire_dtype",
    "compressed_from_leader",
    "compressed_mean",
    "elect_leader",
    "is_inexact",
    "mean",
    "power_share",
    "sum_dtype",
    "tracked_axes",
    "varies_over",
    "varying",
]
