"""Trains as `python -m lsgd_jax.train`, and dies, or hangs, where a test wants it to: once for each file in a folder.

A file `EVENT.NUMBER` is for the process of that number: `call-40` for the first call of the train step from step 40 on,
`stop-40` to hang there, `evaluate` for an evaluation, `save` for a checkpoint, `digests` for its last file.
"""

import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lsgd_jax import train
from lsgd_jax.trainer import checkpoints, live, loop

ORDERS = pathlib.Path(os.environ["DEATHS"])
NUMBER = next(flag.partition("=")[2] for flag in sys.argv if flag.startswith("--process_id="))
PAUSE = 1.0  # before each call while somebody is missing, who has time to come


def ordered(event: str) -> bool:
    """Whether this process has been told to die here; an order is for one death."""
    path = ORDERS / f"{event}.{NUMBER}"
    found = path.exists()
    if found:
        path.unlink()
    return found


def die(number: int = signal.SIGKILL) -> None:
    """By a signal."""
    os.kill(os.getpid(), number)


def dying(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, before which a death may be ordered."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if ordered(event):
            die()
        return function(*args, **kwargs)

    return wrapped


def keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    """`LiveRun.keep`, which begins each call of the train step."""

    def wrapped(self: Any, state: Any, step: int, info: Any) -> Any:
        if len(self.generation.members) < self.count:
            time.sleep(PAUSE)
        for path in ORDERS.glob(f"*-*.{NUMBER}"):
            event, _, first = path.stem.partition("-")
            if step >= int(first) and ordered(path.stem):
                if event == "stop":
                    die(signal.SIGSTOP)
                else:
                    threading.Timer(0.003, die).start()  # while the call is under way
        return function(self, state, step, info)

    return wrapped


live.LiveRun.keep = keeping(live.LiveRun.keep)  # type: ignore[method-assign]
loop._metrics = dying("evaluate", loop._metrics)
checkpoints.Checkpoints.save = dying("save", checkpoints.Checkpoints.save)  # type: ignore[method-assign]
checkpoints._digests = dying("digests", checkpoints._digests)
print(f"process {NUMBER} is {os.getpid()}", flush=True)
sys.exit(train.main(sys.argv))
