"""`experiments/train.py`, called in this process."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lsgd_jax.errors import ExitCode

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "train.py"


def load_script() -> ModuleType:
    """The script as a module, once in a process: absl's flags are global."""
    if "train" not in sys.modules:
        spec = importlib.util.spec_from_file_location("train", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["train"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["train"]


train = load_script()


def refused(capfd: pytest.CaptureFixture[str], *arguments: str, code: ExitCode = ExitCode.BAD_INPUT) -> str:
    """Calls the command line, expects an exit code, and returns the only line on standard error."""
    capfd.readouterr()
    found = train.main(["experiments/train.py", *arguments])
    out, err = capfd.readouterr()
    assert (found, out) == (code, "")
    assert err.startswith("train.py: error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err
