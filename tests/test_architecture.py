"""Arrows point down only, and layers 1 and 2 need nothing but jax, numpy and optax."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lsgd_jax

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "lsgd_jax"
NAMES = (
    "GROUP", "WORKER", "elect_leader", "broadcast_from_leader", "leader_pull", "lsgd", "data_parallel", "periodic",
    "easgd", "eamsgd", "downpour", "local_sgd", "diloco", "independent", "grawa", "dppf",
    "Topology", "init_state", "make_train_step", "load_center", "ledger",
)  # fmt: skip
EXTRAS = (
    "flax",
    "orbax",
    "tensorflow_datasets",
    "tensorflow",
    "tqdm",
    "matplotlib",
    "sklearn",
    "tensorboardX",
    "PIL",
    "grain",
)


def imports_of(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{name.name}" for name in node.names)


def importing(files: Iterator[Path], *packages: str) -> list[tuple[str, str]]:
    """Files that import one of the packages, or something in it."""
    return [
        (str(path.relative_to(ROOT)), module)
        for path in files
        for module in imports_of(path)
        if any(module == package or module.startswith(f"{package}.") for package in packages)
    ]


def test_layer_1_imports_nothing_of_the_layers_above() -> None:
    files = list((LIBRARY / "collectives").glob("*.py"))
    assert len(files) > 4
    found = importing(iter(files), "lsgd_jax")
    assert [module for _, module in found if not module.startswith("lsgd_jax.collectives")] == []


def test_layer_2_does_not_import_layer_3() -> None:
    files = list((LIBRARY / "optimizers").rglob("*.py"))
    assert len(files) > 4
    assert importing(iter(files), "lsgd_jax.training") == []
    allowed = ("lsgd_jax.collectives", "lsgd_jax.optimizers")
    assert [found for found in importing(iter(files), "lsgd_jax") if not found[1].startswith(allowed)] == []


# Where flags become objects.
OF_FLAGS = {
    "checks.py", "classification.py", "config.py", "from_config.py", "kind.py", "language.py", "methods.py",
    "reload.py", "saved.py", "streaming.py", "tasks.py", "train.py", "summary.py",
}  # fmt: skip


def test_what_trains_knows_no_flags() -> None:
    files = [path for path in (LIBRARY / "training").rglob("*.py") if path.name not in OF_FLAGS]
    assert len(files) > 50
    flags = ("config", "from_config", "methods", "checks", "tasks", "train", "saved")
    found = importing(iter(files), *(f"lsgd_jax.training.{name}" for name in flags))
    assert found == []


def test_the_library_imports_nothing_that_stands_on_it() -> None:
    assert importing(LIBRARY.rglob("*.py"), "experiments", "tests", "benchmarks") == []


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_names_exist(name: str) -> None:
    assert hasattr(lsgd_jax, name)


def test_the_axis_names_are_those_of_the_contract() -> None:
    assert (lsgd_jax.GROUP, lsgd_jax.WORKER) == ("group", "worker")


USE = """
import sys
for name in {extras}:
    sys.modules[name] = None
import jax, jax.numpy as jnp, optax
from lsgd_jax import lsgd, periodic
transform = periodic(lsgd(optax.sgd(0.5), global_pull=0.5, global_period=1), group_axis=None)
def step(x):
    updates, _ = transform.update(x, transform.init(x), x, value=x * x)
    return optax.apply_updates(x, updates)
print([float(x) for x in jax.vmap(step, axis_name="worker")(jnp.array([4.0, 2.0]))])
"""


def test_layers_1_and_2_work_without_the_extras() -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE.format(extras=EXTRAS)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1.5, 1.0]"


def test_the_launcher_and_what_hears_signals_start_without_jax() -> None:
    """They cannot wait for it; and it would leave variables to the processes that are launched."""
    program = (
        "import sys, lsgd_jax.launch, lsgd_jax.training.stopping; print({'jax', 'numpy'} & {*sys.modules}); "
        "print(lsgd_jax.optimizers.lsgd.lsgd is lsgd_jax.lsgd)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("set()\nTrue\n", "")
    assert {*NAMES} <= {*dir(lsgd_jax)}
