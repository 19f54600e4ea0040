"""One run of `startup.py`: train.py until the first call of its train step has ended.

    python startup_side.py SECONDS --flag=value ...

SECONDS is when it was started, since 1970. The last line that it prints has the seconds of each phase.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax

import lsgd_jax.config.train  # noqa: F401  # with all that train.py imports later
from lsgd_jax import train
from lsgd_jax.trainer import loop

noted = [float(sys.argv[1])]


def note() -> None:
    """Notes that a phase has ended."""
    noted.append(time.time())


def noting(function: Callable[..., Any], *, before: bool = False) -> Callable[..., Any]:
    """The function, at the end of which a phase ends; or where it begins, too."""

    def called(*args: Any) -> Any:
        if before:
            note()
        result = function(*args)
        note()
        return result

    return called


def advance(plan: Any, run: Any, *others: Any) -> Any:
    """`loop._advance`, whose compiling is noted."""
    return of_loop(plan, run._replace(rounds=run.rounds._replace(compile=noting(run.rounds.compile))), *others)


def first_call_has_ended(log: Any, step: int, report: Any, pace: Any) -> NoReturn:
    """In place of what a run does after each call."""
    del log, step, pace
    jax.block_until_ready(report)
    note()
    print(*(after - before for before, after in itertools.pairwise(noted)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    of_loop = loop._advance
    loop._advance = advance  # type: ignore[assignment]
    loop._start = noting(loop._start, before=True)
    loop.RoundLog.add = first_call_has_ended  # type: ignore[method-assign,assignment]
    note()
    sys.exit(train.main(["train.py", *sys.argv[2:]]))
