"""What a run that goes on has to have in common with what it was."""

import pathlib
from collections.abc import Mapping
from typing import Any

from lsgd_jax.cluster import processes
from lsgd_jax.engine.method_checks import is_another
from lsgd_jax.errors import InputError
from lsgd_jax.files.fields import Fields, read_fields
from lsgd_jax.files.writable import make_writable
from lsgd_jax.tasks.task import Task
from lsgd_jax.trainer.conditions import check_data, check_precision
from lsgd_jax.trainer.workdir import check_shared_workdir

# What may differ when a run goes on: a method is compared by what it computes.
FREE = frozenset({"steps", "eval_every", "checkpoint_every", "algorithm", "arguments"})
SHAPE = frozenset({"groups", "workers"})
# What a workdir keeps of the settings.
CONFIG = "config.json"


def check_folder(workdir: pathlib.Path, settings: dict[str, Any], task: Task, *, resume: bool, elastic: bool) -> None:
    """Checks what a workdir has of a run before.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    check_shared_workdir(workdir, resume=resume)
    if not resume:
        if processes.is_main():
            make_writable(workdir)
        return
    fields, todo = Fields({"task": str}, others=object), "use a new workdir, or restore it"
    saved = read_fields(workdir / CONFIG, fields, todo)
    free = FREE | (SHAPE | {"method"} if elastic else frozenset())
    changed = [name for name in settings if name not in free and saved.get(name) != settings[name]]
    if "method" in changed and not is_another(saved.get("method"), settings["method"]):
        changed.remove("method")  # what an older version kept, or another version of JAX traced, tells nothing
    if saved.get("parameters") is None and "parameters" in changed:
        changed.remove("parameters")  # of an older version
    if "parameters" in changed and "method" in changed:
        changed.remove("method")  # it is traced with them
    if changed:
        untold = {"method": _other_method(saved, settings), "parameters": "the model has other parameters"}
        changes = ", ".join(
            untold.get(name, f"{name} was {saved.get(name)}, is {now}")
            for name, now in settings.items()
            if name in changed
        )
        hint = ", or give elastic=True" if set(changed) <= SHAPE else ""
        raise InputError(
            f"cannot resume with another run ({changes}): leave that as it was, or use a new workdir{hint}"
        )
    check_precision(workdir)
    check_data(workdir, task)


def _other_method(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What differs between two methods of which more than a digest may be known."""
    before, now = ({"method": each.get("algorithm"), **(each.get("arguments") or {})} for each in (saved, settings))
    if before["method"] is None:  # of an older version
        told = "its base optimizer, its arguments or itself"
    elif before["method"] != now["method"]:
        told = f"it was {before['method']}, is {now['method']}"
    else:
        differ = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
        told = ", ".join(differ) or "its base optimizer or itself"
    return f"the method computes something else: {told}"
