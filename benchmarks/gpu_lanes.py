"""Ways to compute the convolutions of several workers on one GPU: what a local step launches, and how long it takes.

python benchmarks/gpu_lanes.py --target=h100:1x1     # compiled alone, without a GPU; needs the extra 'gpu'
python benchmarks/gpu_lanes.py                       # on the GPU that is here, in turn
"""

import argparse
import collections
import contextlib
import functools
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import in_turn, print_table, writable, write_results

from lsgd_jax.commands.environment import set_for_compilers

ROOT = pathlib.Path(__file__).parents[1]
HOOK = "lsgd_jax.models.layers.conv_general_dilated"
# What is vmapped where: the step of all workers, in which convolutions are what is to be compared, or nothing.
WAYS = ("grouped", "patches", "one by one", "worker by worker")
INSTRUCTION = re.compile(r"^  (?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
NO_KERNEL = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call"}
TARGET = re.compile(r'custom_call_target="__cudnn\$(\w+)"')
GROUPS = re.compile(r"(?:feature|batch)_group_count=(\d+)")
BODY = re.compile(r" while\(.*body=%?([\w.\-]+)")
WINDOW = re.compile(r"window=\{size=(\d+)x")


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", help="hardware to compile for, in place of what is here")
    parser.add_argument("--model", default="cnn7", help="(default: %(default)s)")
    parser.add_argument("--workers", default="4,16", help="separated by commas (default: %(default)s)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=writable, help="(default: results/gpu_lanes/, compiled.json or timed.json)")
    args = parser.parse_args()
    if args.target:
        set_for_compilers()
    name = "compiled.json" if args.target else "timed.json"
    args.output = args.output or writable(str(ROOT / "results/gpu_lanes" / name))
    rows: list[dict[str, Any]] = []
    for dtype in args.dtypes.split(","):
        for workers in map(int, args.workers.split(",")):
            one = {"model": args.model, "dtype": dtype, "workers": workers}
            found = compiled(args.target, **one) if args.target else timed(args.repeats, **one)
            rows += [{**one, "way": way, **figures} for way, figures in found.items()]
    print_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    write_results(args.output, {"target": args.target, "rows": rows})
    return 0


@contextlib.contextmanager
def computed(way: str) -> Iterator[Any]:
    """Traces convolutions in that way, and gives the topology's `lanes`."""
    import jax.numpy as jnp
    from jax import lax

    from lsgd_jax.models.convolution import patches

    def by_patches(images: Any, kernel: Any, strides: Any, padding: Any, **_: Any) -> Any:
        return patches.convolve(jnp.pad(images, ((0, 0), *padding, (0, 0))), kernel, strides)

    ways: dict[str, Any] = {"grouped": lax.conv_general_dilated, "patches": by_patches}
    with mock.patch(HOOK, ways[way]) if way in ways else contextlib.nullcontext():
        yield "sequential" if way == "worker by worker" else "vmap"


def compiled(target: str, model: str, dtype: str, workers: int) -> dict[str, dict[str, Any]]:
    """What a local step launches, by way."""
    import jax
    from workload import base_optimizer, problem

    from lsgd_jax import Topology, lsgd
    from lsgd_jax.accounting.ahead_of_time import compile_for
    from lsgd_jax.accounting.targets import devices_of, read_target
    from lsgd_jax.data.rows import as_rows

    update: Any = jax.config.update
    update("jax_enable_compilation_cache", False)  # which cannot keep such programs
    devices, found = devices_of(read_target(target))[:1], {}
    for way in WAYS:
        with computed(way) as lanes:
            learned = problem(model, dtype)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), as_rows(learned.data))
            topology = Topology(1, workers, devices, lanes=lanes)
            program = compile_for(learned._replace(data=shapes), lsgd(base_optimizer(), global_period=16), topology)
        kernels, convolutions = launched(program.text)
        found[way] = {
            "kernels a step": kernels,
            "of cuDNN": ", ".join(f"{count} {kind}" for kind, count in sorted(convolutions.items())) or "none",
            "peak MiB": round(program.peak / 2**20),
            "compile s": round(program.seconds, 1),
        }
    return found


def launched(program: str) -> tuple[int, collections.Counter[str]]:
    """How many kernels a local step of all workers launches, and which convolutions of cuDNN are among them.

    Local steps are the loop of unknown length; loops of known length, over workers, are in it or around it.
    """
    from lsgd_jax.accounting.compiled import branches_of, called_by, computations, trips_of

    entry, instructions = computations(program)
    kernels, convolutions = 0, collections.Counter[str]()

    def visit(name: str, inside: bool, times: int) -> None:
        nonlocal kernels
        for line in instructions[name]:
            opcode = INSTRUCTION.match(line)
            if " while(" in line or " call(" in line or " conditional(" in line:
                trips = trips_of(line, instructions)
                unknown = " while(" in line and trips is None
                for called in [*BODY.findall(line), *branches_of(line)] or called_by(line):
                    visit(called, inside or unknown, times * (trips or 1))
            elif inside and opcode and opcode[1] not in NO_KERNEL:
                kernels += times
                if cudnn := TARGET.search(line):
                    groups, window = GROUPS.search(line), WINDOW.search(line)
                    kind = f"{cudnn[1]} {window[1] if window else '?'}²"
                    convolutions[f"{kind} in {groups[1]} groups" if groups else kind] += times

    visit(entry, False, 1)
    return kernels, convolutions


def timed(repeats: int, model: str, dtype: str, workers: int) -> dict[str, dict[str, Any]]:
    """Images a second on the device that is here, by way: median, slowest and fastest."""
    from workload import BATCH_SIZE, Runner, train_step

    runs, period = {}, 16
    for way in WAYS:
        with computed(way) as lanes:
            training = train_step(model, 1, workers, compute_dtype=dtype, lanes=lanes, period=period)
        runs[way] = functools.partial(Runner(training), period)
    images = period * workers * BATCH_SIZE
    return {
        way: {
            "images/s": round(images / timing.median),
            "slowest": round(images / timing.high),
            "fastest": round(images / timing.low),
        }
        for way, timing in in_turn(runs, repeats=repeats).items()
    }


if __name__ == "__main__":
    sys.exit(main())
