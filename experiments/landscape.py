"""Draws the training loss over the plane through a worker, its local leader and the global leader.

--run names the folder of a run of experiments/train.py; its newest checkpoint is read. Who leads is decided by the
scores at that step. Where two of the three are the same worker (with one group, always), the mean of all workers takes
the free place. The loss is that of fixed minibatches of all workers, as in training: with dropout, and with the batch
statistics of each minibatch.
"""

import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.commands.command_line import Flag, command, define, described, parse, refuse, usage_of
from lsgd_jax.commands.compilation_cache import use_compilation_cache
from lsgd_jax.trainer.colours import BLUE, ORANGE, VERMILLION

TABLE = (
    Flag("run", "path", None, "folder of a run with a checkpoint"),
    Flag("workdir", "path", "runs/landscape", "folder for landscape.png and landscape.csv"),
    Flag("worker", "integer", None, "rank of the worker (default: the one with the highest score)"),
    Flag("points", "integer", 21, "points along each side of the grid"),
    Flag("batches", "integer", 1, "minibatches of each worker whose mean loss is drawn"),
    Flag("data_dir", "path", None, "folder of prepared TFDS sets (default: the run's)"),
    Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)


class Place(NamedTuple):
    """A model in the plane: what it is, and its coordinates in units of the parameters."""

    name: str
    x: float
    y: float


class Landscape(NamedTuple):
    """Losses on a grid, [y, x], at the coordinates `xs` and `ys`; and the places of the models."""

    xs: np.ndarray
    ys: np.ndarray
    losses: np.ndarray
    places: list[Place]
    step: int


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    if FLAGS.run is None:
        return refuse(argv, "--run is missing: name the folder of a run")
    arguments: dict[str, Any] = {name: FLAGS[name].value for name in ("worker", "points", "batches", "data_dir")}
    for name, least in (("points", 3), ("batches", 1)):
        if arguments[name] < least:
            return refuse(argv, f"--{name}={arguments[name]}: must be at least {least}")

    from lsgd_jax.files.writable import make_writable

    logging.set_verbosity(logging.ERROR)  # libraries' warnings would stand between our lines
    workdir = pathlib.Path(str(FLAGS.workdir))
    use_compilation_cache(bool(FLAGS.compilation_cache))
    make_writable(workdir)
    landscape = survey(pathlib.Path(str(FLAGS.run)), **arguments)
    write(workdir / "landscape.csv", landscape)
    draw(workdir / "landscape.png", landscape)
    for place in landscape.places:
        print(f"{place.name:<28} at ({place.x:.4g}, {place.y:.4g})")
    print(f"\nresults in {workdir}: landscape.png, landscape.csv")
    return 0


def usage() -> str:
    """The text of --help."""
    return usage_of("landscape.py", described(__doc__), TABLE, "--run=FOLDER")


def survey(folder: pathlib.Path, *, worker: int | None, points: int, batches: int, data_dir: str | None) -> Landscape:
    """Reads a run's newest checkpoint and computes the loss over the plane.

    Raises:
      InputError: if there is no such run, checkpoint or worker, or no plane through the three.
    """
    import jax

    from lsgd_jax.config.reload import reload_run
    from lsgd_jax.engine.numerics import fixed_numerics

    config, run, state, step = reload_run(folder, data_dir)
    state = jax.device_get(state._replace(keys=jax.random.key_data(state.keys)))
    names, models, rank = _three_models(state, config.groups, config.workers, worker)
    with fixed_numerics():
        losses_of = _loss_on_minibatches(run, state, rank, batches)
        return _over_plane(losses_of, names, models, points, step)


