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
    "plotly",
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


# Each room may import those before it, and itself.
ROOMS = (
    "errors", "files", "collectives", "optimizers", "engine", "accounting", "cluster", "data", "models", "tasks",
    "trainer", "config", "commands", "report", "compare",
)  # fmt: skip


def test_every_folder_is_a_room() -> None:
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} < {*ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_those_below_it(room: str) -> None:
    files = [*(LIBRARY / room).rglob("*.py"), *LIBRARY.glob(f"{room}.py")]
    assert files
    above = ROOMS[ROOMS.index(room) + 1 :]
    assert importing(iter(files), *(f"lsgd_jax.{name}" for name in above)) == []


@pytest.mark.parametrize("room", ["collectives", "optimizers"])
def test_layers_1_and_2_import_nothing_but_themselves(room: str) -> None:
    found = importing((LIBRARY / room).glob("*.py"), "lsgd_jax")
    assert [name for _, name in found if not name.startswith(("lsgd_jax.collectives", f"lsgd_jax.{room}"))] == []


def test_the_engine_knows_no_files_and_no_processes() -> None:
    assert importing((LIBRARY / "engine").glob("*.py"), "lsgd_jax.files", "lsgd_jax.cluster") == []


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


@pytest.mark.slow
def test_layers_1_and_2_work_without_the_extras() -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE.format(extras=EXTRAS)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[1.5, 1.0]"


WITHOUT = """
import runpy, sys
for name in {extras}:
    sys.modules[name] = None
sys.argv = ["-m", *{arguments}]
runpy.run_module("lsgd_jax.{command}", run_name="__main__")
"""


@pytest.mark.parametrize("command", ["train", "compare", "report"])
def test_a_command_without_the_extra_says_what_to_install(command: str, tmp_path: Path) -> None:
    given = {"train": [], "compare": ["--methods=lsgd"], "report": [str(tmp_path)]}
    code = WITHOUT.format(extras=EXTRAS, arguments=given[command], command=command)
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'lsgd_jax[train]'" in done.stderr
    assert not any(tmp_path.iterdir())


def test_the_launcher_and_what_hears_signals_start_without_jax() -> None:
    """They cannot wait for it; and it would leave variables to the processes that are launched."""
    program = (
        "import sys, lsgd_jax.launch, lsgd_jax.cluster.stopping; print({'jax', 'numpy'} & {*sys.modules}); "
        "print(lsgd_jax.optimizers.lsgd.lsgd is lsgd_jax.lsgd)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("set()\nTrue\n", "")
    assert {*NAMES} <= {*dir(lsgd_jax)}


def test_flags_and_methods_are_known_without_jax() -> None:
    """--help cannot wait for it."""
    program = "import sys, lsgd_jax.config.config, lsgd_jax.config.methods; print({'jax', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_no_script_has_the_name_of_a_module_that_python_has() -> None:
    """Their folder comes first where they run: jax would import one of ours in its place."""
    scripts = [path for folder in ("experiments", "benchmarks") for path in (ROOT / folder).glob("*.py")]
    assert scripts
    known = sys.stdlib_module_names | {"compression"}  # of Python 3.14
    assert not [path.name for path in scripts if path.stem in known]
