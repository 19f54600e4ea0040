"""What programs for TPU pods need and send, compiled without them: the table of results/README.md.

Each is compiled by experiments/compile_for.py, in a process of its own. Needs the extra 'tpu', a quarter of an hour,
and a text file for the models of bytes; targets whose compiler is not installed are left out with a line.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
TASKS = "--task=benchmarks/large_tasks.py"
ONE_BILLION = ["--model_width=2048", "--model_layers=20"]
SEVEN_BILLION = ["--model_width=4096", "--model_layers=32"]
COLUMNS = (
    *("model", "target", "method", "groups × workers × devices", "M parameters", "state and data, GiB", "peak, GiB"),
    *("ms a step", "MB sent by a device", "ledger", "CPU-s"),
)
LARGE = ["--sequence_length=1024", "--compute_dtype=bfloat16", "--remat=full", "--sampling=iid"]


class Case(NamedTuple):
    """A program to compile.

    Attributes:
      model: what it trains.
      target: for what.
      flags: how.
      text: whether it is of bytes of the text file.
    """

    model: str
    target: str
    flags: list[str]
    text: bool = False


def cases() -> list[Case]:
    """All of them."""
    cnn7 = ["--model=cnn7", "--dataset=cifar10", "--sampling=iid", "--batch_size=128"]
    found = []
    for shape, groups in (("2x4", 2), ("8x8", 8), ("16x16", 16)):
        found.append(Case("cnn7", f"tpu:v5e:{shape}", [*cnn7, f"--groups={groups}"]))
    found.append(Case("cnn7", "tpu:v5e:16x16*4", cnn7))
    for method in ("diloco", "data_parallel"):
        found.append(Case("cnn7", "tpu:v5e:2x4", [*cnn7, "--groups=2", f"--algorithm={method}"]))
    for target, groups in (("2x4", 2), ("16x16", 16), ("4x4*4", 4)):
        found.append(Case("resnet50", f"tpu:v5e:{target}", [f"{TASKS}:resnet50", f"--groups={groups}"]))
    for target, groups in (("2x4", 2), ("16x16", 16), ("4x4*4", 4)):
        found.append(
            Case("GPT-2 small", f"tpu:v5e:{target}", [f"{TASKS}:gpt2_small", "--optimizer=adamw", f"--groups={groups}"])
        )
    for workers, batch in ((16, 64), (4, 256)):
        size = 256 // workers
        groups = 4 if workers == 16 else 1
        split = [
            f"--groups={groups}",
            f"--workers={workers // groups}",
            f"--worker_axes=fsdp={size}",
            f"--batch_size={batch}",
        ]
        found.append(Case("1 B", "tpu:v5e:16x16", [*ONE_BILLION, *LARGE, *split], text=True))
        found.append(Case("7 B", "tpu:v5e:16x16", [*SEVEN_BILLION, *LARGE, *split], text=True))
    split = ["--groups=4", "--workers=1", "--worker_axes=fsdp=16", "--batch_size=64"]
    found.append(Case("1 B", "tpu:v5e:4x4*4", [*ONE_BILLION, *LARGE, *split], text=True))
    for target in ("h100:1x8", "h100:4x8"):
        found.append(Case("cnn7", target, cnn7))
        found.append(Case("GPT-2 small", target, [f"{TASKS}:gpt2_small", "--optimizer=adamw"]))
    return found


def compiled(case: Case, options: argparse.Namespace) -> dict[str, Any] | str:
    """Its figures, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "figures.json")
        data = [f"--text_file={options.text_file}"] if case.text else []
        data += [f"--data_dir={options.data_dir}"] if "--dataset=cifar10" in case.flags and options.data_dir else []
        command = [
            sys.executable,
            str(ROOT / "experiments/compile_for.py"),
            f"--target={case.target}",
            f"--json={file}",
        ]
        ended = subprocess.run([*command, *case.flags, *data], capture_output=True, text=True, cwd=ROOT)
        if not file.exists():
            lines = [line for line in ended.stderr.splitlines() if "error" in line or "Check failed" in line]
            return lines[-1] if lines else f"exit code {ended.returncode}"
        return json.loads(file.read_text())


def row(case: Case, found: dict[str, Any]) -> str:
    """A line of the table."""
    levels = {level["level"]: level for level in found["levels"]}
    own = "×".join(map(str, found["worker_axes"].values())) or "1"
    time = f"{1e3 * found['step_seconds']:.2f}" if found["step_seconds"] else "–"
    sent = ", ".join(f"{name} {sum(level['kinds'].values()) / 1e6:,.2f}" for name, level in levels.items())
    equal = all(sum(level["kinds"].values()) == level["ledger"] for level in levels.values())
    beside = "equal" if equal else "–" if found["slices"] > 1 else "**differ**"
    return (
        f"| {case.model} | `{case.target}` | {found['algorithm']} | {found['groups']} × {found['workers']} × {own} "
        f"| {found['parameters'] / 1e6:,.1f} | {found['arguments'] / 2**30:.2f} | {found['peak'] / 2**30:.2f} | {time} "
        f"| {sent} | {beside} | {found['compile_cpu_seconds']:.0f} |"
    )


def main() -> int:
    """Compiles all, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text_file", required=True, help="any text, for the models of bytes")
    parser.add_argument("--data_dir", help="folder of prepared TFDS sets, for CIFAR-10")
    parser.add_argument("--output", default=str(ROOT / "results/compiled/compiled.json"), help="file for the figures")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    written = []
    for case in cases():
        found = compiled(case, options)
        if isinstance(found, str):
            print(f"| {case.model} | `{case.target}` | {found} |", flush=True)
            continue
        print(row(case, found), flush=True)
        written.append({"case": case._asdict(), "figures": found})
    output = pathlib.Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
