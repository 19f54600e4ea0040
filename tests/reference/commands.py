"""The command line of `lsgd_jax.train`, called in this process."""

from pathlib import Path

import pytest

from lsgd_jax import train
from lsgd_jax.errors import ExitCode

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "train.py"


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
