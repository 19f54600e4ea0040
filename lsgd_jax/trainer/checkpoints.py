"""Checkpoints of a run, with Orbax."""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import shutil
import typing
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from lsgd_jax.cluster import processes
from lsgd_jax.engine.numerics import wrap_keys
from lsgd_jax.engine.state import TrainState
from lsgd_jax.engine.topology import placed_shapes
from lsgd_jax.errors import MAKE_ROOM, DiskFullError, InputError, first_line, is_disk_full
from lsgd_jax.files.fields import Fields, check_fields
from lsgd_jax.files.files import free_name, is_there, parse_json, write_json

KEPT = 2
DIGESTS = "digests.json"
LISTED = Fields({}, others=str)  # the digest of each file
# What Orbax calls a checkpoint that it is still writing.
UNFINISHED = re.compile(r"(\d+)\.orbax-checkpoint-tmp")


class CheckpointInfo(NamedTuple):
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


STANDING = Fields(typing.get_type_hints(CheckpointInfo) | {"shape": list[int]})


class Checkpoints:
    """The checkpoints of a run, `checkpoints/<step>/` in its workdir.

    A checkpoint appears under its name only once it is complete, so a run that is
    killed while it writes one goes on from the one before. A list of its files'
    digests is then added to it: what changes on disk later does not go unnoticed.

    Args:
      workdir: the run's folder.
      read_only: whether to leave all as it is, for those who look at a run.

    Raises:
      InputError: if the system does not let us read them, or one has a name that Orbax does not find; all is left as
        it is then.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False) -> None:
        self._folder, self._read_only = (workdir / "checkpoints").absolute(), read_only
        if not read_only:
            processes.from_main(lambda: _sweep(self._folder))
        if read_only or not processes.alone() or is_there(self._folder):
            _ = self._manager

    @functools.cached_property
    def _manager(self) -> Any:
        """Orbax's, which all processes make together; a run that begins needs it at its first checkpoint alone."""
        import orbax.checkpoint as ocp

        if self._read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, max_to_keep=None, save_interval_steps=0
            )
        else:
            # Not in the background: on CPU the arrays that a writer still reads would be donated to the next round.
            options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        with _readable(self._folder):
            return ocp.CheckpointManager(self._folder, options=options)

    @property
    def _is_empty(self) -> bool:
        """Whether nothing has been saved, nor been there."""
        return "_manager" not in vars(self)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return None if self._is_empty else self._manager.latest_step()

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a step, or None. All but who is read-only have been told.

        Raises:
          InputError: if the system does not let us read them.
        """
        with _readable(self._folder):
            return _damage(self._folder / str(step))

    def save(self, step: int, state: TrainState, info: CheckpointInfo) -> None:
        """Saves the state, and what else the run has to know to go on, as JSON.

        Raises:
          RunFailedError: in all processes, if there is no room for it; nothing is written then.
        """
        if step == self.latest_step():
            return
        import orbax.checkpoint as ocp

        manager, needed = self._manager, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        processes.from_main(lambda: self._check_room(step, needed))
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(with_raw_keys(state)), info=ocp.args.JsonSave(info._asdict())
            ),
        )
        if processes.is_main():
            folder = self._folder / str(step)
            write_json(folder / DIGESTS, _digests(folder))

    def info(self, step: int) -> CheckpointInfo:
        """What was saved with the state of a step.

        Raises:
          InputError: if it was written by another version.
        """
        try:
            saved = self._json(step, "info")
        except KeyError:
            try:
                saved = self._json(step, "standing")  # what it was called before
            except KeyError as error:
                raise _of_another_program(step) from error
        try:
            check_fields(saved, STANDING)
        except ValueError as error:
            raise _of_another_program(step) from error
        return CheckpointInfo(**{**saved, "shape": tuple(saved["shape"])})

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> TrainState:
        """The state of a step, laid out as `shardings` say.

        Raises:
          InputError: if it is a checkpoint of another program: the arrays are others.
        """
        target = placed_shapes(jax.eval_shape(with_raw_keys, shapes), shardings)
        raw = self._restore(step, target)
        return raw._replace(keys=wrap_keys(raw.keys))

    def _json(self, step: int, item: str) -> Any:
        import orbax.checkpoint as ocp

        return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]

    def restore_on_host(self, step: int, shapes: TrainState) -> TrainState:
        """The state of a step as NumPy arrays, whole in every process; `keys` are their raw data.

        Raises:
          InputError: as `restore`.
        """
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), jax.eval_shape(with_raw_keys, shapes))
        raw = self._restore(step, target)
        if jax.tree.map(np.shape, raw) != jax.tree.map(np.shape, target):  # of NumPy arrays Orbax does not look at it
            raise _of_another_program(step)
        return raw

    def _restore(self, step: int, target: TrainState) -> TrainState:
        import orbax.checkpoint as ocp

        try:
            return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        except ValueError as error:
            raise _of_another_program(step) from error

    def _check_room(self, step: int, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise DiskFullError(
                f"there is no room for the checkpoint of step {step} in {self._folder} ({needed / 1e6:,.1f} MB, "
                f"{free / 1e6:,.1f} MB are free): {MAKE_ROOM}"
            )

    def close(self) -> None:
        """Releases what the manager holds."""
        if not self._is_empty:
            self._manager.close()


def with_raw_keys(state: TrainState) -> TrainState:
    """A state whose keys are integers, which can be written down."""
    return state._replace(keys=jax.random.key_data(state.keys))


class NoCheckpoints(Checkpoints):
    """Those of a run that leaves no files."""

    def __init__(self) -> None:
        pass

    def latest_step(self) -> int | None:
        """None."""
        return None

    def save(self, step: int, state: TrainState, info: CheckpointInfo) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _of_another_program(step: int) -> InputError:
    return InputError(
        f"the checkpoint of step {step} is of another model, base optimizer or method, or was written by another "
        "version of lsgd_jax: go on with those, or start again in a new --workdir"
    )


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """Tells what the system does not let us read, or move: nobody knows then whether it is damaged.

    Raises:
      InputError: naming it.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        what = error.filename or folder
        why = error.strerror or first_line(error)
        raise InputError(f"cannot read or move {what} ({why}): make that possible, or move it away") from error


