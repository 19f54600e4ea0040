"""The latency and the bandwidth of a link, from measured times of messages."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lsgd_jax.accounting.network import Link


class Measurement(NamedTuple):
    """A measured communication: what one worker sent in it, and how long it took.

    Attributes:
      messages: their number.
      bytes: of all messages together.
      seconds: wall-clock.
    """

    messages: float
    bytes: float
    seconds: float


def fit_link(measurements: Sequence[Measurement]) -> Link:
    """The latency and the bandwidth that explain measured times best.

    Least squares of relative errors; neither figure can be negative, so one that would
    be is zero: no latency, or no limit to the bandwidth.

    Args:
      measurements: at least two, of different mean sizes of a message.

    Returns:
      The `Link`.

    Raises:
      ValueError: if the measurements do not tell latency and bandwidth apart, or
        a time or a number of messages or bytes is not positive.
    """
    table = np.array(measurements, dtype=np.float64).reshape(-1, 3)
    if not (np.isfinite(table) & (table > 0)).all():
        raise ValueError("messages, bytes and seconds must be positive and finite: leave out what was not measured")
    columns = table[:, :2] / table[:, 2:]  # the sum of both, times latency and seconds a byte, shall be 1
    scale = np.linalg.norm(columns, axis=0)
    if np.linalg.matrix_rank(columns / scale, tol=1e-6) < 2:
        raise ValueError("latency and bandwidth cannot be told apart: measure at least two sizes of a message")
    ones = np.ones(len(columns))
    latency, per_byte = np.linalg.lstsq(columns / scale, ones)[0] / scale
    if latency < 0:
        latency, per_byte = 0.0, columns[:, 1].sum() / scale[1] ** 2
    elif per_byte < 0:
        latency, per_byte = columns[:, 0].sum() / scale[0] ** 2, 0.0
    return Link(float(latency), float(1 / per_byte) if per_byte > 0 else float("inf"))
