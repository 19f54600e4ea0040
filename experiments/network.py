"""How long training takes on 4 to 1,024 workers, by method, model and network.

Predicted, not measured: from the ledger of each method, the compute seconds of a step, and the latency
and bandwidth of networks. No device is needed. It is time for a number of samples, not for an accuracy.
"""

import dataclasses
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from lsgd_jax.commands.command_line import Flag, command, define, described, parse, refuse, usage_of
from lsgd_jax.compare.palette import line_of


class Model(NamedTuple):
    """A model to train. It travels as one message of float32.

    Attributes:
      title: its name.
      parameters: their number.
      batch_size: samples of a worker in a step.
      samples: of the whole training.
      compute_seconds: of a step of one worker, the default of its flag.
      source: of these figures.
    """

    title: str
    parameters: int
    batch_size: int
    samples: float
    compute_seconds: float
    source: str


MODELS = {
    "cnn7": Model(
        "cnn7, CIFAR-10", 351_946, 128, 100 * 50_000, 0.003,
        "the paper's net, as in lsgd_jax/models/small.py; 100 epochs; 12.4 GFLOP a step, at an assumed 4 TFLOP/s",
    ),
    "resnet50": Model(
        "ResNet-50, ImageNet", 25_557_032, 128, 90 * 1_281_167, 0.05,
        "He et al. 2016, parameters as torchvision counts them; 90 epochs; an assumed 2,560 images/s a worker",
    ),
    "lm1b": Model(
        "1B-parameter language model", 10**9, 8, 20e9 / 2048, 0.8,
        "a round number; sequences of 2,048 tokens, 20 tokens a parameter (Hoffmann et al. 2022); "
        "6 FLOP a token and parameter, at an assumed 120 TFLOP/s",
    ),
}  # fmt: skip
WORKERS = tuple(2**exponent for exponent in range(2, 11))

TABLE = (
    Flag("workdir", "path", "runs/network", "folder for network.csv and network.png"),
    Flag("workers_per_node", "integer", 4, "workers that share a node and its network card; a node is a group"),
    *(
        Flag(f"{name}_seconds", "float", model.compute_seconds, f"compute seconds of a step: {model.title}")
        for name, model in MODELS.items()
    ),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)


# Some once more, with communications that take effect a period later, and in 4 bits besides.
LATER, FEWER = ", overlapped", ", overlapped, 4 bits"
AGAIN = {LATER: ("lsgd", "local_sgd", "diloco"), FEWER: ("lsgd", "diloco")}
# Marks of the axis: hours span seven powers of ten, and no unit suits them all.
MARKS = {
    "0.1 s": 0.1, "1 s": 1, "10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600, "5 h": 18_000,
    "1 day": 86_400, "10 days": 864_000, "100 days": 8_640_000, "1,000 days": 86_400_000,
}  # fmt: skip
# Communication counts as vanished where a step takes so many times as long as its computation, or less.
VANISHED = 1.05


