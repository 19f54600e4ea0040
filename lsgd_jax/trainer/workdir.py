"""A run's folder, and whose it is."""

import os
import pathlib

from lsgd_jax.cluster import processes
from lsgd_jax.errors import InputError
from lsgd_jax.files.files import PARTIAL, is_there
from lsgd_jax.files.writable import PROBE


def check_workdir(workdir: pathlib.Path, *, resume: bool) -> None:
    """Refuses a workdir that belongs to another run, or holds none to be resumed.

    Raises:
      InputError: what is wrong and what to do.
    """
    started = is_started(workdir)
    if resume and not started:
        raise InputError(f"--resume: there is no run in {workdir}: leave --resume out, or name the run's --workdir")
    if not resume and is_used(workdir):
        todo = "add --resume to go on with it, or name another" if started else "name a new or empty folder"
        raise InputError(f"--workdir={workdir} is already used: {todo}")


def check_shared_workdir(workdir: pathlib.Path, *, resume: bool) -> None:
    """`check_workdir`, in the main process; other processes look whether it is there, as that one leaves it.

    Raises:
      InputError: what is wrong and what to do.
    """
    if processes.is_main():
        check_workdir(workdir, resume=resume)
    elif not os.path.isdir(workdir):
        raise InputError(f"--workdir={workdir} is not there: name a folder that all processes share")


def is_started(workdir: pathlib.Path) -> bool:
    """Whether there is a run in a folder, so that it can be resumed, if its settings can be read.

    Raises:
      InputError: if the folder cannot be read.
    """
    return is_there(workdir / "config.json")


def is_used(workdir: pathlib.Path) -> bool:
    """Whether there is anything in a folder that may be of use to somebody.

    Raises:
      InputError: if the folder cannot be read.
    """
    try:
        return workdir.is_dir() and any(map(_counts, workdir.iterdir()))
    except OSError as error:
        raise InputError(f"cannot read --workdir={workdir} ({error.strerror}): choose another folder") from error


def _counts(path: pathlib.Path) -> bool:
    """Whether something in a folder makes it a used one: not what a run that was killed at its very start leaves."""
    return not (path.name.startswith(PROBE) or path.suffix == PARTIAL or (path.is_dir() and not any(path.iterdir())))
