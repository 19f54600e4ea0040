"""Compares methods as a reviewer would: settings chosen on validation data, then tested with fresh seeds.

Every method gets the same number of samples. Each setting in the grid is trained with the search seeds; the one
with the lowest validation error (of text: bits per byte) is trained again with the test seeds, and only those runs
are tested. All settings that are not varied are those of train.py, by its flags; --eval_every is that of
the test runs, and up to 4 times shorter for methods that spend the bytes or the time of the others early in their run.

The same command goes on where it was stopped or killed; what is finished is not run again.
"""

import itertools
import pathlib
import shlex
import sys
from typing import Any

from absl import flags, logging

from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.commands.command_line import Flag, define, describe, described, parse, program_name, stoppable
from lsgd_jax.commands.compilation_cache import use_compilation_cache
from lsgd_jax.commands.cpu_devices import make_cpu_devices
from lsgd_jax.commands.settings import GROUPS, PROCESS_FLAGS, given_settings, usual_help
from lsgd_jax.compare.palette import STYLES
from lsgd_jax.errors import ExitCode

PLAN = (
    Flag("methods", "list", ",".join(STYLES), "the methods to compare"),
    Flag("vary", "multi_string", [], "flag=value,value for all methods, method.flag=value,value for one (repeat it)"),
    Flag("search_seeds", "list", "0", "seeds of the runs by which settings are chosen"),
    Flag("search_steps", "integer", None, "local steps of those runs (default: --steps)"),
    Flag("test_seeds", "list", "1,2,3", "seeds of the runs that are reported: at least 3, others"),
    Flag("network", "string", "1 Gb/s Ethernet", "network of the predicted times"),
    Flag("compute_seconds", "float", None, "of a local step, for predicted times (default: as measured here)"),
)
PROCESS = (
    Flag("workdir", "path", "runs/compare", "folder for the runs and the report"),
    Flag("dry_run", "boolean", False, "list what would run, and for how long"),
    Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax"),
)
PAGE = "runs.html"
# What the plan decides for each run.
DECIDED = ("algorithm", "seed", "workdir", *PROCESS_FLAGS)
RUNS = {group: [flag for flag in members if flag.name not in DECIDED] for group, members in GROUPS.items()}

FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, itertools.chain(PLAN, PROCESS, *RUNS.values()))


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python -m lsgd_jax.compare [--flag=value ...]", "", described(__doc__), ""]
    lines += ["comparison:", *describe(PLAN), *describe(PROCESS)]
    return "\n".join([*lines, "", *usual_help(), *help_of_runs()])


def help_of_runs() -> list[str]:
    """The lines of --help on what all runs have in common, and its last."""
    groups = [["", f"{group}, of every run unless varied:", *describe(members)] for group, members in RUNS.items()]
    return [*itertools.chain(*groups), "", "  --flagfile=FILE            read flags from a file, one a line"]


@stoppable
def main(argv: list[str], stop: StopRequest) -> int:
    """Runs the command line and returns its exit code."""
    stop.exit_code = ExitCode.STOPPED
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done

    # Only now: a mistyped flag is told without waiting for these.
    from lsgd_jax.compare.plan import make_plan
    from lsgd_jax.compare.running import StoppedError, compare, forecast
    from lsgd_jax.errors import InputError, on_full_disk
    from lsgd_jax.files.lock import locked
    from lsgd_jax.files.writable import check_replaceable, make_writable
    from lsgd_jax.report.command import write_report

    logging.set_verbosity(logging.FATAL)  # what libraries log would stand between our lines; errors are raised too
    workdir = pathlib.Path(str(FLAGS.workdir))
    given: dict[str, Any] = given_settings(FLAGS) | {"workdir": str(workdir)}
    make_cpu_devices()
    options: dict[str, Any] = {name: FLAGS[name].value for name, *_ in PLAN}
    plan = make_plan(given, **options)
    use_compilation_cache(bool(FLAGS.compilation_cache))
    if FLAGS.dry_run:
        print(forecast(plan))
        return 0
    make_writable(workdir)
    check_replaceable([workdir / PAGE])
    try:
        with locked(workdir), on_full_disk(workdir):
            files = compare(plan, [f"python {argv[0]} {shlex.join(argv[1:])}".rstrip()], stop)
    except (StoppedError, KeyboardInterrupt) as ended:
        print(f"{program_name(argv)}: stopped; the same command goes on from here", file=sys.stderr)
        return ExitCode.STOPPED if isinstance(ended, StoppedError) else ExitCode.INTERRUPTED
    print(f"\nresults in {workdir}: {', '.join(path.name for path in files)}")
    try:
        page = write_report([workdir / "runs"], workdir / PAGE)
    except InputError as error:  # all runs have diverged before an evaluation, or the disk is full
        page = f"none ({error})"
    print(f"all runs on one page, for a browser: {page}")
    return 0