def _sweep(folder: pathlib.Path) -> None:
    """Removes half-written checkpoints, and moves damaged ones away until the newest is whole; with warnings.

    Raises:
      InputError: as `Checkpoints`.
    """
    with _readable(folder):
        paths = list(folder.iterdir()) if is_there(folder) else []
        _check_names(paths)
        newest, damages = _look(
            folder, sorted((int(path.name) for path in paths if path.name.isdecimal()), reverse=True)
        )
        warnings = []
        for path in paths:
            if found := UNFINISHED.match(path.name):
                shutil.rmtree(path)
                warnings.append(f"the checkpoint of step {found[1]} was not finished")
        for step, damage in damages.items():
            aside = free_name(folder / str(step), ".damaged")
            (folder / str(step)).rename(aside)
            warnings.append(f"the checkpoint of step {step} is damaged ({damage}) and now in {aside}")
    source = "the beginning" if newest is None else f"that of step {newest}"
    for warning in warnings:
        processes.say(f"warning: {warning}: going on from {source}")


def _look(folder: pathlib.Path, steps: Iterable[int]) -> tuple[int | None, dict[int, str]]:
    """The first of some steps that is whole, if one is, and what is wrong with those before it."""
    damages: dict[int, str] = {}
    for step in steps:
        damage = _damage(folder / str(step))
        if damage is None:
            return step, damages
        damages[step] = damage
    return None, damages


def _check_names(paths: Iterable[pathlib.Path]) -> None:
    """Refuses a checkpoint of a name that Orbax does not find.

    Raises:
      InputError: naming it.
    """
    names = {path.name: path for path in paths if path.name.isdecimal()}
    for name, path in names.items():
        right = str(int(name))
        if name != right:
            todo = "move it away" if right in names else f"call it {right}, or move it away"
            raise InputError(f"{path} has a name that no checkpoint has: {todo}")


def _damage(checkpoint: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files, or None.

    Raises:
      OSError: if the system does not let us read them.
    """
    if not is_there(checkpoint / DIGESTS):
        older = is_there(checkpoint / "progress")  # of versions without digests, which are refused as such
        return None if older else f"without {DIGESTS}, which is written last"
    content = (checkpoint / DIGESTS).read_bytes()
    try:
        listed = parse_json(content)
        check_fields(listed, LISTED)
    except ValueError:
        return f"{DIGESTS} cannot be read"
    found = _digests(checkpoint)
    changed = [name for name, digest in listed.items() if found.get(name) != digest]
    return f"{changed[0]} has changed" if changed else None


def _digests(checkpoint: pathlib.Path) -> dict[str, str]:
    """The digest of each file of a checkpoint."""

    def refuse(error: OSError) -> None:
        raise error

    digests = {}
    for folder, folders, names in os.walk(checkpoint, onerror=refuse):
        folders.sort()
        for path in (pathlib.Path(folder, name) for name in sorted(names) if name != DIGESTS):
            if path.is_file():
                digests[str(path.relative_to(checkpoint))] = _digest(path)
    return digests


def _digest(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        error.filename = path  # which is not told where reading fails
        raise
