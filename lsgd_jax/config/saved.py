"""The settings that a run has left."""

import dataclasses
import pathlib
import typing
from typing import Any

from lsgd_jax.config.config import Config
from lsgd_jax.errors import InputError
from lsgd_jax.files.fields import Fields, check_file
from lsgd_jax.files.files import is_there, read_json

KINDS = typing.get_type_hints(Config)
# What a Trainer writes down and no flag sets.
OF_A_TRAINER = "loss"
SETTINGS = Fields(KINDS, optional=KINDS.keys() - {"workdir"})  # older versions have had fewer


def read_config(workdir: pathlib.Path, todo: str = "use a new --workdir, or restore it") -> dict[str, Any]:
    """The settings that the run in a workdir was started with.

    Args:
      workdir: the run's folder.
      todo: what to do if they cannot be read.

    Raises:
      InputError: if they cannot be read.
    """
    settings = read_settings(workdir, todo)
    if OF_A_TRAINER in settings:
        raise InputError(
            f"{workdir} is the run of a Trainer in Python, which knows more than flags do: go on with it there"
        )
    return settings


def read_settings(workdir: pathlib.Path, todo: str) -> dict[str, Any]:
    """`read_config`; of the run of a `Trainer`, what that has written down.

    Raises:
      InputError: if they cannot be read.
    """
    path = workdir / "config.json"
    settings = read_json(path, todo)
    if OF_A_TRAINER in settings:
        return settings
    check_file(path, settings, SETTINGS, todo)
    return dataclasses.asdict(Config(**settings))


def has_own_task(workdir: pathlib.Path, todo: str) -> bool:
    """Whether what a run learns is a task of a user's, by --task or in a `Trainer`.

    Raises:
      InputError: if its config.json cannot be read.
    """
    path = workdir / "config.json"
    settings = read_json(path, todo) if is_there(path) else {}
    return OF_A_TRAINER in settings or settings.get("task") is not None
