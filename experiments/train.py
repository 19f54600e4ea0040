"""Trains an image classifier on many workers that talk rarely, with LSGD or a baseline.

Without flags: scikit-learn's handwritten digits, 2 groups of 4 workers on this machine.

methods:
  lsgd               now and then a pull to the worker that does best, in the group and of all (the paper)
  easgd, eamsgd      workers and a center pull at each other; eamsgd with the momentum of its own paper
  downpour           a center adds up what all workers add up, and they start again from it
  local_sgd          workers become their mean, in the group and of all
  diloco             an outer optimizer takes the workers' mean displacement for a gradient
  grawa              a pull to the mean, in which workers with small gradients weigh more
  dppf               a pull to the mean, and a push of constant length away from it
  data_parallel      gradients are averaged in each step
  sgd, none          no communication: of one worker, of many
"""

import datetime
import os
import pathlib
import shlex
import sys
from typing import Any

from absl import flags, logging
from command_line import parse, refuse
from settings import GROUPS, define_flags, describe_flags, given_settings, use_compilation_cache

FLAGS = flags.FLAGS

define_flags(FLAGS, [name for group in GROUPS.values() for name, *_ in group])


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python experiments/train.py [--flag=value ...]", "", __doc__.strip(), ""]
    for group, members in GROUPS.items():
        lines += [f"{group}:", *describe_flags(name for name, *_ in members), ""]
    lines.append("  --flagfile=FILE            read flags from a file, one a line")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done

    if FLAGS.resume and FLAGS.workdir is None:
        return refuse(argv, "--resume needs to know the run: add its --workdir")

    # Only now: a mistyped flag is told without waiting for these.
    from lsgd_jax.training.errors import AllWorkersLostError, InputError
    from lsgd_jax.training.trainer import train
    from lsgd_jax.training.workdir import load_config

    logging.set_verbosity(logging.ERROR)  # libraries' warnings would stand between our lines
    workdir: str = os.path.expanduser(str(FLAGS.workdir or _default_workdir()))
    try:
        config = load_config(workdir, given_settings(FLAGS) | {"workdir": workdir}, resume=FLAGS.resume)
        profile_dir = os.path.expanduser(FLAGS.profile_dir) if FLAGS.profile_dir else None
        use_compilation_cache(FLAGS.compilation_cache)
        summary = train(config, resume=FLAGS.resume, profile_dir=profile_dir)
    except InputError as error:
        return refuse(argv, str(error))
    except AllWorkersLostError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: interrupted", file=sys.stderr)
        if (pathlib.Path(workdir) / "config.json").exists():
            print(_how_to_resume(argv[0], workdir), file=sys.stderr)
        return 130
    if summary is None:
        print(_how_to_resume(argv[0], workdir))
    else:
        print(table(summary, config.workdir))
    return 0


def table(summary: dict[str, Any], workdir: str) -> str:
    """The table at the end of a run."""

    def percent(error: float) -> str:
        return f"{100 * error:10.2f} %"

    setting = (
        f"{summary['algorithm']} on {summary['dataset']}: {summary['model']}, {summary['parameters']:,} parameters, "
        f"{summary['groups']} × {summary['workers']} workers, {summary['step']} steps of {summary['batch_size']} "
        f"images, {summary['seconds']:.1f} s, {summary['bytes_communicated'] / 1e6:,.1f} MB sent"
    )
    leader = f"leader ({summary['leader']})"
    lines = [
        "",
        setting,
        f"{'error':<16}{'validation':>12}{'test':>12}",
        f"{'center':<16}{percent(summary['validation_error'])}{percent(summary['test_error'])}",
        f"{leader:<16}{percent(summary['leader_validation_error'])}{percent(summary['leader_test_error'])}",
    ]
    pairs = zip(summary["worker_validation_error"], summary["worker_test_error"], strict=True)
    lines += [f"{f'worker {rank}':<16}{percent(v)}{percent(t)}" for rank, (v, t) in enumerate(pairs)]
    lines += ["", f"results in {workdir}: " + ", ".join(["metrics.jsonl", "leaders.csv", *summary["figures"]])]
    return "\n".join(lines)


def _default_workdir() -> str:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return str(pathlib.Path("runs") / f"{now}-{FLAGS.dataset}-{FLAGS.algorithm}")


def _how_to_resume(program: str, workdir: str) -> str:
    return f"to go on: {shlex.join([sys.executable, program, f'--workdir={workdir}', '--resume'])}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
