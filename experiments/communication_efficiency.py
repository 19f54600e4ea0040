"""Communication: what LSGD and others send for the same number of local steps, with the paper's periods.

The paper's claim is that only leaders' parameters are broadcast, not all workers'. Bytes are counted in two ways:

- as collectives, read from the methods' own programs by `lsgd_jax.ledger`: a broadcast is a masked sum over a ring, or
  goes around the ring in chunks;
- as messages from one to another, which is how a parameter server works: a leader sends its model to all others; with
  a center, each worker sends its model (or gradient) and hears the center, and the center is on a machine of its own.

No device is needed. 4 workers are one group; more are groups of 4.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import Claim, conclude, experiment, write_csv

from lsgd_jax import DistributedOptimizer, data_parallel, downpour, easgd, ledger, lsgd
from lsgd_jax.commands.command_line import Flag, described
from lsgd_jax.compare.palette import line_of
from lsgd_jax.errors import InputError

TABLE = (
    Flag("workdir", "path", "runs/communication_efficiency", "folder for the figure, the CSV file and claims.json"),
    Flag("workers", "list", ["4", "16", "64", "256"], "numbers of workers: 4 or multiples of 4"),
)

GROUP_SIZE = 4
STEPS = 128 * 100  # a multiple of all periods


class Model(NamedTuple):
    """A model: its title, and its number of parameters. Batch norm's statistics are not counted."""

    title: str
    parameters: int


# As in lsgd_jax/models/, for 10 classes; ResNet-50 for 1,000.
MODELS = {
    "cnn7": Model("cnn7", 351_946),
    "resnet20": Model("ResNet-20", 269_722),
    "vgg16": Model("VGG-16", 15_249_354),
    "resnet50": Model("ResNet-50", 25_557_032),
}
METHODS = ("lsgd", "lsgd_ring", "easgd", "downpour", "data_parallel")
NAMES = {"lsgd": "LSGD", "lsgd_ring": "LSGD, broadcast around the ring", "easgd": "EASGD", "downpour": "DOWNPOUR"} | {
    "data_parallel": "data parallel"
}
WAYS = {"collectives": "as collectives", "messages": "as messages from one to another"}


class Row(NamedTuple):
    """A line of the CSV file.

    Attributes:
      model: a key of MODELS.
      workers: of all groups.
      way: how it is counted, a key of WAYS.
      method: one of METHODS.
      sent: bytes that all workers (and the center) send in a local step of each, on average.
      between: the part of it in communications that go beyond one group.
    """

    model: str
    workers: int
    way: str
    method: str
    sent: float
    between: float


def check(workers: list[str]) -> None:
    """Raises InputError for numbers that cannot be."""
    if not workers or not all(text.isdecimal() and int(text) > 0 and int(text) % GROUP_SIZE == 0 for text in workers):
        raise InputError(f"--workers={','.join(workers)}: must be multiples of {GROUP_SIZE}")
    if (most := max(map(int, workers))) > 1024:
        raise InputError(f"--workers={most}: must be at most 1024")


def run(workdir: pathlib.Path, workers: list[str]) -> int:
    """Runs it, and returns its exit code."""
    sizes = sorted({*map(int, workers)})
    rows = list(count(sizes))
    write_csv(workdir / "communication_efficiency.csv", Row._fields, rows)
    draw(workdir / "communication_efficiency.png", rows, sizes)
    print("KB a worker and local step, on average; in brackets the part that goes beyond one group")
    for way, title in WAYS.items():
        print(f"\n{title:<44}" + "".join(f"{f'{size} workers':>24}" for size in sizes))
        for model in MODELS:
            for method in METHODS:
                mine = [row for row in rows if (row.model, row.way, row.method) == (model, way, method)]
                kilobytes = [(row.sent / row.workers / 1e3, row.between / row.workers / 1e3) for row in mine]
                cells = "".join(f"{f'{sent:,.4g} ({between:,.4g})':>24}" for sent, between in kilobytes)
                if mine:
                    print(f"{MODELS[model].title:<12}{NAMES[method]:<32}{cells}")
    print()
    return conclude(workdir, claims_of(rows, sizes))


def method_of(name: str, groups: int) -> DistributedOptimizer:
    """A method with the paper's periods: 64, and with several groups 128 between them."""
    sgd = optax.sgd(0.1)
    return {
        "lsgd": lambda: lsgd(sgd, local_period=64, global_period=128 if groups > 1 else 64),
        "lsgd_ring": lambda: lsgd(sgd, local_period=64, global_period=128 if groups > 1 else 64, broadcast="ring"),
        "easgd": lambda: easgd(sgd, period=64),
        "downpour": lambda: downpour(sgd, period=1),
        "data_parallel": lambda: data_parallel(sgd),
    }[name]()


def as_collectives(method: str, parameters: int, groups: int) -> tuple[float, float]:
    """(bytes of all workers in a step, those beyond a group), from the ledger."""
    params = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    sends = ledger(method_of(method, groups), params, groups=groups, workers=GROUP_SIZE)
    inside = sum(
        collective.sent_together * sends.rings(collective) / entry.period
        for entry in sends.entries
        if entry.level == "local"
        for collective in entry.collectives
    )
    sent = sends.bytes_sent(STEPS) / STEPS
    return sent, sent - inside if groups > 1 else 0.0


