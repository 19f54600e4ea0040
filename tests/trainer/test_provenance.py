"""What code a run was computed with."""

import importlib.metadata
import subprocess
from pathlib import Path

import pytest

from lsgd_jax.trainer import provenance as module
from lsgd_jax.trainer.provenance import commit, provenance


def git(folder: Path, *arguments: str) -> str:
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *me, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A file of a repository with one commit."""
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/table.csv"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path / "code.py"


def test_the_commit_is_told_and_whether_the_code_has_changed_since(code: Path) -> None:
    head = git(code.parent, "rev-parse", "--short", "HEAD")
    assert commit(code) == head
    (code.parent / "notes.txt").write_text("mine\n")
    (code.parent / "results/table.csv").write_text("2\n")
    assert commit(code) == head
    code.write_text("2\n")
    assert commit(code) == f"{head}+"


def test_where_git_does_not_know_the_code_no_commit_is_told(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = code.parent / "venv" / "code.py"  # inside a checkout, but no part of it
    installed.parent.mkdir()
    installed.write_text("1\n")
    assert commit(installed) is None
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(installed.parents[2]))
    assert commit(installed.parents[2] / "code.py") is None, "outside any checkout"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert commit(code) is None, "without git"


def test_versions_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "not-installed-anywhere"))
    known = provenance()
    assert known["numpy"] == importlib.metadata.version("numpy")
    assert known["not-installed-anywhere"] is None
    assert known.keys() == {"commit", "python", "numpy", "not-installed-anywhere"}
