"""One network on 4 workers: samples a second of this library and of PyTorch, in turn in one run.

PyTorch one worker after the other and one process a worker over Gloo, both with averaging after each round:
cnn7 in both memory formats; language models as they are, and the transformer with `torch.compile` too. PyTorch
does not draw or augment batches; ours does. Compilation is over before anything is timed. Needs the extra
`bench`, or another interpreter that has torch:

    python benchmarks/peer_torch.py --torch_python=/path/to/python
    python benchmarks/peer_torch.py --model=transformer --gym=/path/to/gym

The second, for which that interpreter has what EXO Gym (https://github.com/exo-explore/gym) imports, adds DiLoCo
of both (`gym_peer_side.py`).
"""

import argparse
import contextlib
import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import instruction_set
import peer_ratios
import peer_workload
from measure import in_turn, writable, write_results
from peer_process import Peer
from workload import Runner, Training

from lsgd_jax.commands.cpu_devices import make_cpu_devices

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=peer_workload.MODELS, default="cnn7", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--period", type=int, default=16, help="local steps of a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--isa", choices=instruction_set.ISAS, default="native", help="of both sides (default: any)")
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--without_torch", action="store_true", help="only ours")
    parser.add_argument("--gym", type=pathlib.Path, help="a checkout of EXO Gym, for --model=transformer")
    parser.add_argument("--output", type=writable, help="(default: in results/peer_torch)")
    args = parser.parse_args()
    if args.gym and (args.model != "transformer" or args.without_torch):
        parser.error("--gym is for --model=transformer, with PyTorch")
    if args.gym and not (args.gym / "exogym").is_dir():
        parser.error(f"--gym={args.gym} is no checkout of EXO Gym: it has no folder exogym")
    if not args.without_torch and not has(args.torch_python, "torch"):
        parser.error(
            f"{args.torch_python} has no torch: pip install -e '.[bench]', or name another with --torch_python"
        )
    if reason := instruction_set.why_not(args.isa):
        parser.error(f"--isa={args.isa}: {reason}")
    instruction_set.keep_to(args.isa)
    args.output = args.output or writable(str(default_output(args.model, args.isa)))

    make_cpu_devices()  # as train.py does
    ours = compile_ours(args)  # before the others start, so that nothing else runs meanwhile
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer) for peer in start_peers(args)]
        compare(ours, peers, args)
    return 0


def default_output(model: str, isa: str) -> pathlib.Path:
    """A file of its own for each model and set of instructions."""
    parts = ["peer_torch", *([] if model == "cnn7" else [model]), *([] if isa == "native" else [isa])]
    return ROOT / "results" / "peer_torch" / f"{'_'.join(parts)}.json"


def has(python: str, module: str) -> bool:
    """Whether an interpreter has a module."""
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", found], capture_output=True, check=False).returncode == 0


def start_peers(args: argparse.Namespace) -> list[Peer]:
    """PyTorch, and EXO Gym if there is a checkout."""
    if args.without_torch:
        return []
    dtypes = instruction_set.dtypes(args.isa)
    workload = peer_workload.description(args.model, args.workers, args.period, dtypes)
    environment = instruction_set.environment_of(args.isa, os.environ)
    peers = [Peer([args.torch_python, str(HERE / "torch_peer_side.py"), workload], environment)]
    if args.gym:
        paths = [str(args.gym), *filter(None, [environment.get("PYTHONPATH")])]
        environment = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
        peers.append(Peer([args.torch_python, str(HERE / "gym_peer_side.py"), workload], environment))
    return peers


def compile_ours(args: argparse.Namespace) -> dict[str, Training]:
    """The train steps of this library: of LSGD, and beside EXO Gym of DiLoCo."""
    jax.config.update("jax_enable_compilation_cache", False)
    alternatives = [("lsgd_jax", "lsgd", dtype) for dtype in instruction_set.dtypes(args.isa)]
    if args.gym:
        alternatives.append(("lsgd_jax diloco", "diloco", "float32"))
    return {
        f"{name} {dtype}": peer_workload.ours(args.model, args.workers, args.period, method, dtype)
        for name, method, dtype in alternatives
    }


def compare(ours: dict[str, Training], peers: list[Peer], args: argparse.Namespace) -> None:
    """Measures all alternatives in turn, prints and writes them."""
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(Runner(training), args.period) for name, training in ours.items()
    }
    for peer in peers:
        peer_workload.check_parameters(args.model, peer.what["parameters"])
        for theirs in peer.what["alternatives"]:
            runs[theirs] = functools.partial(peer.run, theirs, args.period)
    timings = in_turn(runs, repeats=args.repeats)

    unit = peer_workload.unit(args.model)
    units = args.workers * args.period * peer_workload.units_a_step(args.model)
    rows = peer_ratios.rows({name: peer_ratios.rate(units, timing) for name, timing in timings.items()}, unit)
    peer_ratios.show(rows, f"{args.model}, {unit}/s", unit)
    compile_seconds = {name: training.compile_seconds for name, training in ours.items()}
    for name, seconds in compile_seconds.items():
        print(f"{name}: compiled in {seconds:.1f} s")
    results = {
        "model": args.model,
        "isa": args.isa,
        "torch": peers[0].what["version"] if peers else None,
        "workers": args.workers,
        "period": args.period,
        "compile_seconds": compile_seconds,
        "rows": rows,
    }
    if args.gym:
        results["diloco_of_gym"] = peer_ratios.of(rows, unit, "lsgd_jax diloco float32", "EXO Gym diloco float32")
        print(f"DiLoCo: {results['diloco_of_gym']:.2f} of EXO Gym's {unit}/s")
    write_results(args.output, results)


if __name__ == "__main__":
    sys.exit(main())
