"""The models of a run on their own, ready to use, with Orbax: its center and its leader."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from lsgd_jax.cluster.processes import is_main
from lsgd_jax.data.images import Preprocessing, preprocess
from lsgd_jax.errors import InputError, first_line, naming_arguments
from lsgd_jax.files.fields import Fields, check_fields, read_fields
from lsgd_jax.files.files import is_there, write_json
from lsgd_jax.files.paths import expanded, why_not_local
from lsgd_jax.models import FunctionalModel, make_model
from lsgd_jax.models.language import fresh_state, make_language_model
from lsgd_jax.tasks.task import Task

MODELS_OF_A_RUN = ("best", "center", "leader")
BEST = Fields({"best": str}, optional=["best"], others=object)
# What model.json tells: of every model, of one of images, of its preprocessing, of a model of text.
MODEL = Fields({"model": str, "kind": str}, optional=["kind"], others=object)
IMAGES = Fields({"input_shape": list[int], "classes": int, "preprocessing": dict}, others=object)
PREPROCESSING = Fields(
    {"mean": list[float], "std": list[float], "crop": int | None, "flip": bool}, optional=["crop", "flip"]
)
TEXT = Fields(dict.fromkeys(("vocabulary", "sequence_length", "width", "layers"), int), others=object)


class Classifier(nnx.Module):
    """A trained model together with the preprocessing of its data set."""

    def __init__(self, network: nnx.Module, preprocessing: Preprocessing) -> None:
        self.network = network
        self.preprocessing = preprocessing

    def __call__(self, images: jax.Array) -> jax.Array:
        """float32[batch, classes] logits of raw images [batch, height, width, channels]."""
        return self.network(preprocess(images, self.preprocessing))


class LanguageModel:
    """A trained language model, which begins a text at every call."""

    def __init__(self, functional: FunctionalModel, params: Any) -> None:
        self._functional, self._params = functional, params

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """float32[batch, length, vocabulary] of int[batch, length]: logits of the token after each."""
        return self._functional.apply(self._params, fresh_state(self._functional, len(tokens)), tokens, None)[0]


def save_model(
    workdir: pathlib.Path, which: str, params: Any, model_state: Any, description: Mapping[str, Any]
) -> None:
    """Saves a model in a folder of its name, with the description of its task, which `load_model` needs.

    All processes of a run have to call it.
    """
    import orbax.checkpoint as ocp

    folder = workdir / which
    (folder / "model.json").unlink(missing_ok=True)  # it comes last: the model is whole where it stands
    with _checkpointer() as checkpointer:
        arrays = ocp.args.StandardSave({"params": params, "model_state": model_state})
        checkpointer.save((folder / "arrays").absolute(), args=arrays, force=True)
    if is_main():
        write_json(folder / "model.json", dict(description))


def load_center(workdir: str | pathlib.Path, task: Task | None = None) -> tuple[Any, Any]:
    """`load_model`, of the center."""
    return load_model(workdir, "center", task)


@naming_arguments()
def load_model(workdir: str | pathlib.Path, which: str = "best", task: Task | None = None) -> tuple[Any, Any]:
    """Loads a model of a finished run.

    Args:
      workdir: the run's.
      which: "center", "leader", or "best": the one of the two that does better on validation data.
      task: that of the run, if it is one of your own.

    Returns:
      Of a task of your own, (params, model_state). Else (model, params): `model(images)` gives
      logits, float32[batch, classes], for raw images of the data set, [batch, height, width,
      channels]. After a run on text `model(tokens)` gives logits of the next token, float32[batch,
      length, vocabulary], for int[batch, length], each row the beginning of a text. `params` are the
      model's parameters, a dictionary of arrays.

    Raises:
      FileNotFoundError: if the run has saved no such model (yet).
      InputError: if `workdir` is no path that can be used, the model cannot be read, or is of another task.
    """
    if task is not None and not isinstance(task, Task):
        raise InputError(f"task is {type(task).__name__}: pass the lsgd_jax.Task of the run, such as task()")
    folder = _folder_of(workdir, which)
    todo = _how_to_save_again(folder)
    description = read_fields(folder / "model.json", MODEL, todo)
    kind = description.get("kind", "images")
    if kind == "own" and task is None:
        raise InputError(f"{folder} is of a task of your own, {description['model']!r}: pass it, as task=")
    try:
        if task is not None:
            return _restore(folder / "arrays", *jax.eval_shape(task.init, jax.random.key(0)))
        load = _load_language_model if kind == "text" else _load_classifier
        return load(folder / "arrays", description)
    except (OSError, ValueError, KeyError, TypeError) as error:  # of Orbax, some may be
        why = first_line(error)
        todo = todo if task is None else "pass the task that it was trained with"
        raise InputError(
            f"cannot load {folder} ({why}): if it is damaged, or of another version or task, {todo}"
        ) from error


def arrays_of(workdir: str | pathlib.Path, which: str) -> tuple[Any, Any]:
    """(params, model_state) of a model of a finished run, as nested dictionaries and lists, whatever its task.

    Raises:
      FileNotFoundError: if the run has saved no such model (yet).
      InputError: if `workdir` is no path that can be used, or the model cannot be read.
    """
    folder = _folder_of(workdir, which)
    path = folder / "arrays"
    try:
        with _checkpointer() as checkpointer:
            saved = checkpointer.metadata(path.absolute()).item_metadata.tree
        return _restore(path, saved["params"], saved["model_state"])  # here: the run's devices may not be
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # of Orbax, some may be
        raise InputError(f"cannot load {folder} ({first_line(error)}): {_how_to_save_again(folder)}") from error


def _checkpointer() -> Any:
    """Orbax's, which saves before it returns: one that saves beside keeps the first client of JAX's service for good.

    In a run that outlives its processes that service is another one in each generation.
    """
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _folder_of(workdir: str | pathlib.Path, which: str) -> pathlib.Path:
    """Where a run has a model."""
    if reason := why_not_local(workdir):
        raise InputError(f"{workdir}: {reason}")
    if which not in MODELS_OF_A_RUN:
        raise InputError(f"which={which!r}: choose one of {', '.join(MODELS_OF_A_RUN)}")
    run = expanded(workdir)
    summary, todo = run / "summary.json", "remove it, and go on with --resume, which saves the models again"
    if which == "best":
        which = read_fields(summary, BEST, todo).get("best", "center") if is_there(summary) else "center"
    folder = run / which
    if not is_there(folder / "model.json"):
        if not is_there(run / "config.json"):
            raise FileNotFoundError(f"there is no run in {workdir}: name the workdir of one")
        raise FileNotFoundError(f"no {which} in {workdir}: it is saved at the end of a run; finish it with resume=True")
    return folder


def _how_to_save_again(folder: pathlib.Path) -> str:
    return f"remove {folder.parent / 'summary.json'}, and go on with --resume, which saves the {folder.name} again"


def _load_classifier(path: pathlib.Path, description: dict[str, Any]) -> tuple[Classifier, Any]:
    check_fields(description, IMAGES)
    how = description["preprocessing"]
    check_fields(how, PREPROCESSING)
    functional = make_model(description["model"], tuple(description["input_shape"]), description["classes"])
    params, model_state = _restore(path, *jax.eval_shape(functional.init, jax.random.key(0)))
    preprocessing = Preprocessing(**{**how, "mean": tuple(how["mean"]), "std": tuple(how["std"])})
    return Classifier(functional.module(params, model_state), preprocessing), params


def _load_language_model(path: pathlib.Path, description: dict[str, Any]) -> tuple[LanguageModel, Any]:
    check_fields(description, TEXT)
    sizes = {name: description[name] for name in TEXT.kinds}
    functional = make_language_model(description["model"], batch_size=1, **sizes)
    shapes, _ = jax.eval_shape(functional.init, jax.random.key(0))
    params, _ = _restore(path, shapes, {})  # what one worker carried is not saved
    return LanguageModel(functional, params), params


def _restore(path: pathlib.Path, params: Any, model_state: Any) -> tuple[Any, Any]:
    """(params, model_state) of those shapes."""
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), {"params": params, "model_state": model_state}
    )
    with _checkpointer() as checkpointer:
        arrays = checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(target))
    return arrays["params"], arrays["model_state"]
