"""Benchmarks that start themselves as processes of this machine, which compute together over loopback."""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from lsgd_jax.cluster.joining import connect
from lsgd_jax.cluster.members import launch


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that a process is started with; `process_id` is None in the program that starts them."""
    for name, kind in (("coordinator_address", str), ("num_processes", int), ("process_id", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)


def run_processes(flags: Sequence[str], processes: int, *, devices: int = 1, timeout: float = 300.0) -> Any:
    """Starts this script as processes, and returns what the first has given to `finish`.

    Args:
      flags: of the script.
      processes: how many.
      devices: CPU devices of each.
      timeout: seconds that they may take.

    Raises:
      RuntimeError: if one fails, or they take too long; none of them is left over.
    """
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "found.json"
        command = [sys.executable, sys.argv[0], *flags, f"--output={found}"]
        failure = launch(command, processes, [environment] * processes, timeout)
        if failure is not None:
            raise RuntimeError(f"{failure.line}: free this machine, or ask for less")
        return json.loads(found.read_text())


def join(args: argparse.Namespace, timeout: float = 300.0) -> None:
    """Meets the other processes; before JAX is used."""
    connect(args.coordinator_address, args.num_processes, args.process_id, timeout)


def finish(args: argparse.Namespace, found: Any) -> int:
    """Leaves what was found, as JSON has it, if this is the first process; returns the exit code."""
    if args.process_id == 0:
        args.output.write_text(json.dumps(found))
    return 0
