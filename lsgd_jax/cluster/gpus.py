"""The NVIDIA GPUs that a process sees, and shares of them for several processes of a machine."""

import glob
import itertools
import os
import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# What CUDA takes for a device: its number, or its UUID.
NAME = re.compile(r"\d+|(GPU|MIG)-.*")


def visible() -> list[str]:
    """The names of the GPUs that JAX may use here, as CUDA_VISIBLE_DEVICES has them.

    CUDA reads that variable up to the first entry that is no device: `-1` and `NoDevFiles` stand for none.
    """
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return [str(i) for i in range(len(device_files()))]
    return list(itertools.takewhile(NAME.fullmatch, (name.strip() for name in listed.split(","))))


def device_files() -> list[str]:
    """The GPUs that this process may open: a scheduler may give each process its own."""
    return sorted(path for path in glob.glob("/dev/nvidia[0-9]*") if os.access(path, os.R_OK | os.W_OK))


def share(gpus: Sequence[T], processes: int) -> list[Sequence[T]]:
    """As many to each process, in order; the rest is left over."""
    size = len(gpus) // processes
    return [gpus[i * size : (i + 1) * size] for i in range(processes)]
