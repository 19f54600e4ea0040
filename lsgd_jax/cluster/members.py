"""Processes of this machine that run the same command together, and what ends them."""

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from lsgd_jax.cluster import proxies
from lsgd_jax.cluster.coordinator import COORDINATED, ONE_OF, Coordinator
from lsgd_jax.cluster.stopping import LAUNCHER, heard_signals
from lsgd_jax.errors import ExitCode

# When a process has failed the others have so long to tell why they fail too; then they are killed.
GRACE_SECONDS = 1.0
POLL_SECONDS = 0.05
# What the script has told in a line of its own.
TOLD_CODES = (ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.NOT_YET, ExitCode.STOPPED)
# When one has come to the end of a run that outlives its processes, who hangs has so long to come there too.
LAST_SECONDS = 30.0
# What Gloo prints about its connections.
NOISE = re.compile(r"\[Gloo\] Rank \d+ is connected to")


class Failure(NamedTuple):
    """The process that failed first.

    Attributes:
      code: its exit code; 128 and the signal's number if one killed it.
      line: for people.
      killed: the numbers of all that a signal had killed by then; not those that aborted since they missed another.
    """

    code: int
    line: str
    killed: tuple[int, ...] = ()


class Members(NamedTuple):
    """What goes on.

    Attributes:
      started: the processes.
      heard: the signals that have come, in their order.
    """

    started: list[subprocess.Popen]
    heard: list[int]


class Live(NamedTuple):
    """Of a run that outlives its processes.

    Attributes:
      restarts: how many processes to start again, of those that die.
      heartbeat_timeout: seconds without a sign of life after which one counts as lost.
    """

    restarts: int
    heartbeat_timeout: float


def launch(
    command: Sequence[str],
    processes: int,
    environments: Sequence[Mapping[str, str]] | None = None,
    timeout: float | None = None,
    members: Members | None = None,
    live: Live | None = None,
) -> Failure | None:
    """Starts a command as processes that find each other over loopback, and waits until all have ended.

    What they print comes out here: of process 0 as it is, of the others after their number, and
    once if several say the same. No process is left over, however this ends; should this process
    be killed, they notice and stop by themselves.

    Args:
      command: gets --coordinator_address, --num_processes and --process_id appended, for
        `lsgd_jax.cluster.joining.connect`.
      processes: how many.
      environments: what each has in its environment besides what this process has.
      timeout: seconds that they may take; any number by default.
      members: gets the processes, where signals are heard already.
      live: of a run that outlives its processes; its coordinator is in this process.

    Returns:
      The first failure, or None. Of a run that outlives its processes that of the last one.
    """
    copies: list[threading.Thread] = []
    said: deque[tuple[int, str]] = deque(maxlen=100)
    common = {"PYTHONUNBUFFERED": "1", "NCCL_SOCKET_IFNAME": "lo", **os.environ, **proxies.past_loopback(os.environ)}
    common[ONE_OF] = str(processes)
    with contextlib.ExitStack() as held:
        started, heard = held.enter_context(forwarding_signals()) if members is None else members
        started.clear()
        pipe = os.pipe()  # nothing is written: they see its end when this process is gone
        held.callback(_end, started, copies, pipe)
        if live is None:
            port = free_port()
        else:
            coordinator = Coordinator(("127.0.0.1", 0), processes, live.heartbeat_timeout)
            held.callback(coordinator.close)
            port, common[COORDINATED] = coordinator.port, "1"

        def start(number: int) -> subprocess.Popen:
            place = (
                f"--coordinator_address=127.0.0.1:{port}",
                f"--num_processes={processes}",
                f"--process_id={number}",
            )
            own = environments[number] if environments else {}
            process = subprocess.Popen(
                [*command, *place],
                env=common | {LAUNCHER: str(pipe[0])} | dict(own),
                pass_fds=pipe[:1],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # A terminal stays one for process 0, which draws the progress bar.
                stderr=None if number == 0 and sys.stderr.isatty() else subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # they hear Ctrl-C from here, once
            )
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if source is not None:
                    copies.append(threading.Thread(target=_copy, args=(number, source, target, said)))
                    copies[-1].start()
            return process

        for number in range(processes):
            started.append(start(number))
            if heard:  # perhaps before it could be passed on to this one
                started[-1].terminate()
        if live is not None:
            return _outlive(started, start, live.restarts, heard)
        return _wait(started, timeout)


