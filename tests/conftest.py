"""Eight virtual CPU devices for every test, so that meshes are real; and compiling made short, where most time goes."""

import importlib.metadata
import os
import shutil
from collections.abc import Iterator

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# What is compiled quickly runs slowly, but not for long. Tests that start the command line set their own flags.
QUICK = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # a third of the time to compile; later ones have no such choice
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"

# Bytes of compiled programs, a few times those of one run: what is beyond belongs to code that has changed.
KEPT = 2**28


def pytest_configure(config: pytest.Config) -> None:
    """Lets tests share compiled programs: those of other processes of pytest-xdist, and those of earlier runs."""
    if hasattr(config, "workerinput"):
        return  # what is set here is inherited
    folder = config.rootpath / ".pytest_cache" / "compiled"
    if folder.exists() and sum(path.stat().st_size for path in folder.iterdir()) > KEPT:
        shutil.rmtree(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # jaxlib 0.10.1 calls it an error to use such a program


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for processes that they have started."""
    from lsgd_jax.config.config import usable_cores

    return min(4, usable_cores() + 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that wait come first, for others to run beside them."""
    items.sort(key=lambda item: item.get_closest_marker("processes") is None)


@pytest.fixture
def fresh_flags() -> Iterator[None]:
    """Puts the flags of the command lines back after the test: absl's are global."""
    from absl.testing import flagsaver

    with flagsaver.flagsaver():
        yield
