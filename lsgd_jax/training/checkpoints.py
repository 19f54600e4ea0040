"""Checkpoints of a run, and the center on its own, with Orbax."""

import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from lsgd_jax.training.errors import InputError
from lsgd_jax.training.images import Preprocessing, preprocess
from lsgd_jax.training.models import FunctionalModel, make_model
from lsgd_jax.training.train_step import TrainState
from lsgd_jax.training.workdir import write_json

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


class Classifier(nnx.Module):
    """A trained model together with the preprocessing of its data set."""

    def __init__(self, network: nnx.Module, preprocessing: Preprocessing) -> None:
        self.network = network
        self.preprocessing = preprocessing

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32[batch, classes] logits of raw images [batch, height, width, channels]."""
        return self.network(preprocess(images, self.preprocessing))


def save_center(workdir: pathlib.Path, params: Any, model_state: Any, description: dict[str, Any]) -> None:
    """Saves the evaluated center in `center/`, with the description of its task, which `load_center` needs."""
    center = workdir / "center"
    (center / "model.json").unlink(missing_ok=True)  # it comes last: the center is whole where it stands
    with ocp.StandardCheckpointer() as checkpointer:
        path = (center / "arrays").absolute()
        checkpointer.save(path, {"params": params, "model_state": model_state}, force=True)
    write_json(center / "model.json", description)


def load_center(workdir: str | pathlib.Path) -> tuple[Classifier, Any]:
    """Loads the center of a finished run.

    Args:
      workdir: the run's `--workdir`.

    Returns:
      (model, params): `model(images)` gives logits, float32[batch, classes], for raw
      images of the data set, [batch, height, width, channels]; `params` are its
      parameters, a dictionary of arrays.

    Raises:
      FileNotFoundError: if the run has saved no center (yet).
    """
    center = pathlib.Path(workdir).expanduser() / "center"
    if not (center / "model.json").exists():
        raise FileNotFoundError(f"no center in {workdir}: it is saved at the end of a run; finish it with --resume")
    description = json.loads((center / "model.json").read_text())
    functional = make_model(description["model"], tuple(description["input_shape"]), description["classes"])
    target = _shapes(functional)
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((center / "arrays").absolute(), target)
    how = description["preprocessing"]
    preprocessing = Preprocessing(**{**how, "mean": tuple(how["mean"]), "std": tuple(how["std"])})
    network = functional.module(arrays["params"], arrays["model_state"])
    return Classifier(network, preprocessing), arrays["params"]


def _with_raw_keys(state: TrainState) -> TrainState:
    return state._replace(keys=jax.random.key_data(state.keys))


def _shapes(functional: FunctionalModel) -> dict[str, Any]:
    params, model_state = jax.eval_shape(functional.init, jax.random.key(0))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), {"params": params, "model_state": model_state}
    )
