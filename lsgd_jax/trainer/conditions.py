"""What a run depends on besides its settings and its code: the data, and the precision of products."""

import pathlib
import typing
from typing import NamedTuple, Protocol

from lsgd_jax.cluster import processes
from lsgd_jax.data.streamed import ORDER
from lsgd_jax.engine.numerics import matmul_precision
from lsgd_jax.errors import InputError
from lsgd_jax.files.fields import Fields, read_fields
from lsgd_jax.files.files import is_there, write_json

FILE = "conditions.json"
REMEDY = (
    "give it the data that it had (--text_file, --tokenizer, --data_dir or those of its task), or use a new --workdir"
)


class Data(Protocol):
    """Data that have a name, and a digest that tells whether they are the same wherever they are."""

    @property
    def name(self) -> str:
        """What they are called, for people."""
        ...

    @property
    def digest(self) -> str:
        """Of what is in them. Raises OSError if a file cannot be read."""
        ...


class Conditions(NamedTuple):
    """What has to be the same when a run goes on.

    Attributes:
      data: what the data set is called, for people.
      digest: of the data; it is the same wherever they are.
      matmul_precision: what `JAX_DEFAULT_MATMUL_PRECISION` says, or None.
    """

    data: str
    digest: str
    matmul_precision: str | None


def conditions_of(source: Data) -> Conditions:
    """Those of a run that trains on a data set in this process.

    Raises:
      InputError: if its files cannot be read.
    """
    try:
        return Conditions(source.name, source.digest, matmul_precision())
    except OSError as error:
        raise InputError(f"cannot read the data set {source.name!r} ({error}): make it readable") from error


def agreed_conditions(source: Data) -> Conditions:
    """Those of this run, which all its processes have to call.

    Raises:
      InputError: if some process has other ones than the first: each would train on its own.
    """
    own = processes.together(lambda: conditions_of(source))
    of_main = Conditions(**processes.from_main(own._asdict))

    def compare() -> None:
        _check_same_data(own, of_main, "process 0 has", "give all processes the same files")
        _check_same_precision(own.matmul_precision, of_main, "process 0 has")

    processes.together(compare)
    return of_main


def check_data(workdir: pathlib.Path, source: Data, text_file: str | None = None) -> str | None:
    """Refuses other data than a run began with, wherever they are now.

    Args:
      workdir: the run's folder.
      source: the data now.
      text_file: the name of the text that the run began with, as far as its settings tell.

    Returns:
      A note, in a line, if an older version has begun the run: of its data it has kept no more than the name of
      a text file. Else None.

    Raises:
      InputError: naming both.
    """
    before, whose = read_conditions(workdir), f"the run in {workdir} began with"
    if before is not None:
        _check_same_data(conditions_of(source), before, whose, REMEDY)
        return None
    if text_file is not None and text_file != source.name:
        raise _other_data(source.name, whose, repr(text_file), REMEDY)
    return f"what data {whose} is not known (it has no {FILE}, as of older versions): going on with {source.name!r}"


def check_precision(workdir: pathlib.Path) -> None:
    """Refuses another precision of products than a run began with.

    Raises:
      InputError: naming both.
    """
    if (before := read_conditions(workdir)) is not None:
        _check_same_precision(matmul_precision(), before, f"the run in {workdir} began with")


def _check_same_data(now: Conditions, before: Conditions, whose: str, todo: str) -> None:
    if now.digest != before.digest:
        if now.digest == ORDER + before.digest:
            raise InputError(
                f"{now.data!r} is drawn in another order by this version than {whose} it: use a new --workdir"
            )
        what = f"{before.data!r} as it was then" if now.data == before.data else f"{before.data!r}"
        raise _other_data(now.data, whose, what, todo)


def _other_data(name: str, whose: str, what: str, todo: str) -> InputError:
    return InputError(f"{name!r} is not the data set that {whose} ({what}): {todo}")


def _check_same_precision(now: str | None, before: Conditions, whose: str) -> None:
    if now != before.matmul_precision:
        shown = [precision or "unset" for precision in (now, before.matmul_precision)]
        raise InputError(
            f"JAX_DEFAULT_MATMUL_PRECISION is {shown[0]}, but {whose} {shown[1]}, which gives other numbers: set it so"
        )


def read_conditions(workdir: pathlib.Path) -> Conditions | None:
    """Those that a run began with; None of one that an older version has begun, which kept none.

    Raises:
      InputError: if they cannot be read.
    """
    path = workdir / FILE
    if not is_there(path):
        return None
    fields = Fields(typing.get_type_hints(Conditions))
    return Conditions(**read_fields(path, fields, "remove it if you are sure that the data are the same"))


def write_conditions(workdir: pathlib.Path, conditions: Conditions) -> None:
    """Keeps them with the run."""
    write_json(workdir / FILE, conditions._asdict())
