"""Makes one page, for a browser, of one run or several. It loads nothing, so it can be sent to others.

RUN is the --workdir of a run, finished or not, or a folder of runs.
"""

import pathlib
import time
from collections.abc import Sequence

from absl import flags

from lsgd_jax.commands.command_line import Flag, command, define, describe, described, parse, refuse
from lsgd_jax.errors import InputError

TABLE = (
    Flag("output", "path", None, "file for the page (default: report.html in the run's folder; here, for several)"),
    Flag("every", "float", None, "make it again every so many seconds, and let browsers load it again; Ctrl-C ends"),
)
FLAGS = flags.FlagValues()
define(FLAGS, TABLE)
FILE = "report.html"


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    named = [argument for argument in argv[1:] if not argument.startswith("-")]
    done = parse(FLAGS, [argument for argument in argv if argument not in named], usage())
    if done is not None:
        return done
    if not named:
        return refuse(argv, "which runs? name the --workdir of each, or a folder of runs")
    if FLAGS.every is not None and FLAGS.every <= 0:
        return refuse(argv, f"--every={FLAGS.every}: must be more than 0")
    paths = [pathlib.Path(path) for path in named]
    alone = len(paths) == 1 and (paths[0] / "metrics.jsonl").exists()
    output = pathlib.Path(FLAGS.output) if FLAGS.output else (paths[0] if alone else pathlib.Path()) / FILE
    print(write_report(paths, output, refresh=FLAGS.every))
    while FLAGS.every and not (alone and (paths[0] / "summary.json").exists()):  # to a folder more may come
        time.sleep(FLAGS.every)
        write_report(paths, output, refresh=FLAGS.every)
    if FLAGS.every:
        write_report(paths, output)  # which is not loaded again
    return 0


def write_report(paths: Sequence[pathlib.Path], output: pathlib.Path, *, refresh: float | None = None) -> str:
    """Writes the page of some runs, and returns its address.

    Raises:
      InputError: if there is no run, one cannot be read, the page cannot be written, or Plotly is not installed.
    """
    check_plotly()
    from lsgd_jax.files.files import write_whole
    from lsgd_jax.report.page import page
    from lsgd_jax.report.runs import read_runs

    text = page(read_runs(paths), refresh=refresh)
    try:
        write_whole(output, text)
    except OSError as error:
        raise InputError(f"--output={output}: {error.strerror or error}: name another file") from error
    return output.resolve().as_uri()


def check_plotly() -> None:
    """Refuses where it is not installed.

    Raises:
      InputError: what to do.
    """
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise InputError("the page needs Plotly: pip install 'lsgd_jax[train]'") from error


def usage() -> str:
    """The text of --help."""
    head = ["usage: python -m lsgd_jax.report RUN ... [--flag=value ...]", "", described(__doc__), ""]
    return "\n".join([*head, *describe(TABLE)])
