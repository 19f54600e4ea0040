"""Compares a center whose batch statistics were measured again with one that has the mean of the workers'.

--run names the folder of a run of experiments/train.py with a model that has batch norm; its newest checkpoint is read.
"""

import json
import pathlib
import sys
from typing import Any

from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.commands.command_line import Flag, command, define, described, parse, refuse, usage_of
from lsgd_jax.commands.compilation_cache import use_compilation_cache

TABLE = (
    Flag("run", "path", None, "folder of a run with a checkpoint"),
    Flag("workdir", "path", "runs/batch_statistics", "folder for batch_statistics.json"),
    Flag("data_dir", "path", None, "folder of prepared TFDS sets (default: the run's)"),
    Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    if FLAGS.run is None:
        return refuse(argv, "--run is missing: name the folder of a run")

    from lsgd_jax.files.files import write_json
    from lsgd_jax.files.writable import make_writable

    logging.set_verbosity(logging.ERROR)  # libraries' warnings would stand between our lines
    workdir = pathlib.Path(str(FLAGS.workdir))
    data_dir: Any = FLAGS.data_dir
    use_compilation_cache(bool(FLAGS.compilation_cache))
    make_writable(workdir)
    figures = compare(pathlib.Path(str(FLAGS.run)), data_dir)
    write_json(workdir / "batch_statistics.json", figures)
    print(json.dumps(figures, indent=2))
    return 0


def usage() -> str:
    """The text of --help."""
    return usage_of("batch_statistics.py", described(__doc__), TABLE, "--run=FOLDER")


def compare(folder: pathlib.Path, data_dir: str | None) -> dict[str, Any]:
    """The figures of both centers, on validation and test.

    Raises:
      InputError: if there is no such run or checkpoint, or its model has no batch norm.
    """
    from lsgd_jax.config.kinds import find_source
    from lsgd_jax.config.reload import reload_run
    from lsgd_jax.data.text import TextSource
    from lsgd_jax.engine.numerics import fixed_numerics
    from lsgd_jax.errors import InputError
    from lsgd_jax.models import make_model
    from lsgd_jax.tasks.batch_statistics import has_batch_statistics
    from lsgd_jax.tasks.task import Task
    from lsgd_jax.trainer.candidates import make_candidates

    config, run, state, step = reload_run(folder, data_dir)
    source = find_source(config)
    if isinstance(source, Task | TextSource) or not has_batch_statistics(
        make_model(config.model_name, source.input_shape, source.classes)
    ):
        raise InputError(f"--run: {config.model_name} has no batch norm: name a run of vgg16, resnet20 or resnet50")
    with fixed_numerics():
        averaged = make_candidates(run.method, run.topology)(state).center
        return {
            "run": {"algorithm": config.algorithm, "model": config.model_name, "step": step, "seed": config.seed},
            "averaged": run.task.evaluate(averaged, ""),
            "measured again": run.task.evaluate(run.task.prepare_center(averaged), ""),
        }


if __name__ == "__main__":
    sys.exit(main(sys.argv))
