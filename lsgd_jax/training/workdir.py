"""A run's folder: whose it is, and the settings in it."""

import dataclasses
import json
import pathlib
import typing
from typing import Any

from lsgd_jax.training.config import Config
from lsgd_jax.training.errors import InputError
from lsgd_jax.training.files import PARTIAL, read_json
from lsgd_jax.training.writable import PROBE

SETTINGS = typing.get_type_hints(Config)


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


def is_started(workdir: pathlib.Path) -> bool:
    """Whether there is a run in a folder, so that it can be resumed, if its settings can be read.

    Raises:
      InputError: if the folder cannot be read.
    """
    try:
        (workdir / "config.json").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(workdir, error) from error
    return True


def is_used(workdir: pathlib.Path) -> bool:
    """Whether there is anything in a folder that may be of use to somebody.

    Raises:
      InputError: if the folder cannot be read.
    """
    try:
        return workdir.is_dir() and any(map(_counts, workdir.iterdir()))
    except OSError as error:
        raise _unreadable(workdir, error) from error


def _unreadable(workdir: pathlib.Path, error: OSError) -> InputError:
    return InputError(f"cannot read --workdir={workdir} ({error.strerror}): choose another folder")


def _counts(path: pathlib.Path) -> bool:
    """Whether something in a folder makes it a used one: not what a run that was killed at its very start leaves."""
    return not (path.name.startswith(PROBE) or path.suffix == PARTIAL or (path.is_dir() and not any(path.iterdir())))


def load_config(workdir: str, given: dict[str, Any], *, resume: bool) -> Config:
    """The settings of a run: those given, over the saved ones of a run to be resumed, over the defaults.

    Raises:
      InputError: if a run is to be resumed and there is none.
    """
    if not resume:
        return Config(**given)
    path = pathlib.Path(workdir)
    check_workdir(path, resume=True)
    return Config(**read_config(path) | given | {"workdir": workdir})


def read_config(workdir: pathlib.Path, todo: str = "use a new --workdir, or restore it") -> dict[str, Any]:
    """The settings that the run in a workdir was started with.

    Args:
      workdir: the run's folder.
      todo: what to do if they cannot be read.

    Raises:
      InputError: if they cannot be read.
    """
    path = workdir / "config.json"
    saved = read_json(path, todo)
    if unknown := [name for name in saved if name not in SETTINGS]:
        raise InputError(f"{path} is of another version of lsgd_jax, which has a setting {unknown[0]!r}: {todo}")
    for name, value in {"workdir": None, **saved}.items():
        if not _is_a(value, SETTINGS[name]):
            kind = getattr(SETTINGS[name], "__name__", SETTINGS[name])
            raise InputError(f"{path} is damaged ({name} is {json.dumps(value)}, which is no {kind}): {todo}")
    return dataclasses.asdict(Config(**saved))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether JSON's value can stand for a setting of a type: an int for a float, a bool for itself alone."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind))
