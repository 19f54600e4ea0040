"""Copies of a finished run, as if it had been killed."""

import shutil
from pathlib import Path


def copied(run: Path, folder: Path, *, step: int | None = None) -> Path:
    """The run without its summary, in `folder`; and without the checkpoints after a step, but with the rows."""
    shutil.copytree(run, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        if step is not None and int(path.name) > step:
            shutil.rmtree(path)
    return folder