def _three_models(state: Any, groups: int, workers: int, worker: int | None) -> tuple[list[str], list[Any], int]:
    """(names, parameters) of the global leader, the local leader and the worker; and the worker's rank."""
    import jax

    from lsgd_jax.errors import InputError
    from lsgd_jax.optimizers.window import window_mean

    size = groups * workers
    params = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), state.params)
    finite = np.all([np.isfinite(leaf.reshape(size, -1)).all(1) for leaf in jax.tree.leaves(params)], axis=0)
    means = np.asarray(jax.vmap(jax.vmap(window_mean))(state.losses)).reshape(size)
    able = finite & np.isfinite(means)
    if not able.any():
        raise InputError("no worker of this run can lead: its losses or parameters are not finite")
    scores = np.where(able, means, np.inf)
    leader = int(np.argmin(scores))
    # Of another group than the leader's, so that it has a local leader of its own.
    others = able & (np.arange(size) // workers != leader // workers)
    rank = int(np.argmax(np.where(others if others.any() else able, means, -np.inf))) if worker is None else worker
    if not 0 <= rank < size:
        raise InputError(f"--worker={rank}: the run has workers 0 to {size - 1}")
    if not finite[rank]:
        raise InputError(f"--worker={rank}: it is lost (parameters that are not finite): choose another")
    start = rank // workers * workers
    local = start + int(np.argmin(scores[start : start + workers]))
    named = {rank: f"worker {rank}"} | {local: f"local leader ({local})"} | {leader: f"global leader ({leader})"}
    named = dict(reversed(named.items()))
    models = [jax.tree.map(lambda x, r=r: x[r], params) for r in named]
    names = list(named.values())
    if len(models) < 3:
        names.append("mean of all")
        models.append(jax.tree.map(lambda x: x[finite].mean(0), params))
    if len(models) < 3:
        raise InputError(f"--worker={rank}: it is the leader itself: choose another")
    return names, models, rank


def _loss_on_minibatches(run: Any, state: Any, rank: int, batches: int) -> Any:
    """`params -> loss`, jitted: the mean over some minibatches that each worker would draw next."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from lsgd_jax.engine.numerics import wrap_keys

    plan, draw, per_worker = run.task.batches
    data, step = run.task.data_for(int(state.step), 0), jnp.asarray(state.step)
    model_state = jax.tree.map(lambda x: x[divmod(rank, run.topology.workers)], state.model_state)

    def of_worker(params: Any, place: tuple[int, int]) -> jax.Array:
        key = wrap_keys(state.keys[place])
        mine = jax.tree.map(lambda own, part: jax.tree.map(lambda x: x[place], part) if own else part, per_worker, data)

        def of_batch(of: tuple[Any, jax.Array]) -> jax.Array:
            planned, number = of
            draw_key, loss_key = jax.random.split(jax.random.fold_in(key, number))
            return run.task.loss(params, model_state, draw(mine, planned, draw_key), loss_key)[0]

        return lax.map(of_batch, (plan(jax.random.fold_in(key, 0), step, batches), jnp.arange(batches))).mean()

    @jax.jit
    def loss(params: Any) -> jax.Array:
        return jnp.stack([of_worker(params, place) for place in np.ndindex(run.topology.shape)]).mean()

    return loss


def _over_plane(loss: Any, names: list[str], models: list[Any], points: int, step: int) -> Landscape:
    """Orthonormal axes from the first model: to the second, and from there to the third."""
    from jax.flatten_util import ravel_pytree

    from lsgd_jax.errors import InputError

    flat, unravel = zip(*[ravel_pytree(model) for model in models], strict=True)
    origin, second, third = (np.asarray(vector, np.float64) for vector in flat)
    along, across = second - origin, third - origin
    if not np.linalg.norm(along):
        raise InputError(
            "the models are all at one point: a run that has gone on since the last communication is needed"
        )
    first_axis = along / np.linalg.norm(along)
    across = across - (across @ first_axis) * first_axis
    if np.linalg.norm(across) <= 1e-6 * np.linalg.norm(along):
        raise InputError("the three models are on one line: choose another --worker")
    second_axis = across / np.linalg.norm(across)
    vectors = [vector - origin for vector in (origin, second, third)]
    places = [
        Place(name, float(v @ first_axis), float(v @ second_axis)) for name, v in zip(names, vectors, strict=True)
    ]
    span = [[place.x for place in places], [place.y for place in places]]
    margin = 0.4 * max(max(side) - min(side) for side in span)
    xs, ys = (np.linspace(min(side) - margin, max(side) + margin, points) for side in span)
    losses = np.array(
        [
            [float(loss(unravel[0]((origin + x * first_axis + y * second_axis).astype(flat[0].dtype)))) for x in xs]
            for y in ys
        ]
    )
    return Landscape(xs, ys, losses, places, step)


def write(path: pathlib.Path, landscape: Landscape) -> None:
    """Writes the grid as CSV: x, y, loss."""
    from lsgd_jax.files.files import write_csv

    lines = zip(landscape.ys, landscape.losses, strict=True)
    rows = ((float(x), float(y), float(loss)) for y, line in lines for x, loss in zip(landscape.xs, line, strict=True))
    write_csv(path, ("x", "y", "loss"), rows, digits=6)


def draw(path: pathlib.Path, landscape: Landscape) -> None:
    """Draws contours of the loss, and the models."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.6), layout="constrained")
    panel = figure.subplots()
    losses = np.where(np.isfinite(landscape.losses), landscape.losses, np.nan)
    levels = np.geomspace(np.nanmin(losses), np.nanmax(losses) * (1 + 1e-6), 25)
    filled = panel.contourf(landscape.xs, landscape.ys, losses, levels, cmap="Greys")
    panel.contour(landscape.xs, landscape.ys, losses, levels, colors="white", linewidths=0.4)
    ticks = levels[::4]
    figure.colorbar(filled, label="training loss [nats]", ticks=ticks, format="%.3g")
    for place, colour, marker in zip(landscape.places, (VERMILLION, ORANGE, BLUE), ("*", "D", "o"), strict=True):
        panel.plot(place.x, place.y, marker, color=colour, markersize=11, markeredgecolor="white", label=place.name)
    panel.set_xlabel(f"from the {landscape.places[0].name} to the {landscape.places[1].name} [parameters]")
    panel.set_ylabel("across [parameters]")
    panel.set_aspect("equal")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, title=f"after {landscape.step} steps")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
