"""Models of runs as safetensors, which other libraries read, and back."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgd_jax.errors import InputError, first_line, naming_arguments
from lsgd_jax.files.files import is_there
from lsgd_jax.files.paths import expanded
from lsgd_jax.trainer.saved_models import arrays_of


@naming_arguments()
def export_center(workdir: str | pathlib.Path, file: str | pathlib.Path, *, which: str = "center") -> None:
    """Writes a model of a finished run as safetensors (the extra `safetensors`).

    Each array is called by its path, as "params.dense.kernel" or "model_state.mean"; places in lists and tuples are
    numbers. Dtypes and shapes stay.

    Args:
      workdir: the run's.
      file: to write, "model.safetensors" say.
      which: "center", "leader", or "best", as of `load_model`.

    Raises:
      FileNotFoundError: if the run has saved no such model (yet).
      InputError: if the model cannot be read, the file not be written, or safetensors is not installed.
    """
    save_file = _safetensors().save_file
    params, model_state = arrays_of(workdir, which)
    named = _named({"params": params, "model_state": model_state})
    try:
        save_file({name: jnp.asarray(array) for name, array in named.items()}, str(expanded(file)))
    except Exception as error:  # of safetensors, which has one of its own
        raise InputError(f"{file} cannot be written ({first_line(error)}): name another file") from error


@naming_arguments()
def import_center(file: str | pathlib.Path, like: tuple[Any, Any]) -> tuple[Any, Any]:
    """Reads what `export_center` has written.

    Args:
      file: the file.
      like: (params, model_state) as the model has them, arrays or their shapes: of a task, what
        `jax.eval_shape(task.init, jax.random.key(0))` gives.

    Returns:
      (params, model_state), of that structure.

    Raises:
      InputError: if there is no such file, it is damaged or of another model, or safetensors is not installed.
    """
    load_file = _safetensors().load_file
    if not is_there(expanded(file)):
        raise InputError(f"there is no {file}: export_center writes one")
    try:
        found = load_file(str(expanded(file)))
    except Exception as error:  # of safetensors, which has one of its own
        raise InputError(
            f"{file} is damaged, or no safetensors ({first_line(error)}): export the model again"
        ) from error
    tree = dict(zip(("params", "model_state"), like, strict=True))
    wanted = {name: (x.shape, np.dtype(x.dtype)) for name, x in _named(tree).items()}
    given = {name: (x.shape, np.dtype(x.dtype)) for name, x in found.items()}
    if other := sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)):
        first, more = other[0], f", and {len(other) - 1} more" if len(other) > 1 else ""
        raise InputError(f"{file} is of another model: {first} is {given.get(first)}, not {wanted.get(first)}{more}")
    back = jax.tree.unflatten(jax.tree.structure(tree), [found[name] for name in _named(tree)])
    return back["params"], back["model_state"]


def _named(tree: Any) -> dict[str, Any]:
    """Its leaves by their paths, in order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _safetensors() -> Any:
    try:
        import safetensors.flax as found
    except ImportError as error:
        raise InputError("safetensors is not installed: pip install 'lsgd_jax[safetensors]'") from error
    return found
