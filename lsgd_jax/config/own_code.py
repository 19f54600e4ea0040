"""Code of a user's that flags name: FILE.py:NAME, or package.module:NAME."""

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from lsgd_jax.errors import InputError
from lsgd_jax.files.fields import Fields, read_fields
from lsgd_jax.files.files import is_there
from lsgd_jax.files.paths import expanded
from lsgd_jax.tasks.task import Task

# In a workdir: digests of the files of a user's code.
CODE = "code.json"


def is_own(name: str) -> bool:
    """Whether a name is one of a user's code."""
    return ":" in name


@functools.cache
def load_function(flag: str, text: str) -> Callable[..., Any]:
    """The function that a flag names. What fails inside the user's code keeps its traceback.

    Args:
      flag: its name.
      text: FILE.py:NAME, or package.module:NAME.

    Raises:
      InputError: if there is none.
    """
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise InputError(f"--{flag}={text}: must be FILE.py:NAME or package.module:NAME")
    module = _of_file(flag, where) if where.endswith(".py") else _of_package(flag, where)
    if not hasattr(module, name):
        raise InputError(f"--{flag}={text}: {where} has no {name}")
    function = getattr(module, name)
    if not callable(function):
        raise InputError(f"--{flag}={text}: {name} is {type(function).__name__}, and cannot be called")
    return function


@functools.cache
def load_task(text: str) -> Task:
    """The task that the function of --task makes.

    Raises:
      InputError: if there is no such function, or it makes none.
    """
    function = load_function("task", text)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise InputError(f"--task={text}: it has to take no argument: {error}") from error
    task = function()
    if not isinstance(task, Task):
        raise InputError(f"--task={text}: it gives {type(task).__name__}: return a lsgd_jax.Task")
    return task


def arguments_of(function: Callable[..., Any], text: str | None, flag: str) -> dict[str, Any]:
    """The arguments of --method_args for a function that takes the base optimizer first.

    Args:
      function: whose arguments they are.
      text: as "pull=0.5,period=8"; numbers, True, False and None as in Python, other values are text.
      flag: which names the function, for messages.

    Raises:
      InputError: if it is no such list, or the function does not take them.
    """
    arguments = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--method_args={text}: must be name=value, separated by commas")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    try:
        inspect.signature(function).bind(None, **arguments)
    except TypeError as error:
        shown = f"--method_args={text}" if text else flag
        raise InputError(f"{shown}: {getattr(function, '__name__', function)}(base, …): {error}") from error
    return arguments


def digests_of(*texts: str | None) -> dict[str, str]:
    """Of the files among some flags that name code, by their names; what these import is not looked at."""
    files = {text.rpartition(":")[0] for text in texts if text is not None and is_own(text)}
    return {
        os.path.basename(file): hashlib.blake2b(expanded(file).read_bytes(), digest_size=16).hexdigest()
        for file in sorted(files)
        if file.endswith(".py")
    }


def changed_since(workdir: pathlib.Path, digests: Mapping[str, str]) -> list[str]:
    """The files that are not as they were when the run in a workdir began, as far as it has kept what they were."""
    path = workdir / CODE
    saved = read_fields(path, Fields({}, others=object), "remove it") if is_there(path) else {}
    return [name for name in digests if saved.get(name, digests[name]) != digests[name]]


def _of_file(flag: str, path: str) -> Any:
    file = expanded(path)
    if not file.is_file():
        raise InputError(f"--{flag}: there is no file {path}")
    folder = str(file.parent.absolute())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # for what it imports
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with contextlib.suppress(ImportError):  # it comes with Grain, whose processes cannot import a file by that name
        import cloudpickle

        cloudpickle.register_pickle_by_value(module)
    return module


def _of_package(flag: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise InputError(f"--{flag}: there is no module {name}") from error
        raise
