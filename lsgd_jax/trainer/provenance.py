"""What a run was computed with: versions, and the commit of the code."""

import importlib.metadata
import pathlib
import platform
import subprocess

# Where a run that goes on keeps what it is computed with.
FILE = "environment.json"
PACKAGES = ("lsgd_jax", "jax", "optax", "numpy")


def provenance() -> dict[str, str | None]:
    """The `commit`, and the version of `python` and of each package by its name; None where it is not known."""
    versions = {name: version(name) for name in PACKAGES}
    return {"commit": commit(), **versions, "python": platform.python_version()}


def commit(file: pathlib.Path = pathlib.Path(__file__)) -> str | None:
    """What git calls the code.

    Args:
      file: a file of the code.

    Returns:
      The short hash, with a "+" where files of the commit have been changed since
      (but for what has been measured, in results/). None if git does not know the
      file, or there is no git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)  # a checkout may be around it that it is no part of
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def version(package: str) -> str | None:
    """Of an installed package; None of one that is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
