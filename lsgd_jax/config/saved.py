"""The settings that a run has left."""

import dataclasses
import pathlib
import typing
from typing import Any

from lsgd_jax.config.config import Config
from lsgd_jax.files.fields import Fields, read_fields

KINDS = typing.get_type_hints(Config)
SETTINGS = Fields(KINDS, optional=KINDS.keys() - {"workdir"})  # older versions have had fewer


def read_config(workdir: pathlib.Path, todo: str = "use a new --workdir, or restore it") -> dict[str, Any]:
    """The settings that the run in a workdir was started with.

    Args:
      workdir: the run's folder.
      todo: what to do if they cannot be read.

    Raises:
      InputError: if they cannot be read.
    """
    return dataclasses.asdict(Config(**read_fields(workdir / "config.json", SETTINGS, todo)))
