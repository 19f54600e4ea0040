"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows steps/s, images/s (or what else the unit is), the loss and the leader, on standard error."""

    def __init__(self, step: int, steps: int, unit: str, units_per_step: int, *, silent: bool = False) -> None:
        self._steps, self._unit, self._units_per_step, self._silent = steps, unit, units_per_step, silent
        self._bar = _bar(step, steps) if sys.stderr.isatty() and not silent else None
        self._since = time.monotonic()
        self._told = -math.inf  # a first line comes at once: it trains
        self._from = self._step = step

    def update(self, step: int, loss: float, leader: int | None) -> None:
        """Tells that a round has ended at `step`."""
        leads = "" if leader is None else f", leader {leader}"
        if self._bar is not None:
            rate = (step - self._from) / max(time.monotonic() - self._since, 1e-9)
            self._bar.set_postfix_str(f"{self._pace(rate)}, loss {loss:.4f}{leads}", False)
            self._bar.update(step - self._step)
        self._step = step
        now = time.monotonic()
        if self._bar is None and (now - self._told > SECONDS_BETWEEN_LINES or step == self._steps):
            rate = (step - self._from) / max(now - self._since, 1e-9)
            self.write(f"step {step}/{self._steps}, {rate:.1f} steps/s, {self._pace(rate)}, loss {loss:.4f}{leads}")
            self._told = self._since = now
            self._from = step

    def _pace(self, rate: float) -> str:
        return f"{rate * self._units_per_step:,.0f} {self._unit}/s"

    def write(self, line: str) -> None:
        """Prints a line without spoiling the bar."""
        if self._silent:
            return
        if self._bar is not None:
            self._bar.clear()
        print(line, file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.refresh()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile does not count as training."""
        before = time.monotonic()
        yield
        self._since += time.monotonic() - before

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(step: int, steps: int) -> tqdm:
    columns, rows = shutil.get_terminal_size()  # 80 × 24 where a terminal claims to have no size
    return tqdm(total=steps, initial=step, unit="step", ncols=columns, nrows=rows)
