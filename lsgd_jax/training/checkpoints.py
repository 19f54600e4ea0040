"""Checkpoints of a run, with Orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from lsgd_jax.training.errors import InputError
from lsgd_jax.training.state import TrainState

KEPT = 2


class Checkpoints:
    """The checkpoints of a run, `checkpoints/<step>/` in its workdir.

    A checkpoint appears under its name only once it is complete, so a run that is
    killed while it writes one goes on from the one before.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        # Not in the background: on CPU the arrays that a writer still reads would be donated to the next round.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Saves the state, and what else the run has to know to go on, as JSON."""
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_with_raw_keys(state)), progress=ocp.args.JsonSave(progress)
            ),
        )

    def restore(self, step: int, shapes: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """(state, progress) of a step, laid out as `shardings` say.

        Raises:
          InputError: if it is a checkpoint of another program: the arrays are others.
        """
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(_with_raw_keys, shapes),
            shardings,
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except ValueError as error:
            raise InputError(
                f"the checkpoint of step {step} was written by another version of lsgd_jax, or its config.json was "
                "changed: go on with that version, or start again in a new --workdir"
            ) from error
        raw = restored["state"]
        return raw._replace(keys=jax.random.wrap_key_data(raw.keys)), dict(restored["progress"])

    def close(self) -> None:
        """Releases what the manager holds."""
        self._manager.close()


def _with_raw_keys(state: TrainState) -> TrainState:
    return state._replace(keys=jax.random.key_data(state.keys))