def as_messages(method: str, parameters: int, groups: int) -> tuple[float, float]:
    """The same for messages from one to another, from what each method has to tell.

    A leader: a score (4 bytes) from each of the others, and a rank (4 bytes) and a model to each. A center: a model
    from each worker, and one to each.
    """
    model, workers = 4 * parameters, groups * GROUP_SIZE
    if method == "lsgd":
        between = (workers - 1) * (model + 8) / (128 if groups > 1 else 64)
        inside = groups * (GROUP_SIZE - 1) * (model + 8) / 64 if groups > 1 else 0
        return between + inside, between if groups > 1 else 0.0
    sent = 2 * workers * model / (64 if method == "easgd" else 1)
    return sent, sent if groups > 1 else 0.0


def count(sizes: list[int]) -> Iterator[Row]:
    """All rows."""
    for model in MODELS:
        parameters = MODELS[model].parameters
        for size in sizes:
            groups = size // GROUP_SIZE
            for method in METHODS:
                yield Row(model, size, "collectives", method, *as_collectives(method, parameters, groups))
                if method != "lsgd_ring":
                    yield Row(model, size, "messages", method, *as_messages(method, parameters, groups))


def claims_of(rows: list[Row], sizes: list[int]) -> Iterator[Claim]:
    """The claims, and what became of them."""
    found = {row[:4]: row for row in rows}

    def ratios(way: str, method: str, other: str, sizes: list[int], field: str = "sent") -> dict[tuple, float]:
        """What a method sends, over what another does, by model and number of workers."""
        return {
            (model, size): getattr(found[model, size, way, method], field)
            / getattr(found[model, size, way, other], field)
            for model in MODELS
            for size in sizes
        }

    def fewer(
        way: str, method: str, other: str, sizes: list[int], field: str = "sent", most: float = 1
    ) -> tuple[str, bool]:
        """(what was measured, whether all ratios are below)."""
        ratio = ratios(way, method, other, sizes, field)
        low, high = min(ratio.values()), max(ratio.values())
        shown = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        above = {key for key, value in ratio.items() if value >= most}
        which = ", ".join(f"{MODELS[model].title} on {size}" for model, size in ratio if (model, size) in above)
        return f"{shown} of its bytes" + (f"; not {which}" if 0 < len(above) < len(ratio) else ""), not above

    one, several = [size for size in sizes if size == GROUP_SIZE], [size for size in sizes if size > GROUP_SIZE]
    for way, title in WAYS.items():
        text = f"{title}, LSGD sends less than a twentieth of DOWNPOUR and data parallelism"
        shown, held = fewer(way, "lsgd", "downpour", sizes, most=1 / 20)
        yield Claim(text, shown, held and fewer(way, "lsgd", "data_parallel", sizes, most=1 / 20)[1])
    shown, held = fewer("messages", "lsgd", "easgd", sizes)
    yield Claim("as messages, only leaders' models are sent: LSGD sends less than EASGD", shown, held)
    for some, name in ((one, f"{GROUP_SIZE} workers"), (several, "several groups")):
        if some:
            text = f"as collectives, {name}: LSGD's masked sums send less than EASGD's means"
            shown, held = fewer("collectives", "lsgd", "easgd", some)
            yield Claim(text, shown, held, expected=False)
            text = f"as collectives, {name}: around the ring LSGD sends less than EASGD"
            shown, held = fewer("collectives", "lsgd_ring", "easgd", some)
            yield Claim(text, shown, held, expected=some is one)
    if several:
        for way, method in (("collectives", "lsgd"), ("messages", "lsgd")):
            text = f"{WAYS[way]}, several groups: beyond a group, half as often, LSGD sends at most 0.51 of EASGD"
            yield Claim(text, *fewer(way, method, "easgd", several, "between", most=0.51))


def draw(path: pathlib.Path, rows: list[Row], sizes: list[int]) -> None:
    """Bytes of one worker in a step, a column for each model, a row for each way to count."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, len(MODELS), sharex=True, sharey="col")
    for column, model in zip(panels.T, MODELS, strict=True):
        for panel, way in zip(column, WAYS, strict=True):
            for method in METHODS:
                mine = [row for row in rows if (row.model, row.way, row.method) == (model, way, method)]
                style = line_of(method.removesuffix("_ring")) | {"label": NAMES[method]}
                if method == "lsgd_ring":
                    style |= {"linestyle": ":", "linewidth": 1.8, "markerfacecolor": "white"}
                elif method == "data_parallel":
                    style |= {"linestyle": "--", "markersize": 4}  # on top of DOWNPOUR, which sends as much
                elif method == "downpour":
                    style |= {"markersize": 10}
                if mine:
                    panel.plot([row.workers for row in mine], [row.sent / row.workers / 1e6 for row in mine], **style)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        column[0].set_title(f"{MODELS[model].title}, {MODELS[model].parameters:,} parameters", fontsize=9)
        column[1].set_xlabel("workers")
    for panel, title in zip(panels[:, 0], WAYS.values(), strict=True):
        panel.set_ylabel(f"{title}\nsent a worker and step [MB]")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=100)


main = experiment(__file__, described(__doc__), TABLE, run, least={}, check=check)

if __name__ == "__main__":
    sys.exit(main(sys.argv))
