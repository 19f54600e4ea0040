"""What programs for TPU pods need and send, compiled without them: the table of results/compiled.md.

Each is compiled by experiments/compile_for.py, in a process of its own. Needs the extras 'tpu' and 'gpu', half an
hour, and a text file for the models of bytes; targets whose compiler is not installed are left out with a line.
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
EIGHT_BILLION = ["--model_width=4608", "--model_layers=32"]
TWENTY_BILLION = ["--model_width=6144", "--model_layers=44"]
COLUMNS = (
    *("model", "target", "method", "groups × workers × devices", "M parameters", "state and data, GiB", "peak, GiB"),
    *("GFLOP a step", "ms at peak", "ms estimated", "MB sent by a device", "ledger", "CPU-s"),
)
LARGE = ["--sequence_length=1024", "--compute_dtype=bfloat16", "--remat=full", "--sampling=iid", "--optimizer=adamw"]
CNN7 = ["--model=cnn7", "--dataset=cifar10", "--sampling=iid", "--batch_size=128"]
RESNET50, GPT2 = [f"{TASKS}:resnet50"], [f"{TASKS}:gpt2_small", "--optimizer=adamw"]
PODS = (("2x4", 2), ("4x4", 4), ("8x8", 8), ("16x16", 16))
OTHER_METHODS = ("diloco", "data_parallel")


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
    return [*small_models(), *large_models(), *depths(), *gpus()]


def small_models() -> list[Case]:
    """A worker on each chip of 8 to 1,024, which all methods and all sizes of a pod should compile for alike."""
    found = [Case("cnn7", f"tpu:v5e:{shape}", [*CNN7, f"--groups={groups}"]) for shape, groups in PODS]
    found.append(Case("cnn7", "tpu:v5e:16x16*4", CNN7))
    targets = (("2x4", 2), ("16x16", 16), ("4x4*4", 4))
    for model, flags in (("resnet50", RESNET50), ("GPT-2 small", GPT2)):
        found += [Case(model, f"tpu:v5e:{shape}", [*flags, f"--groups={groups}"]) for shape, groups in targets]
    for model, flags in (("cnn7", CNN7), ("resnet50", RESNET50), ("GPT-2 small", GPT2)):
        found += [Case(model, "tpu:v5e:2x4", [*flags, "--groups=2", f"--algorithm={name}"]) for name in OTHER_METHODS]
    return found


def large_models() -> list[Case]:
    """A worker on 16 or 64 chips, 4 rows on each; the last two are the largest that fit, of those that were tried."""
    found = []
    for model, size in (("1 B", ONE_BILLION), ("7 B", SEVEN_BILLION)):
        found.append(Case(model, "tpu:v5e:16x16", [*size, *LARGE, *split(4, 4, 16)], text=True))
        found.append(Case(model, "tpu:v5e:16x16", [*size, *LARGE, *split(1, 4, 64)], text=True))
        found.append(Case(model, "tpu:v5e:4x4*4", [*size, *LARGE, *split(4, 1, 16)], text=True))
        for name in OTHER_METHODS:
            flags = [*size, *LARGE, *split(4, 4, 16), f"--algorithm={name}"]
            found.append(Case(model, "tpu:v5e:16x16", flags, text=True))
    found.append(Case("8 B", "tpu:v5e:16x16", [*EIGHT_BILLION, *LARGE, *split(4, 4, 16)], text=True))
    found.append(Case("20 B", "tpu:v5e:16x16", [*TWENTY_BILLION, *LARGE, *split(1, 4, 64)], text=True))
    return found


def depths() -> list[Case]:
    """Transformers of one width and more and more layers, whose programs should not grow."""
    how = ["--model_width=768", *LARGE, "--batch_size=8", "--groups=8"]
    return [
        Case(f"{layers} layers", "tpu:v5e:8x8", [*how, f"--model_layers={layers}"], text=True)
        for layers in (12, 24, 48)
    ]


def gpus() -> list[Case]:
    """A worker on each of 8 and of 32 GPUs, and larger ones on a node."""
    found = []
    for target in ("h100:1x8", "h100:4x8"):
        found += [Case("cnn7", target, CNN7), Case("GPT-2 small", target, GPT2)]
    found.append(Case("1 B", "h100:4x8", [*ONE_BILLION, *LARGE, *split(4, 1, 8)], text=True))
    found.append(Case("7 B", "h100:4x8", [*SEVEN_BILLION, *LARGE, *split(4, 1, 8)], text=True))
    return found


def split(groups: int, workers: int, chips: int) -> list[str]:
    """The flags of workers of so many chips, with 4 rows on each."""
    shape = [f"--groups={groups}", f"--workers={workers}"]
    return [*shape, f"--worker_axes=fsdp={chips}", f"--batch_size={4 * chips}"]


def compiled(case: Case, options: argparse.Namespace) -> dict[str, Any] | str:
    """Its figures, or why there are none."""
    data = [f"--text_file={options.text_file}"] if case.text else []
    data += [f"--data_dir={options.data_dir}"] if "--dataset=cifar10" in case.flags and options.data_dir else []
    return figures_of(case.target, [*case.flags, *data])


def figures_of(target: str, flags: list[str]) -> dict[str, Any] | str:
    """What experiments/compile_for.py tells, in a process of its own, or why it tells nothing."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "figures.json")
        command = [sys.executable, str(ROOT / "experiments/compile_for.py"), f"--target={target}", f"--json={file}"]
        ended = subprocess.run([*command, "--optimize", *flags], capture_output=True, text=True, cwd=ROOT)
        if not file.exists():
            return ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit code {ended.returncode}"
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
        f"| {found['parameters'] / 1e6:,.1f} | {found['arguments'] / 2**30:.2f} | {found['peak'] / 2**30:.2f} "
        f"| {found['flops'] / 1e9:,.0f} | {1e3 * found['at_peak_seconds']:.2f} | {time} "
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
