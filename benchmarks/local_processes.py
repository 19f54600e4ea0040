"""Processes of this machine that compute together, over Gloo on loopback."""

import multiprocessing
import os
import queue
import socket
import time
from collections.abc import Callable
from typing import Any

TIMEOUT_SECONDS = 300


def first_result(work: Callable[..., Any], processes: int, *args: Any) -> Any:
    """What process 0 gives.

    Args:
      work: a function of a module, `work(*args)`, which all processes call.
      processes: how many.
      args: its arguments.

    Raises:
      RuntimeError: if a process ends early.
      TimeoutError: if they take too long; none of them is left over.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    started = [
        context.Process(target=_join_and_work, args=(work, coordinator, processes, number, results, args), daemon=True)
        for number in range(processes)
    ]
    try:
        for process in started:
            process.start()
        return _wait(results, started)
    finally:
        for process in reversed(started):  # the first serves the others: without it they end with long errors
            process.kill()
        for process in started:
            process.join()


def _wait(results: Any, started: list[Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            return results.get(timeout=1)
        except queue.Empty:
            if any(process.exitcode for process in started):
                raise RuntimeError("a process ended early: its error stands above") from None
    raise TimeoutError(f"not done after {TIMEOUT_SECONDS} s: free this machine, or ask for fewer --repeats")


def _join_and_work(
    work: Callable[..., Any], coordinator: str, processes: int, number: int, results: Any, args: tuple[Any, ...]
) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, number)
    result = work(*args)
    if number == 0:
        results.put(result)
    time.sleep(TIMEOUT_SECONDS)  # until it is killed: a process that leaves first makes the others fail
