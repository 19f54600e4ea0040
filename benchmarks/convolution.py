"""Ways to convolve, by the shapes of networks: value and both gradients, in a loop over models.

XLA's own convolution with JAX's gradients, with gradients in the layout that is fast on CPU (direct), patches and
one matrix product, patches built again for the gradient, a band matrix, and Winograd's filtering; in turn in one run.
The line of each shape says what `lsgd_jax.models.convolution` chooses.

    python benchmarks/convolution.py --shapes="cnn7 1,cnn7 2"
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from measure import in_turn, print_table, writable, write_results

from lsgd_jax.engine.platform import platform
from lsgd_jax.models.convolution import LAYOUT, banded, conv_general_dilated, direct, patches, winograd

ROOT = pathlib.Path(__file__).parents[1]
MODELS = 2
ROUNDS = 2


class Shape(NamedTuple):
    """A convolution: images, kernel, stride and padding on each side."""

    batch: int
    side: int
    features: int
    out: int
    taps: int
    stride: int = 1
    padding: int = 0
    first: bool = False


SHAPES = {
    "cnn7 1": Shape(128, 28, 3, 64, 5, first=True),
    "cnn7 2": Shape(128, 12, 64, 128, 5),
    "cnn7 3": Shape(128, 4, 128, 64, 3),
    "16 channels": Shape(64, 32, 16, 16, 3, padding=1),
    "32 channels": Shape(64, 16, 32, 32, 3, padding=1),
    "64 channels": Shape(64, 8, 64, 64, 3, padding=1),
    "stride 2": Shape(64, 32, 16, 32, 3, stride=2, padding=1),
    "vgg 128": Shape(32, 16, 128, 128, 3, padding=1),
    "vgg 512": Shape(32, 2, 512, 512, 3, padding=1),
    "1×1": Shape(32, 8, 256, 64, 1),
}


def main() -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=writable, default=str(ROOT / "results/convolution/convolution.json"))
    args = parser.parse_args()
    if unknown := set(args.shapes.split(",")) - set(SHAPES):
        parser.error(f"unknown shape {', '.join(sorted(unknown))}: choose of {', '.join(SHAPES)}")
    rows = []
    for name in args.shapes.split(","):
        for dtype in ("float32", "bfloat16"):
            rows += measure(name, SHAPES[name], dtype, args.repeats)
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = []
    for name, dtype in dict.fromkeys((row["shape"], row["dtype"]) for row in rows):
        found = {row["way"]: row["median"] for row in rows if (row["shape"], row["dtype"]) == (name, dtype)}
        lines.append((f"{name} {dtype}", *(f"{1e3 * found[way]:.1f}" if way in found else "" for way in ways)))
    print("ms a model: value and both gradients (of the first layer that of the kernel alone)")
    print_table(("", *ways), lines)
    write_results(args.output, rows)
    return 0


def measure(name: str, shape: Shape, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Seconds a model of each way to compute it."""
    strides, padding = (shape.stride,) * 2, ((shape.padding,) * 2,) * 2
    pads = ((0, 0), *padding, (0, 0))
    ways: dict[str, Callable] = {
        "direct": lambda x, k: direct.convolve(x, k, strides, padding, (1, 1)),
        "patches": lambda x, k: patches.convolve(jnp.pad(x, pads), k, strides),
        "patches, rebuilt": jax.checkpoint(lambda x, k: patches.convolve(jnp.pad(x, pads), k, strides)),
        "band": lambda x, k: banded.convolve(jnp.pad(x, pads), k, strides),
    }
    if dtype == "float32":  # on CPU many times slower than all others
        ways["XLA"] = lambda x, k: lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=LAYOUT)
    if shape.stride == 1 and 1 < shape.taps <= 5 and dtype == "float32":
        ways["Winograd"] = lambda x, k: winograd.convolve(jnp.pad(x, pads), k)
    ways["chosen"] = lambda x, k: conv_general_dilated(x, k, strides, padding, dimension_numbers=LAYOUT)
    timings = in_turn({way: loop(run, shape, dtype) for way, run in ways.items()}, repeats=repeats)
    return [
        {"shape": name, "dtype": dtype, "way": way, **{k: v / MODELS / ROUNDS for k, v in t._asdict().items()}}
        for way, t in timings.items()
    ]


def loop(convolve: Callable, shape: Shape, dtype: str) -> Callable[[], Any]:
    """A compiled loop over models, as in training, in which nothing can be left out."""
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (MODELS, shape.batch, shape.side, shape.side, shape.features))
    kernels = jax.random.normal(keys[1], (MODELS, shape.taps, shape.taps, shape.features, shape.out)) * 0.05

    def one(model: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, kernel = model

        def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.square(convolve(x.astype(dtype), kernel.astype(dtype)).astype(jnp.float32)).sum()

        if shape.first:
            return kernel + 1e-9 * jax.grad(loss, 1)(x, kernel)
        of_images, of_kernel = jax.grad(loss, (0, 1))(x, kernel)
        return kernel + 1e-9 * of_kernel + 1e-9 * of_images.sum()

    def all_rounds(images: jax.Array, kernels: jax.Array) -> jax.Array:
        return lax.fori_loop(0, ROUNDS, lambda _, kernels: lax.map(one, (images, kernels)), kernels)

    options = {"xla_cpu_experimental_onednn_custom_call": True} if dtype == "bfloat16" else None
    on_cpu = platform() == "cpu"
    compiled = jax.jit(all_rounds, compiler_options=options if on_cpu else None).lower(images, kernels).compile()
    return lambda: compiled(images, kernels)


if __name__ == "__main__":
    sys.exit(main())
