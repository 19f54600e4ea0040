"""The same figures as in metrics.jsonl for Weights & Biases: a run there for each run here.

Its own variables of the environment say where they go: WANDB_PROJECT, WANDB_ENTITY, and WANDB_MODE=offline to keep them
in the workdir, for `wandb sync` to send later.
"""

import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from lsgd_jax.errors import InputError, first_line
from lsgd_jax.files.files import is_there, read_json, write_json
from lsgd_jax.trainer.events import finite_numbers

PROJECT = "lsgd_jax"
FILE = "wandb.json"


def check_wandb() -> None:
    """Looks whether it is installed, and knows who sends; a terminal is asked for a key where there is none.

    Raises:
      InputError: if it is not.
    """
    if importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb needs Weights & Biases: pip install 'lsgd_jax[wandb]', or leave it out")
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    try:
        wandb.login()
    except wandb.errors.Error as error:
        raise InputError(_told(error)) from error


class WeightsAndBiases:
    """Sends rows to the run there that belongs to a folder, which goes on when the run in the folder does.

    Args:
      folder: where all files of a run are, config.json among them; wandb.json in it keeps the name of the run there.

    Raises:
      InputError: if a run there cannot be begun.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        import wandb

        known = read_json(folder / FILE, "remove it, for a run of its own there") if is_there(folder / FILE) else {}
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=known.get("id"),
                name=folder.name,
                resume="allow",
                dir=str(folder),
                config=read_json(folder / "config.json", "restore it"),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            raise InputError(_told(error)) from error
        write_json(folder / FILE, {"id": self._run.id})

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds the finite numbers of a row."""
        self._run.log(dict(finite_numbers(row)), step=step)

    def close(self) -> None:
        """Waits until all is sent, or written."""
        self._run.finish()


def _told(error: Exception) -> str:
    why = first_line(error).rstrip(".")
    return f"--wandb: {why}: set WANDB_MODE=offline to keep the metrics on this machine, or leave it out"
