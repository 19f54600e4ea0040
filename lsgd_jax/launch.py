"""Starts a script as several processes of this machine, which train together over loopback.

    python -m lsgd_jax.launch --processes=4 -m lsgd_jax.train --steps=1000
    python -m lsgd_jax.launch --processes=4 mine.py --steps=1000

The script is started once a process, with --coordinator_address, --num_processes and --process_id
after its own flags. When one process fails, the others are ended; when the launcher does, they
save and end. Where this machine has NVIDIA GPUs, each process gets its share of them.
"""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags as absl_flags

from lsgd_jax.cluster import gpus
from lsgd_jax.cluster.coordinator import HEARTBEAT_SECONDS
from lsgd_jax.cluster.members import TOLD_CODES, Live, Members, forwarding_signals, launch
from lsgd_jax.cluster.stopping import SIGNALS
from lsgd_jax.errors import ExitCode, InputError
from lsgd_jax.files.output import lasting_output
from lsgd_jax.files.paths import expanded

# A signal has ended the process, or it has ended by itself as the signal wanted.
SIGNAL_CODES = tuple(128 + number for number in SIGNALS)
# What another start would not change, or what was asked for.
FINAL_CODES = (ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.STOPPED, *SIGNAL_CODES)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"launch: error: {message}\n")


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    with forwarding_signals() as members:
        options = _options(argv)
        code = _start(options, members)
        # Some may have ended before they could tell.
        return ExitCode.STOPPED if members.heard and options.automatic and code in SIGNAL_CODES else code


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of the launcher and, of those of the script, the `workdir` and whether `automatic` to resume."""
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
    parser.add_argument(
        "--live",
        action="store_true",
        help="when a process dies the others go on, and it is started again alone; the script gets --live",
    )
    parser.add_argument("-m", action="store_true", dest="module", help="the script is a module, as of python -m")
    parser.add_argument("script", help="what to start, and its flags")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.processes < 1 or options.max_restarts < 0:
        parser.error("--processes must be at least 1, and --max_restarts at least 0")
    if not (_is_module(options.script) if options.module else os.path.isfile(options.script)):
        kind = "module" if options.module else "script"
        parser.error(f"there is no {kind} {options.script}: name one after the flags of the launcher")
    script_flags = _with_flagfiles(options.flags)
    given = _value_in(script_flags, "workdir")
    try:
        options.workdir = None if given is None else expanded(given)
        options.environments = _shares_of_gpus(options.processes)
    except InputError as error:
        parser.error(str(error))
    if options.max_restarts and given is None:
        parser.error("--max_restarts has to know where the run is: give the script a --workdir")
    if options.elastic and not options.max_restarts:
        parser.error("--elastic is about starting again: add --max_restarts")
    if options.live and options.elastic:
        parser.error("--live and --elastic are two ways to go on when a process has died: choose one")
    options.live = _live(options, script_flags) if options.live else None
    options.automatic = _value_in(script_flags, "resume") == "auto"
    return options


def _start(options: argparse.Namespace, members: Members) -> int:
    """Launches the script, again if it fails, and returns the last exit code."""
    command = [sys.executable, *(["-m"] if options.module else []), options.script, *options.flags]
    elastic = ["--elastic"] if options.elastic else []
    if options.automatic:  # one command for all starts
        command += elastic
    if options.live is not None:
        command.append("--live")
    environments, restarts = options.environments, 0
    again: list[str] = []
    while True:
        failure = launch([*command, *again], len(environments), environments, members=members, live=options.live)
        if failure is None:
            return 0
        if members.heard.count(signal.SIGINT) > 1:  # it has killed them itself
            return ExitCode.INTERRUPTED
        if failure.code not in TOLD_CODES and not (members.heard and failure.code in SIGNAL_CODES):
            _say(failure.line)
        if failure.code in FINAL_CODES or members.heard or options.live or restarts == options.max_restarts:
            return failure.code
        restarts += 1
        line = f"restart {restarts} of {options.max_restarts}"
        if options.workdir and os.path.isfile(options.workdir / "config.json"):
            again = [] if options.automatic else ["--resume", *elastic]
            if elastic:
                survivors = [own for number, own in enumerate(environments) if number not in failure.killed]
                environments = survivors or environments
                line += f", with {len(environments)} of {options.processes} processes"
        _say(line)


def _live(options: argparse.Namespace, script_flags: Sequence[str]) -> Live:
    """How the launcher treats a run that outlives its processes; a wrong flag the script will tell."""
    try:
        heartbeat_timeout = max(1, int(_value_in(script_flags, "heartbeat_timeout") or HEARTBEAT_SECONDS))
    except ValueError:
        heartbeat_timeout = HEARTBEAT_SECONDS
    return Live(options.max_restarts, heartbeat_timeout)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of the package that it is in
        return False


def _with_flagfiles(flags: Sequence[str]) -> list[str]:
    """Flags of a script, those in its flagfiles in their place."""
    try:
        return absl_flags.FlagValues().read_flags_from_files(flags, force_gnu=False)
    except absl_flags.Error:  # the script will tell
        return list(flags)


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
        raise InputError(
            f"{len(visible)} GPUs cannot be dealt to --processes={processes}: choose a number that divides them, "
            "or set JAX_PLATFORMS=cpu"
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(own)} for own in gpus.share(visible, processes)]


def _say(line: str) -> None:
    print(f"launch: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
