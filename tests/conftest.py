"""Eight virtual CPU devices for every test, so that meshes are real; and compiling made short, where most time goes."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# What is compiled quickly runs slowly, but not for long. Tests that start the command line set their own flags.
QUICK = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"


def pytest_configure(config: pytest.Config) -> None:
    """Lets tests share compiled programs, also those that run in other processes of pytest-xdist; anew each time."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="lsgd_jax_compiled_")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name  # xdist's processes inherit it
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # jaxlib 0.10.1 calls it an error to use such a program


@pytest.fixture
def fresh_flags() -> Iterator[None]:
    """Puts the flags of the command lines back after the test: absl's are global."""
    from absl.testing import flagsaver

    with flagsaver.flagsaver():
        yield
