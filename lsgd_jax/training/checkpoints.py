"""Checkpoints of a run, with Orbax."""

import hashlib
import pathlib
import re
import shutil
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from lsgd_jax.training import processes
from lsgd_jax.training.errors import DiskFullError, InputError
from lsgd_jax.training.files import read_json, write_json
from lsgd_jax.training.numerics import wrap_keys
from lsgd_jax.training.state import TrainState

KEPT = 2
DIGESTS = "digests.json"
# What Orbax calls a checkpoint that it is still writing.
UNFINISHED = re.compile(r"(\d+)\.orbax-checkpoint-tmp")


class Standing(NamedTuple):
    """What a run has to know to go on, besides the state of its workers.

    Attributes:
      shape: (groups, workers) of the state.
      seconds: wall-clock of training so far.
      train_loss: the workers' mean training loss over their last minibatches.
      bytes_communicated: sent by all workers together so far.
    """

    shape: tuple[int, int]
    seconds: float
    train_loss: float
    bytes_communicated: int


class Checkpoints:
    """The checkpoints of a run, `checkpoints/<step>/` in its workdir.

    A checkpoint appears under its name only once it is complete, so a run that is
    killed while it writes one goes on from the one before. A list of its files'
    digests is then added to it: what changes on disk later does not go unnoticed.

    Args:
      workdir: the run's folder.
      read_only: whether to leave all as it is, for those who look at a run.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False) -> None:
        self._folder = (workdir / "checkpoints").absolute()
        if not read_only:
            processes.from_main(lambda: _sweep(self._folder))
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, max_to_keep=None, save_interval_steps=0
            )
        else:
            # Not in the background: on CPU the arrays that a writer still reads would be donated to the next round.
            options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a step, or None. All but who is read-only have been told."""
        return _damage(self._folder / str(step))

    def save(self, step: int, state: TrainState, standing: Standing) -> None:
        """Saves the state, and what else the run has to know to go on, as JSON.

        Raises:
          RunFailedError: in all processes, if there is no room for it; nothing is written then.
        """
        if step == self.latest_step():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        processes.from_main(lambda: self._check_room(step, needed))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_with_raw_keys(state)), standing=ocp.args.JsonSave(standing._asdict())
            ),
        )
        if processes.is_main():
            folder = self._folder / str(step)
            write_json(folder / DIGESTS, _digests(folder))

    def standing(self, step: int) -> Standing:
        """What was saved with the state of a step.

        Raises:
          InputError: if it was written by another version.
        """
        items = ocp.args.Composite(standing=ocp.args.JsonRestore())
        try:
            saved = self._manager.restore(step, args=items)["standing"]
        except KeyError as error:
            raise _of_another_program(step) from error
        if saved.keys() != set(Standing._fields):
            raise _of_another_program(step)
        return Standing(**{**saved, "shape": tuple(saved["shape"])})

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state of a step, laid out as `shardings` say.

        Raises:
          InputError: if it is a checkpoint of another program: the arrays are others.
        """
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(_with_raw_keys, shapes),
            shardings,
        )
        raw = self._restore(step, target)
        return raw._replace(keys=wrap_keys(raw.keys))

    def restore_on_host(self, step: int, shapes: TrainState) -> TrainState:
        """The state of a step as NumPy arrays, whole in every process; `keys` are their raw data.

        Raises:
          InputError: as `restore`.
        """
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), jax.eval_shape(_with_raw_keys, shapes))
        raw = self._restore(step, target)
        if jax.tree.map(np.shape, raw) != jax.tree.map(np.shape, target):  # of NumPy arrays Orbax does not look at it
            raise _of_another_program(step)
        return raw

    def _restore(self, step: int, target: TrainState) -> TrainState:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        except ValueError as error:
            raise _of_another_program(step) from error

    def _check_room(self, step: int, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise DiskFullError(
                f"there is no room for the checkpoint of step {step} in {self._folder} ({needed / 1e6:,.1f} MB, "
                f"{free / 1e6:,.1f} MB are free): make room, and go on from the last one with --resume"
            )

    def close(self) -> None:
        """Releases what the manager holds."""
        self._manager.close()


def _with_raw_keys(state: TrainState) -> TrainState:
    return state._replace(keys=jax.random.key_data(state.keys))


def _of_another_program(step: int) -> InputError:
    return InputError(
        f"the checkpoint of step {step} was written by another version of lsgd_jax, or its config.json was "
        "changed: go on with that version, or start again in a new --workdir"
    )


def _sweep(folder: pathlib.Path) -> None:
    """Removes half-written checkpoints, and moves damaged ones away until the newest is whole; with warnings.

    Raises:
      InputError: if one has a name that Orbax does not find.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    steps = {path.name: int(path.name) for path in paths if path.name.isdecimal()}
    for name, step in steps.items():
        if name != str(step):
            raise InputError(f"{folder / name} has a name that no checkpoint has: call it {step}, or move it away")
    warnings = []
    for path in paths:
        if found := UNFINISHED.match(path.name):
            shutil.rmtree(path)
            warnings.append(f"the checkpoint of step {found[1]} was not finished")
    newest = None
    for step in sorted(steps.values(), reverse=True):
        damage = _damage(folder / str(step))
        if damage is None:
            newest = step
            break
        aside = folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        (folder / str(step)).rename(aside)
        warnings.append(f"the checkpoint of step {step} is damaged ({damage}) and now in {aside}")
    source = "the beginning" if newest is None else f"that of step {newest}"
    for warning in warnings:
        processes.say(f"warning: {warning}: going on from {source}")


def _damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    if not (checkpoint / DIGESTS).exists():
        older = (checkpoint / "progress").exists()  # of versions without digests, which are refused as such
        return None if older else f"without {DIGESTS}, which is written last"
    try:
        listed = read_json(checkpoint / DIGESTS, "")
    except InputError:
        return f"{DIGESTS} cannot be read"
    try:
        found = _digests(checkpoint)
    except OSError as error:
        return f"{pathlib.Path(error.filename).name} cannot be read"
    changed = [name for name, digest in listed.items() if found.get(name) != digest]
    return f"{changed[0]} has changed" if changed else None


def _digests(checkpoint: pathlib.Path) -> dict[str, str]:
    """The digest of each file of a checkpoint."""
    digests = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != DIGESTS:
            with path.open("rb") as file:
                digests[str(path.relative_to(checkpoint))] = hashlib.file_digest(file, "blake2b").hexdigest()
    return digests
