"""What `bench.py` runs, and the figures that it takes from each result."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

Figures = dict[str, float]


class Piece(NamedTuple):
    """One run of a script.

    Attributes:
      name: what it is called on the command line.
      script: in this folder. It takes `--output`.
      flags: so that it takes a minute or two.
      figures: from its results to names, with their units, and numbers.
      beside_torch: whether it takes `--torch_python` and `--without_torch`.
    """

    name: str
    script: str
    flags: tuple[str, ...]
    figures: Callable[[Any], Figures]
    beside_torch: bool = False


def of_peer(model: str, results: Any) -> Figures:
    """Ratios to PyTorch's best of the same dtype, if there was PyTorch, and seconds of compiling."""
    of_best = {row["what"]: row["of_best_torch"] for row in results["rows"]}
    seconds = results["compile_seconds"]
    ratios = {
        f"{model} {name.removeprefix('lsgd_jax ')}, speed over PyTorch's best": of_best[name]
        for name in seconds
        if of_best[name] is not None
    }
    return ratios | {f"{model} {name.removeprefix('lsgd_jax ')}, compile [s]": s for name, s in seconds.items()}


def of_scaling(results: Any) -> Figures:
    """What 64 workers do beside 4."""
    rate = {row["workers"]: row["images_per_second"]["median"] for row in results["over_workers"]}
    return {"cnn7, images/s of 64 workers over those of 4": rate[64] / rate[4]}


def of_imports(results: Any) -> Figures:
    """Ratios to importing jax and optax."""
    over = results["over_jax_and_optax"]
    return {f"{name}, time over import jax, optax": over[name] for name in ("import lsgd_jax", "its first use")}


def of_startup(results: Any) -> Figures:
    """Those of `startup.py`, by names with their units."""
    return results["figures"]


PIECES = (
    *(
        Piece(
            model,
            "peer_torch.py",
            (f"--model={model}", f"--period={period}", "--repeats=3"),
            functools.partial(of_peer, model),
            beside_torch=True,
        )
        for model, period in (("cnn7", 4), ("transformer", 2), ("lstm", 2))
    ),
    Piece("workers", "scaling.py", ("--workers=4,64", "--periods=1", "--repeats=2", "--timed_up_to=64"), of_scaling),
    Piece("imports", "import_time.py", ("--repeats=3",), of_imports),
    Piece("startup", "startup.py", ("--repeats=2",), of_startup),
)
