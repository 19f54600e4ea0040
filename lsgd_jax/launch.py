"""Starts a script as several processes of this machine, which train together over loopback.

    python -m lsgd_jax.launch --processes=4 experiments/train.py --steps=1000

The script is started once a process, with --coordinator_address, --num_processes and --process_id
after its own flags. When one process fails, the others are ended; when the launcher does, they
save and end. Where this machine has NVIDIA GPUs, each process gets its share of them.
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple, NoReturn

from lsgd_jax import gpus, proxies
from lsgd_jax.output import lasting_output
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.paths import expanded
from lsgd_jax.training.stopping import LAUNCHER, SIGNALS, heard_signals

# When a process has failed the others have so long to tell why they fail too; then they are killed.
GRACE_SECONDS = 1.0
POLL_SECONDS = 0.05
# Bad flags, a run that cannot go on (a full disk, all workers lost), a run or processes that were asked to end: nothing
# that another start would change.
FINAL_CODES = (2, 3, os.EX_TEMPFAIL, *(128 + number for number in SIGNALS))
# Of these the script has told in a line of its own.
TOLD_CODES = (2, os.EX_TEMPFAIL)
# What Gloo prints about processes that talk to each other.
NOISE = re.compile(r"\[Gloo\] Rank \d+ is connected to")


class Failure(NamedTuple):
    """The process that failed first.

    Attributes:
      code: its exit code; 128 and the signal's number if one killed it.
      told: a line.
      killed: the numbers of all that a signal had killed by then; not those that aborted since they missed another.
      asked: whether the launcher had been asked to stop.
    """

    code: int
    told: str
    killed: tuple[int, ...] = ()
    asked: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"launch: error: {message}\n")


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = _Parser(
        prog="python -m lsgd_jax.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True, help="how many to start")
    parser.add_argument(
        "--max_restarts",
        type=int,
        default=0,
        help="how often to start all again when one has died, from the last checkpoint in the script's --workdir",
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="start again without the processes that were killed; the script then gets --elastic after --resume",
    )
    parser.add_argument("script", help="what to start, and its flags")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.processes < 1 or options.max_restarts < 0:
        parser.error("--processes must be at least 1, and --max_restarts at least 0")
    if not os.path.isfile(options.script):
        parser.error(f"there is no script {options.script}: name one after the flags of the launcher")
    given = _value_in(options.flags, "workdir")
    try:
        workdir = None if given is None else expanded(given)
    except InputError as error:
        parser.error(str(error))
    if options.max_restarts and workdir is None:
        parser.error("--max_restarts has to know where the run is: give the script a --workdir")
    if options.elastic and not options.max_restarts:
        parser.error("--elastic is about starting again: add --max_restarts")
    try:
        environments = _shares_of_gpus(options.processes)
    except ValueError as error:
        parser.error(str(error))

    command = [sys.executable, options.script, *options.flags]
    again: list[str] = []
    restarts = 0
    while True:
        failure = launch([*command, *again], len(environments), environments)
        if failure is None:
            return 0
        if failure.code not in TOLD_CODES:
            _tell(failure.told)
        if failure.code in FINAL_CODES or failure.asked or restarts == options.max_restarts:
            return failure.code
        restarts += 1
        told = f"restart {restarts} of {options.max_restarts}"
        if workdir and (workdir / "config.json").is_file():
            # That one tells by its exit code whether a run is finished.
            again = [] if _value_in(options.flags, "resume") == "auto" else ["--resume"]
            if options.elastic:
                again.append("--elastic")
                survivors = [own for number, own in enumerate(environments) if number not in failure.killed]
                environments = survivors or environments
                told += f", with {len(environments)} of {options.processes} processes"
        _tell(told)


@lasting_output()
def launch(
    command: Sequence[str],
    processes: int,
    environments: Sequence[Mapping[str, str]] | None = None,
    timeout: float | None = None,
) -> Failure | None:
    """Starts a command as processes that find each other over loopback, and waits until all have ended.

    What they print comes out here: of process 0 as it is, of the others after their number, and
    once if several say the same. No process is left over, however this ends; should this process
    be killed, they notice and stop by themselves.

    Args:
      command: gets --coordinator_address, --num_processes and --process_id appended, for
        `lsgd_jax.training.joining.connect`.
      processes: how many.
      environments: what each has in its environment besides what this process has.
      timeout: seconds that they may take; any number by default.

    Returns:
      The first failure, or None.
    """
    address = f"127.0.0.1:{_free_port()}"
    started: list[subprocess.Popen] = []
    copies: list[threading.Thread] = []
    said: deque[tuple[int, str]] = deque(maxlen=100)
    theirs, ours = os.pipe()  # nothing is written: they see its end when this process is gone
    common = {"PYTHONUNBUFFERED": "1", "NCCL_SOCKET_IFNAME": "lo", **os.environ, **proxies.past_loopback(os.environ)}
    with _forwarding_signals(started) as heard:
        try:
            for number in range(processes):
                flags = (f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={number}")
                own = environments[number] if environments else {}
                process = subprocess.Popen(
                    [*command, *flags],
                    env=common | {LAUNCHER: str(theirs)} | dict(own),
                    pass_fds=[theirs],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    # A terminal stays one for process 0, which draws the progress bar.
                    stderr=None if number == 0 and sys.stderr.isatty() else subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # they hear Ctrl-C from here, once
                )
                started.append(process)
                for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                    if source is not None:
                        copies.append(threading.Thread(target=_copy, args=(number, source, target, said)))
                        copies[-1].start()
            failure = _wait(started, timeout)
            return failure and failure._replace(asked=bool(heard))
        finally:
            for process in reversed(started):  # the coordinator last: without it the others end with long errors
                process.kill()
                process.wait()
            for copy in copies:
                copy.join()
            os.close(ours)
            os.close(theirs)


def _wait(started: Sequence[subprocess.Popen], timeout: float | None) -> Failure | None:
    """Returns when all have ended, or some time after one has failed."""
    end = None if timeout is None else time.monotonic() + timeout
    ended = (None, 0, os.EX_TEMPFAIL)  # or not yet
    while all(process.poll() in ended for process in started):
        codes = [process.returncode for process in started]
        if None not in codes:
            return Failure(max(codes), "the run was stopped before its end") if any(codes) else None
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
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    end = time.monotonic() + GRACE_SECONDS
    while any(process.poll() is None for process in started) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return Failure(128 - code if code < 0 else code, f"process {number} of {len(started)} (pid {pid}) {how}", killed)


@contextlib.contextmanager
def _forwarding_signals(started: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Asks the processes to save and stop at the first signal, and kills them at a second Ctrl-C.

    Yields:
      The signals that have been heard.
    """
    heard: list[int] = []

    def handle(number: int, frame: object) -> None:
        del frame
        first = not heard  # asked before another signal may come in between
        heard.append(number)
        for process in started:
            if first:
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            elif number == signal.SIGINT:
                process.kill()

    before = {number: signal.signal(number, handle) for number in heard_signals()}
    try:
        yield heard
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _value_in(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag among those of a script."""
    for place, flag in reversed(list(enumerate(flags))):
        found, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-") and found == name:
            return value if equals else "".join(flags[place + 1 : place + 2])
    return None


def _shares_of_gpus(processes: int) -> list[dict[str, str]]:
    """The environment that gives each process its GPUs, where there are any."""
    visible = gpus.visible()
    if not visible:
        return [{}] * processes
    if len(visible) % processes:
        raise ValueError(
            f"{len(visible)} GPUs cannot be dealt to --processes={processes}: choose a number that divides them, "
            "or set JAX_PLATFORMS=cpu"
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(own)} for own in gpus.share(visible, processes)]


def _tell(line: str) -> None:
    print(f"launch: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
