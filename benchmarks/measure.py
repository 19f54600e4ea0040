"""Timing alternatives side by side, and writing down what was measured where."""

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """Seconds of one alternative over the repeats."""

    median: float
    low: float
    high: float


def in_turn(alternatives: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Times functions in turn, so that all see the same moods of the machine.

    Each turn has an order of its own: what one leaves behind, in caches and in clock rates, would else always
    meet the same next one.

    Args:
      alternatives: functions of no argument that return when their work is done,
        or return arrays, which are waited for.
      repeats: timed rounds through all of them.
      warmup: rounds before those.
    """
    import jax

    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(warmup + repeats):
        for name, run in random.Random(turn).sample(list(alternatives.items()), len(alternatives)):
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(times), min(times), max(times)) for name, times in seconds.items()}


def provenance() -> dict[str, Any]:
    """The command, the commit, the device and the versions."""
    import jax
    import jaxlib

    from lsgd_jax.config.config import usable_cores
    from lsgd_jax.trainer.provenance import commit

    return {
        # Without where things lie on this machine.
        "command": shlex.join(
            ["python", os.path.relpath(sys.argv[0]), *(each for each in sys.argv[1:] if "/" not in each)]
        ),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "cores": usable_cores(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }


def write_results(path: pathlib.Path, results: Any) -> None:
    """Writes JSON, with its `provenance`."""
    from lsgd_jax.files.files import write_whole

    write_whole(path, json.dumps({**provenance(), "results": results}, indent=1) + "\n")


def as_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as text: the first to the left, the others to the right."""
    cells = [list(map(str, row)) for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints columns."""
    print(as_table(headers, rows))


def writable(text: str) -> pathlib.Path:
    """A type for `--output`: a file that can be written, which is told before anything is measured."""
    path = pathlib.Path(text).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write to {text} ({error.strerror}): choose another file") from error
    return path
