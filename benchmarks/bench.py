"""Speed in one table of a few minutes: what it is now, and what it was when results/bench/bench.json was written.

Each piece is one of the other scripts, with few repeats, and so nothing is measured in two ways. The machine's
speed drifts; ratios taken within one run of a script are what to compare. What needs PyTorch is left out where
there is none.

    python benchmarks/bench.py --torch_python=/path/to/python
    python benchmarks/bench.py --write        # makes what it finds the last one
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import bench_pieces
from bench_pieces import Figures, Piece
from measure import print_table, writable, write_results
from peer_torch import has

HERE = pathlib.Path(__file__).parent
LAST = HERE.parent / "results" / "bench" / "bench.json"


def main() -> int:
    """Runs the command line and returns its exit code."""
    pieces = {piece.name: piece for piece in bench_pieces.PIECES}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", default=sys.executable, help="an interpreter that has torch")
    parser.add_argument("--pieces", default=",".join(pieces), help="separated by commas (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write to results/bench/bench.json")
    parser.add_argument("--output", type=writable, help="write to another file")
    args = parser.parse_args()
    chosen = args.pieces.split(",")
    if unknown := set(chosen) - set(pieces):
        parser.error(f"unknown piece {', '.join(sorted(unknown))}: choose of {', '.join(pieces)}")
    if args.write and args.output:
        parser.error("--write is to results/bench/bench.json, --output to another file: choose one")
    if args.write and set(chosen) != set(pieces):
        parser.error("--write takes all pieces: leave --pieces out, or write to another file with --output")

    torch_python = args.torch_python if has(args.torch_python, "torch") else None
    if torch_python is None:
        print(f"without what is measured beside PyTorch: {args.torch_python} has no torch (--torch_python)")
    figures: Figures = {}
    for name in chosen:
        start = time.perf_counter()
        figures |= measure(pieces[name], torch_python)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print()
    print_table(("", "now", "last", "now/last"), lines(figures, last_figures(LAST)))
    if args.write or args.output:
        write_results(args.output or writable(str(LAST)), {"figures": figures})
    return 0


def measure(piece: Piece, torch_python: str | None) -> Figures:
    """Runs the script of a piece, whose output is shown only if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "results.json"
        command = [sys.executable, str(HERE / piece.script), *piece.flags, f"--output={output}"]
        if piece.beside_torch:
            command.append(f"--torch_python={torch_python}" if torch_python else "--without_torch")
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{ran.stdout}{ran.stderr}\n{piece.script} has failed: its output stands above")
        return piece.figures(json.loads(output.read_text())["results"])


def last_figures(path: pathlib.Path) -> Figures:
    """Those that were written last, if any."""
    return json.loads(path.read_text())["results"]["figures"] if path.exists() else {}


def lines(now: Mapping[str, float], last: Mapping[str, float]) -> Sequence[Sequence[str]]:
    """Rows of the table: those of now, in their order."""
    return [
        (
            name,
            f"{figure:.2f}",
            f"{last[name]:.2f}" if name in last else "",
            f"{figure / last[name]:.2f}" if last.get(name) else "",
        )
        for name, figure in now.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
