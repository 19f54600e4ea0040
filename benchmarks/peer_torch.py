"""cnn7 on 4 workers: images a second of this library and of PyTorch, in turn in one run.

PyTorch one worker after the other and one process a worker over Gloo, both with averaging after each
round, in both memory formats, without drawing or augmenting batches; ours with them. Needs the extra `bench`,
or another interpreter that has torch:

    python benchmarks/peer_torch.py --torch_python=/path/to/python
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import in_turn, print_table, writable, write_results
from workload import BATCH_SIZE, Runner, train_step

ROOT = pathlib.Path(__file__).parents[1]


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--period", type=int, default=16, help="local steps of a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/peer_torch/peer_torch.json"))
    args = parser.parse_args()
    if subprocess.run([args.torch_python, "-c", "import torch"], capture_output=True, check=False).returncode:
        parser.error(
            f"{args.torch_python} has no torch: pip install -e '.[bench]', or name another with --torch_python"
        )

    command = [args.torch_python, str(pathlib.Path(__file__).with_name("torch_peer_side.py"))]
    command += [str(args.workers), str(BATCH_SIZE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer:
        try:
            compare(peer, args)
        finally:
            peer.terminate()
    return 0


def compare(peer: subprocess.Popen, args: argparse.Namespace) -> None:
    """Measures all alternatives in turn, prints and writes them."""
    version, *theirs = ask(peer).split("|")
    runs: dict[str, Callable[[], Any]] = {}
    for dtype in ("float32", "bfloat16"):
        runner = Runner(train_step("cnn7", 1, args.workers, compute_dtype=dtype, period=args.period))
        runs[f"lsgd_jax {dtype}"] = lambda runner=runner: runner(args.period)  # type: ignore[misc]
    for name in theirs:
        runs[name] = lambda name=name: ask(peer, f"{name}|{args.period}")  # type: ignore[misc]
    timings = in_turn(runs, repeats=args.repeats)

    images = args.workers * BATCH_SIZE * args.period
    best = min((timings[name].median, name) for name in theirs if "float32" in name)[1]
    rows = []
    for name, timing in timings.items():
        figures = [images / seconds for seconds in (timing.median, timing.high, timing.low)]
        rows.append([name, *figures, timings[best].median / timing.median])
    shown = [[name, *(f"{x:,.0f}" for x in figures), f"{ratio:.2f}"] for name, *figures, ratio in rows]
    print_table(("images/s", "median", "slowest", "fastest", "of PyTorch's best in float32"), shown)
    keys = ("what", "images_per_second", "slowest", "fastest", "of_best_torch_float32")
    results = [dict(zip(keys, row, strict=True)) for row in rows]
    write_results(args.output, {"torch": version, "workers": args.workers, "period": args.period, "rows": results})


def ask(peer: subprocess.Popen, question: str | None = None) -> str:
    """A line to the other side, if any, and its answer."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    if question is not None:
        peer.stdin.write(question + "\n")
        peer.stdin.flush()
    answer = peer.stdout.readline().rstrip("\n")
    if not answer:
        raise RuntimeError("the PyTorch side has ended: its error stands above")
    return answer


if __name__ == "__main__":
    sys.exit(main())