def _end(started: Sequence[subprocess.Popen], copies: Sequence[threading.Thread], pipe: Sequence[int]) -> None:
    """Leaves nothing over of what has been started."""
    for process in reversed(started):  # the coordinator last: without it the others end with long errors
        process.kill()
        process.wait()
    for copy in copies:
        copy.join()
    for end in pipe:
        os.close(end)


def _wait(started: Sequence[subprocess.Popen], timeout: float | None) -> Failure | None:
    """Returns when all have ended, or some time after one has failed."""
    end = None if timeout is None else time.monotonic() + timeout
    asked = False
    ended = (None, ExitCode.DONE, ExitCode.STOPPED)  # or not yet
    while all(process.poll() in ended for process in started):
        codes = [process.returncode for process in started]
        if None not in codes:
            return Failure(max(codes), "the run was stopped before its end") if any(codes) else None
        if ExitCode.STOPPED in codes and not asked:  # the others may be waiting for it
            asked = True
            for process in started:
                process.terminate()
        if end is not None and time.monotonic() > end:
            return Failure(124, f"the processes have not ended within {timeout:g} s")
        time.sleep(POLL_SECONDS)
    # Those that abort have missed another.
    failed = [
        (process.returncode == -signal.SIGABRT, i)
        for i, process in enumerate(started)
        if process.returncode not in ended
    ]
    killed = tuple(i for aborted, i in failed if not aborted and started[i].returncode < 0)
    number = min(failed)[1]
    code, pid = started[number].returncode, started[number].pid
    how = _how(code)
    end = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in started) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    if any(process.returncode == ExitCode.STOPPED for process in started):  # the others have missed it
        code = ExitCode.STOPPED
    return Failure(_exit_code(code), f"process {number} of {len(started)} (pid {pid}) {how}", killed)


def _how(code: int) -> str:
    """How a process has ended, of the code that `subprocess` has for it."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _exit_code(code: int) -> int:
    """As a shell has it."""
    return 128 - code if code < 0 else code


def _outlive(
    started: list[subprocess.Popen], start: Callable[[int], subprocess.Popen], restarts: int, heard: Sequence[int]
) -> Failure | None:
    """Returns when nobody is left, or some time after one has come to the end of the run.

    One that dies is started again while restarts are left, and left out then; the others go on meanwhile. One that has
    told what is wrong would do so again: all end.
    """
    given_up: set[int] = set()
    failure, end = None, math.inf
    while time.monotonic() < end and any(process.poll() is None for process in started):
        for number, process in enumerate(started):
            code = process.poll()
            if code in (None, ExitCode.DONE) or number in given_up:
                continue
            how, told = _how(code), code in TOLD_CODES
            if told or heard or not restarts:
                given_up.add(number)
                failure = Failure(_exit_code(code), f"process {number} of {len(started)} {how}")
                how += "" if told or heard else ": the others go on without it"
            else:
                restarts -= 1
                started[number] = start(number)
                how += ": it is started again, and the others go on meanwhile"
            if not (told or heard):
                print(
                    f"launch: process {number} of {len(started)} (pid {process.pid}) {how}", file=sys.stderr, flush=True
                )
        if end == math.inf and any(process.returncode == ExitCode.DONE for process in started):
            end = time.monotonic() + LAST_SECONDS
        time.sleep(POLL_SECONDS)
    return None if any(process.returncode == ExitCode.DONE for process in started) else failure


@contextlib.contextmanager
def forwarding_signals() -> Iterator[Members]:
    """Asks the processes to save and stop at the first signal, and kills them at a second Ctrl-C."""
    members = Members([], [])

    def handle(number: int, frame: object) -> None:
        del frame
        first = not members.heard  # asked before another signal may come in between
        members.heard.append(number)
        for process in members.started:
            if members.heard.count(signal.SIGINT) > 1:
                process.kill()
            elif first:
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    before = {number: signal.signal(number, handle) for number in heard_signals()}
    try:
        yield members
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _copy(number: int, source: IO[str], target: IO[str], said: deque[tuple[int, str]]) -> None:
    """Passes lines on, until the process and all that it has started have closed their end."""
    for line in source:
        elsewhere = any(line == other and number != by for by, other in tuple(said))
        said.append((number, line))
        if not NOISE.match(line) and (not elsewhere or line.isspace()):
            with contextlib.suppress(OSError):  # a full disk, say: a pipe that nobody reads would hold the process up
                target.write(f"[{number}] {line}" if number else line)
                target.flush()


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
