"""What is installed from a wheel, outside of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
QUICKSTART = """
import pathlib, sys
import lsgd_jax
from lsgd_jax import train
from lsgd_jax.report import command as report

assert pathlib.Path(lsgd_jax.__file__).is_relative_to(sys.argv[1]), lsgd_jax.__file__
assert pathlib.Path(lsgd_jax.__file__).with_name("py.typed").exists()
assert train.main(["train.py", "--workdir=run", "--model=mlp", "--groups=1", "--workers=2", "--steps=4"]) == 0
assert report.main(["report", "run"]) == 0
model, params = lsgd_jax.load_model("run")
"""


@pytest.mark.slow
@pytest.mark.processes
def test_a_wheel_holds_all_that_the_quickstart_needs(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(ROOT / "lsgd_jax", sources / "lsgd_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, sources)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, f"--wheel-dir={tmp_path}", sources], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    call = [sys.executable, "-c", QUICKSTART, str(tmp_path / "site")]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
