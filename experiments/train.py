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

FLAGS = flags.FLAGS

# (name, type, default, help); a default of None is explained in the help.
GROUPS: dict[str, tuple[tuple[str, str, Any, str], ...]] = {
    "what to train": (
        (
            "algorithm",
            "string",
            "lsgd",
            "the method, one of those above",
        ),
        ("dataset", "string", "digits", "digits (no download), or a TFDS image classification set such as cifar10"),
        ("model", "string", None, "mlp, cnn3 or cnn7 (default: cnn3 for digits, else cnn7, the paper's)"),
        ("data_dir", "string", None, "folder of prepared TFDS sets (default: ~/tensorflow_datasets)"),
        ("download", "boolean", False, "let TFDS fetch and prepare a missing set (needs the extra 'tensorflow')"),
        ("seed", "integer", 0, "a run is a function of it: start, order, augmentation, held-out images"),
    ),
    "workers": (
        ("groups", "integer", 2, "groups of workers; one group has only the global leader"),
        ("workers", "integer", 4, "workers in each group"),
        ("sampling", "string", "shard", "shard (disjoint, reshuffled each epoch) or iid (any image at any time)"),
        ("init", "string", "same", "same or different initial parameters of the workers"),
    ),
    "local steps": (
        ("optimizer", "string", "sgd", "sgd, adam, adamw or lars"),
        ("learning_rate", "float", 0.05, "of the local steps"),
        ("momentum", "float", 0.9, "of sgd (Nesterov's) and lars; 0 for none"),
        ("weight_decay", "float", 1e-4, "weight decay"),
        ("warmup_steps", "integer", 0, "steps in which the learning rate rises to its value"),
        ("scale_learning_rate", "boolean", False, "times the number of workers, for data_parallel"),
        ("batch_size", "integer", None, "images a worker and step (default: 128, or the shard if it is smaller)"),
        ("steps", "integer", 640, "local steps of each worker"),
        ("compute_dtype", "string", "float32", "float32 or bfloat16: of products; parameters and sums stay float32"),
    ),
    "communication": (
        ("local_pull", "float", 0.1, "lsgd: pull toward the group's leader, in [0, 1]"),
        ("global_pull", "float", 0.1, "lsgd: pull toward the leader of all; grawa, dppf: to the mean; in [0, 1]"),
        ("stale_local_pull", "float", 0.0, "lsgd: pull of every step toward the group's last leader, in [0, 1]"),
        ("stale_global_pull", "float", 0.0, "lsgd: pull of every step toward the last leader of all, in [0, 1]"),
        ("local_period", "integer", 16, "lsgd, local_sgd: steps between two communications inside a group"),
        ("global_period", "integer", 64, "steps between two communications of all, a multiple of the local period"),
        ("leader_window", "integer", 10, "batches in a worker's score, its mean training loss (grawa: gradient norm)"),
        (
            "wire_dtype",
            "string",
            None,
            "lsgd: bfloat16, float16 or int8, how a leader's model travels (default: as it is)",
        ),
        ("beta", "float", 0.9, "easgd, eamsgd: how far the center moves to the workers, in [0, 1]"),
        ("outer_learning_rate", "float", 0.7, "diloco: of the outer optimizer, SGD"),
        ("outer_momentum", "float", 0.9, "diloco: its Nesterov momentum; 0 for none"),
        ("push", "float", 0.1, "dppf: length of the push away from the mean"),
    ),
    "run": (
        ("workdir", "string", None, "folder for the results (default: runs/ and the date, data set and algorithm)"),
        ("eval_every", "integer", None, "steps between two evaluations (default: a twentieth of the run)"),
        ("checkpoint_every", "integer", None, "steps between two checkpoints (default: a fifth of the run)"),
        ("resume", "boolean", False, "go on with the run in --workdir; its settings need not be repeated"),
        ("profile_dir", "string", None, "folder for a jax.profiler trace of the first rounds (default: none)"),
        ("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax for the next run"),
    ),
}

# What concerns this process, not the run: not kept in config.json.
PROCESS_FLAGS = ("resume", "profile_dir", "compilation_cache")

for _group in GROUPS.values():
    for _name, _type, _default, _help in _group:
        getattr(flags, f"DEFINE_{_type}")(_name, _default, _help)


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python experiments/train.py [--flag=value ...]", "", __doc__.strip(), ""]
    for group, members in GROUPS.items():
        lines.append(f"{group}:")
        for name, kind, default, text in members:
            shown = f"--[no]{name}" if kind == "boolean" else f"--{name}"
            told = "" if default is None or kind == "boolean" else f" (default: {default})"
            lines.append(f"  {shown:<26} {text}{told}")
        lines.append("")
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
        config = load_config(workdir, _given_flags() | {"workdir": workdir}, resume=FLAGS.resume)
        profile_dir = os.path.expanduser(FLAGS.profile_dir) if FLAGS.profile_dir else None
        _use_compilation_cache(FLAGS.compilation_cache)
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


def _use_compilation_cache(wanted: bool) -> None:
    """Keeps compiled programs for later processes: where JAX's own setting says, or in a folder of ours."""
    import jax

    jax.config.update("jax_enable_compilation_cache", wanted)
    if wanted and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lsgd_jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _given_flags() -> dict[str, Any]:
    """The flags that the user set, by the command line or a flagfile."""
    names = [name for group in GROUPS.values() for name, *_ in group if name not in PROCESS_FLAGS]
    given = {name: FLAGS[name].value for name in names if FLAGS[name].present}
    if given.get("data_dir"):
        given["data_dir"] = os.path.abspath(os.path.expanduser(str(given["data_dir"])))
    return given


def _default_workdir() -> str:
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return str(pathlib.Path("runs") / f"{now}-{FLAGS.dataset}-{FLAGS.algorithm}")


def _how_to_resume(program: str, workdir: str) -> str:
    return f"to go on: {shlex.join([sys.executable, program, f'--workdir={workdir}', '--resume'])}"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