class Row(NamedTuple):
    """A line of network.csv; hours of wall-clock, and what one worker sends in a step, on average."""

    model: str
    network: str
    method: str
    workers: int
    nodes: int
    hours: float
    compute_hours: float
    messages_a_step: float
    bytes_a_step: float


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    workers_per_node: Any = FLAGS.workers_per_node
    if workers_per_node not in (1, 2, *WORKERS):
        return refuse(argv, f"--workers_per_node={workers_per_node}: must be a power of 2, at most {WORKERS[-1]:,}")
    compute_seconds: dict[str, Any] = {name: FLAGS[f"{name}_seconds"].value for name in MODELS}
    for name, seconds in compute_seconds.items():
        if not 0 < seconds < float("inf"):
            return refuse(argv, f"--{name}_seconds={seconds}: must be more than 0")
    workdir = pathlib.Path(FLAGS.workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        rows = predict(compute_seconds, workers_per_node)
        write(workdir / "network.csv", rows)
        draw(workdir / "network.png", rows, workers_per_node)
    except OSError as error:
        return refuse(argv, f"cannot write to --workdir={FLAGS.workdir} ({error.strerror}): choose another folder")
    print(table(rows, compute_seconds))
    print(f"\nresults in {workdir}: network.csv, network.png")
    return 0


def usage() -> str:
    """The text of --help."""
    return usage_of("network.py", described(__doc__), TABLE)


def predict(compute_seconds: dict[str, float], workers_per_node: int) -> list[Row]:
    """The time of each method, with the defaults of `experiments/train.py`, on each network."""
    import jax
    import jax.numpy as jnp

    from lsgd_jax import ledger
    from lsgd_jax.accounting.network import NETWORKS, run_seconds
    from lsgd_jax.config.config import Config
    from lsgd_jax.config.make_method import make_method
    from lsgd_jax.config.methods import METHODS, users_of

    rows = []
    for name, model in MODELS.items():
        params = jax.ShapeDtypeStruct((model.parameters,), jnp.float32)
        again = [(method, how) for how, methods in AGAIN.items() for method in methods]
        for method, how in [*((method, "") for method in METHODS), *again]:
            for size in WORKERS:
                nodes = max(1, size // workers_per_node)
                config = Config(workdir="", algorithm=method, groups=nodes, workers=size // nodes)
                if how:
                    two_levels = nodes > 1 and method in users_of("local_period")
                    period = config.local_period if two_levels else config.global_period
                    config = dataclasses.replace(config, overlap=period, compress=4 if how == FEWER else None)
                sends = ledger(make_method(config), params, groups=nodes, workers=size // nodes)
                if not sends.entries:  # workers that are alone, or never communicate
                    continue
                messages = sum(entry.messages / entry.period for entry in sends.entries)
                sent = sum(entry.sent / entry.period for entry in sends.entries)
                steps, compute = model.samples / (model.batch_size * size), compute_seconds[name]
                for link, network in NETWORKS.items():
                    seconds = run_seconds(sends, network, compute_seconds=compute, steps=steps)
                    hours = seconds / 3600, steps * compute / 3600
                    rows.append(Row(name, link, method + how, size, nodes, *hours, messages, sent))
    return rows


def write(path: pathlib.Path, rows: list[Row]) -> None:
    """Writes the rows as CSV."""
    from lsgd_jax.files.files import write_csv

    write_csv(path, Row._fields, rows, digits=6)


def draw(path: pathlib.Path, rows: list[Row], workers_per_node: int) -> None:
    """Draws a panel for each model and network: time over workers, a line for each method."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    networks = list(dict.fromkeys(row.network for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    panels = figure.subplots(len(MODELS), len(networks), sharex=True, sharey="row", squeeze=False)
    for panel_row, (name, model) in zip(panels, MODELS.items(), strict=True):
        for panel, network in zip(panel_row, networks, strict=True):
            here = [row for row in rows if (row.model, row.network) == (name, network)]
            alone = [row for row in here if row.method == methods[0]]
            panel.plot([row.workers for row in alone], [row.compute_hours for row in alone], "--", color="0.4",
                       linewidth=1.2, label="computation alone")  # fmt: skip
            for method in methods:
                line = [row for row in here if row.method == method]
                base, _, again = method.partition(",")
                number = ["", *AGAIN].index(f",{again}" if again else "")
                how = line_of(base, number, among=methods) | {"label": method}
                panel.plot([row.workers for row in line], [row.hours for row in line], **how)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(WORKERS[::2], [f"{size:,}" for size in WORKERS[::2]])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.grid(alpha=0.3)
            if name == next(iter(MODELS)):
                panel.set_title(network, fontsize=11)
        # Rows share their axis: its limits are those of all lines only now, and marks outside would move them.
        lowest, highest = panel_row[0].get_ylim()
        marks = {mark: seconds / 3600 for mark, seconds in MARKS.items() if lowest <= seconds / 3600 <= highest}
        panel_row[0].set_yticks(list(marks.values()), list(marks))
        panel_row[0].yaxis.set_minor_locator(NullLocator())
        panel_row[0].set_ylabel(f"{model.title}\ntime for {model.samples / 1e6:.3g} million samples")
    for panel in panels[-1]:
        panel.set_xlabel(f"workers, {workers_per_node} a node")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150)


def table(rows: list[Row], compute_seconds: dict[str, float]) -> str:
    """Hours by model, network and method, a column for each number of workers."""
    lines, networks = ["hours, predicted"], list(dict.fromkeys(row.network for row in rows))
    for name, model in MODELS.items():
        batch = f"{compute_seconds[name]:g} s a step of {model.batch_size} a worker"
        lines += ["", f"{model.title}: {model.parameters:,} parameters, {model.samples:,.0f} samples, {batch}"]
        lines += [f"  {model.source}", f"{'workers':<49}" + "".join(f"{size:>9,}" for size in WORKERS)]
        by_line: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row.model == name:
                by_line.setdefault((row.network, row.method), []).append(row.hours)
        lines += [
            f"{network:<21}{method:<28}" + "".join(f"{hours:>9.3g}" for hours in line)
            for (network, method), line in sorted(by_line.items(), key=lambda item: networks.index(item[0][0]))
        ]
    return "\n".join([*lines, "", *reach(rows)])


def reach(rows: list[Row]) -> list[str]:
    """Up to how many workers communication has vanished: a column for each network."""
    networks = list(dict.fromkeys(row.network for row in rows))
    lines = [f"workers up to which a step takes at most {VANISHED} of its computation"]
    lines.append(f"{'':<40}" + "".join(f"{network:>21}" for network in networks))
    for model, method in dict.fromkeys((row.model, row.method) for row in rows):
        columns = []
        for network in networks:
            here = [row for row in rows if (row.model, row.method, row.network) == (model, method, network)]
            fine = [row.workers for row in here if row.hours <= VANISHED * row.compute_hours]
            columns.append(f"{max(fine, default=0) or '–':>21}")
        lines.append(f"{model:<12}{method:<28}" + "".join(columns))
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv))
