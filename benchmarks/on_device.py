"""Whether this device computes what the CPU computes: the same trajectory, with lanes both ways.

python benchmarks/on_device.py
"""

import pathlib
import sys
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import print_table
from workload import Runner, train_step

STEPS = 16
TOLERANCE = 2e-3


def main() -> int:
    """Prints how far parameters are apart, of the largest; the exit code is 1 if that is too far."""
    jax.config.update("jax_default_matmul_precision", "highest")  # no TensorFloat-32
    expected = trained("sequential", jax.devices("cpu")[:1])
    rows, worst = [], 0.0
    for lanes in ("sequential", "vmap"):
        for count in sorted({1, len(jax.devices())}):
            got = trained(lanes, jax.devices()[:count])
            pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
            apart = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
            rows.append((f"{count} × {jax.devices()[0].device_kind}, {lanes}", f"{apart:.1e}"))
            worst = max(worst, apart)
    print_table((f"2 × 4 workers, {STEPS} steps", "apart from the CPU"), rows)
    return int(not worst < TOLERANCE)


def trained(lanes: Any, devices: list[jax.Device]) -> Any:
    """All workers' parameters after some steps."""
    training = train_step("cnn3", 2, 4, lanes=lanes, devices=devices, period=8, samples=512)
    runner = Runner(training)
    for _ in range(STEPS // 8):
        runner(8)
    return jax.tree.map(np.asarray, runner.state.params)


if __name__ == "__main__":
    sys.exit(main())
