"""How flat the minima are in which runs have ended: curvature of the training loss at their deployed models.

--runs names the folder of a finished run of experiments/train.py, a folder of these, as a comparison leaves it, or by a
pattern several, as --runs='runs/compare/*/*/seed=[123]'; on images alone. Of each deployed model, the center or the
leader, whichever has the lower validation error, the largest eigenvalue and the trace of the Hessian are measured. The
loss is that of the run's own training images as an evaluation takes them: float32, no dropout, no random crops, no
weight decay. Written is flatness.csv, a line a run.
"""

import dataclasses
import glob
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.commands.command_line import Flag, command, define, described, parse, refuse, usage_of
from lsgd_jax.commands.compilation_cache import use_compilation_cache

BATCH_SIZE = 128
TABLE = (
    Flag("runs", "path", None, "folder of a finished run, or of several; or a pattern of such, in quotes"),
    Flag("workdir", "path", "runs/flatness", "folder for flatness.csv"),
    Flag("samples", "integer", 2048, f"training images whose mean loss is taken, a multiple of {BATCH_SIZE}"),
    Flag("probes", "integer", 16, "random vectors by which a trace is estimated"),
    Flag("seed", "integer", 0, "of these"),
    Flag("data_dir", "path", None, "folder of prepared TFDS sets (default: that of each run)"),
    Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)


Setting = tuple[tuple[str, Any], ...]
"""All that a run was started with, but for its seed and where it lies."""


class Flatness(NamedTuple):
    """A line of flatness.csv: a run, its deployed model, and the `Curvature` there."""

    run: str
    algorithm: str
    seed: int
    model: str
    loss: float
    eigenvalue: float
    trace: float
    trace_error: float


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    if not FLAGS.runs:
        return refuse(argv, "--runs is missing: name the folder of a finished run, or of several")
    how: dict[str, Any] = {name: FLAGS[name].value for name in ("samples", "probes", "seed", "data_dir")}
    for name, least in (("samples", BATCH_SIZE), ("probes", 2), ("seed", 0)):
        if how[name] < least:
            return refuse(argv, f"--{name}={how[name]}: must be at least {least}")
    if how["samples"] % BATCH_SIZE:
        return refuse(argv, f"--samples={how['samples']}: must be a multiple of {BATCH_SIZE}")

    from lsgd_jax.files.files import write_csv
    from lsgd_jax.files.writable import make_writable

    logging.set_verbosity(logging.ERROR)  # libraries' warnings would stand between our lines
    workdir = pathlib.Path(str(FLAGS.workdir))
    use_compilation_cache(bool(FLAGS.compilation_cache))
    measured = measure(str(FLAGS.runs), **how)
    make_writable(workdir)
    found: list[tuple[Setting, Flatness]] = []
    for setting, of in measured:
        found.append((setting, of))
        write_csv(workdir / "flatness.csv", Flatness._fields, [of for _, of in found], digits=6)
        print(told(of), flush=True)
    print(f"\n{table(found)}\n\nresults in {workdir / 'flatness.csv'}")
    return 0


def usage() -> str:
    """The text of --help."""
    return usage_of("flatness.py", described(__doc__), TABLE, "--runs=FOLDER")


def measure(
    pattern: str, *, samples: int, probes: int, seed: int, data_dir: str | None
) -> Iterator[tuple[Setting, Flatness]]:
    """Checks all runs, and gives an iterator that measures one after the other.

    Raises:
      InputError: if there is no finished run, one is not of images, or its model or images cannot be read.
    """
    from lsgd_jax.config.config import Config
    from lsgd_jax.config.kinds import find_source
    from lsgd_jax.config.saved import read_config
    from lsgd_jax.data.datasets import Source
    from lsgd_jax.errors import InputError
    from lsgd_jax.report.runs import PLACES, read_runs

    literal = pathlib.Path(pattern)
    folders = [literal] if literal.exists() else sorted(map(pathlib.Path, glob.glob(pattern, recursive=True)))
    if not folders:
        raise InputError(f"--runs={pattern}: there is no such folder")
    runs = []
    for shown in read_runs(folders):
        if shown.summary is None:
            raise InputError(f"{shown.folder} is not finished: leave it out, or go on with --resume")
        moved = {} if data_dir is None else {"data_dir": data_dir}
        config = Config(**read_config(shown.folder) | moved)
        source = find_source(config)
        if not isinstance(source, Source):
            raise InputError(f"{shown.folder} is not of images that fit in memory: leave it out")
        if samples > source.train_samples:
            raise InputError(f"--samples={samples}: {source.name} trains on {source.train_samples} images: use fewer")
        runs.append((shown, config, source))

    def setting(config: Config) -> Setting:
        return tuple((name, x) for name, x in dataclasses.asdict(config).items() if name not in ("seed", *PLACES))

    return ((setting(config), of_run(shown, config, source, samples, probes, seed)) for shown, config, source in runs)


def of_run(shown: Any, config: Any, source: Any, samples: int, probes: int, seed: int) -> Flatness:
    """The curvature at a run's deployed model."""
    import jax
    import jax.numpy as jnp
    from curvature import curvature

    from lsgd_jax.data.datasets import load_dataset
    from lsgd_jax.engine.numerics import fixed_numerics
    from lsgd_jax.models import make_model
    from lsgd_jax.tasks.classification import classification_figures
    from lsgd_jax.trainer.saved_models import arrays_of

    network = make_model(config.model_name, source.input_shape, source.classes)
    params, model_state = arrays_of(shown.folder, "best")

    dataset = load_dataset(source, seed=config.seed)
    figures = classification_figures(network, dataset.preprocessing)

    def in_batches(x: Any) -> jax.Array:
        return jnp.asarray(x[:samples]).reshape(-1, BATCH_SIZE, *x.shape[1:])

    def loss(params: Any, batch: Any) -> jax.Array:
        return figures(params, model_state, batch)["loss"].mean()

    with fixed_numerics():
        found = curvature(loss, params, jax.tree.map(in_batches, dataset.train), probes=probes, seed=seed)
    return Flatness(shown.name, config.algorithm, config.seed, shown.summary["best"], *found)


def told(of: Flatness) -> str:
    """A run, for people."""
    return (
        f"{of.run}, {of.model}: loss {of.loss:.4f}, largest eigenvalue {of.eigenvalue:.3g}, "
        f"trace {of.trace:.4g} ± {of.trace_error:.2g}"
    )


def table(found: Sequence[tuple[Setting, Flatness]]) -> str:
    """Means and standard deviations over the runs that differ in their seeds alone, in Markdown."""
    from lsgd_jax.compare.evaluations import spread

    lines = [
        "| algorithm | first run | seeds | loss | eigenvalue | trace |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for setting in dict.fromkeys(setting for setting, _ in found):
        alike = [of for other, of in found if other == setting]
        cells = [alike[0].algorithm, alike[0].run, str(len(alike))]
        for field in ("loss", "eigenvalue", "trace"):
            of_field = spread([getattr(of, field) for of in alike])
            cells.append(f"{of_field.mean:.4g}" + (f" ± {of_field.deviation:.2g}" if len(alike) > 1 else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
