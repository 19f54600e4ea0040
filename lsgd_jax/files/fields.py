"""Objects that a run has left as JSON, and the types of their fields: a person or a crash may have changed them."""

import json
import pathlib
import typing
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lsgd_jax.errors import InputError
from lsgd_jax.files.files import read_json

SHOWN = 60


class Fields(NamedTuple):
    """What an object has.

    Attributes:
      kinds: the type of each field: bool, int, float, str, dict, None, a union of such, or a list of one of these.
      optional: the fields that may be missing.
      others: the type of fields that are not named; None where there are none.
    """

    kinds: Mapping[str, Any]
    optional: Collection[str] = ()
    others: Any = None


def check_fields(tree: Mapping[str, Any], fields: Fields) -> None:
    """Checks an object.

    Args:
      tree: as JSON has it.
      fields: what it has to have.

    Raises:
      ValueError: what is wrong with the first field that is missing, unknown, or of another type.
    """
    for name in fields.kinds:
        if name not in tree and name not in fields.optional:
            raise ValueError(f"{name} is missing")
    for name, value in tree.items():
        kind = fields.kinds.get(name, fields.others)
        if kind is None:
            raise ValueError(f"it has an unknown field {name!r}")
        if not _is_a(value, kind):
            shown = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"{name} is {_shown(value)}, which is no {shown}")


def read_fields(path: pathlib.Path, fields: Fields, todo: str) -> dict[str, Any]:
    """The object in a file.

    Args:
      path: the file.
      fields: what it has to have.
      todo: what to do if it cannot be read.

    Raises:
      InputError: if there is none, it is damaged, or has other fields.
    """
    tree = read_json(path, todo)
    check_file(path, tree, fields, todo)
    return tree


def check_file(path: pathlib.Path, tree: Mapping[str, Any], fields: Fields, todo: str) -> None:
    """Checks the object that a file holds.

    Raises:
      InputError: as `read_fields`.
    """
    try:
        check_fields(tree, fields)
    except ValueError as error:
        raise InputError(f"{path} is damaged, or of another version of lsgd_jax ({error}): {todo}") from error


def _is_a(value: Any, kind: Any) -> bool:
    """Whether JSON's value can stand for one of a type: an int for a float, a bool for itself alone."""
    if typing.get_origin(kind) is list:
        (item,) = typing.get_args(kind)
        return isinstance(value, list) and all(_is_a(each, item) for each in value)
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, kind) or (isinstance(value, int) and isinstance(0.0, kind))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
