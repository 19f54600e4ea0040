"""A trace of a run's first rounds, for TensorBoard or Perfetto."""

from typing import Any

import jax

CALLS = 3


class Profile:
    """Traces the first calls of the train step with `jax.profiler`."""

    def __init__(self, folder: str | None) -> None:
        self._calls_left = CALLS if folder else 0
        if folder:
            jax.profiler.start_trace(folder)

    def called(self, result: Any) -> None:
        """Notes that a call has been made, and ends the trace after the last that counts."""
        if self._calls_left == 1:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
        self._calls_left = max(0, self._calls_left - 1)

    def close(self) -> None:
        """Ends the trace of a run that was shorter."""
        if self._calls_left:
            self._calls_left = 0
            jax.profiler.stop_trace()
