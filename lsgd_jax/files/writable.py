"""Whether what a program is going to write can be written, tried before it begins."""

import os
import pathlib
import tempfile
from collections.abc import Iterable

from lsgd_jax.errors import InputError
from lsgd_jax.files.paths import why_not_local

# How the names of files begin that are there for a moment.
PROBE = ".writable"
# What a run writes when it goes on: into these folders, to the ends of these files, and others in the place of these.
FOLDERS = ("", "checkpoints", "center", "leader", "figures", "tensorboard")
RECORDS = ("metrics.jsonl", "leaders.csv", "rounds.csv", "workers.csv", "incidents.csv")
REPLACED = (
    "config.json",
    "conditions.json",
    "environment.json",
    "summary.json",
    "wandb.json",
    "center/model.json",
    "leader/model.json",
)


def make_writable(folder: pathlib.Path, flag: str | None = "workdir", todo: str = "choose another folder") -> None:
    """Makes a folder, and tries to write there.

    Args:
      folder: which one.
      flag: what names it, if anything does.
      todo: what to do if that fails.

    Raises:
      InputError: if that fails.
    """
    named = f"--{flag}={folder}" if flag else f"{folder}"
    if reason := why_not_local(folder):
        raise InputError(f"{named}: {reason}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        raise InputError(f"cannot write to {named} ({error.strerror}): {todo}") from error


def check_parts(workdir: pathlib.Path) -> None:
    """Tries to write to what a run has left that is to go on, and to read what it needs of it.

    Raises:
      InputError: if that fails.
    """
    for name, write in (dict.fromkeys(FOLDERS, _probe) | dict.fromkeys(RECORDS, _append)).items():
        path = workdir / name
        if not os.path.lexists(path):
            continue
        try:
            write(path)
        except OSError as error:
            raise InputError(f"cannot read and write {path} ({error.strerror}): make that possible") from error
    check_replaceable([*(workdir / name for name in REPLACED), *workdir.glob("figures/*.png")])


def check_replaceable(paths: Iterable[pathlib.Path]) -> None:
    """Refuses folders that stand where files are going to.

    Raises:
      InputError: naming the first.
    """
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path} is a folder, where a file is to be written: move it away")


def _probe(folder: pathlib.Path) -> None:
    """By a file whose name no other process has, since several may begin at the same time."""
    with tempfile.NamedTemporaryFile(prefix=PROBE, dir=folder):
        pass


def _append(path: pathlib.Path) -> None:
    path.open("ab").close()
    path.open("rb").close()  # it is read first
