"""Files of a row a line, of which a crash or a person may have damaged some."""

import csv
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lsgd_jax.errors import InputError
from lsgd_jax.files.files import free_name

# What may stand around a row: a byte-order mark, line ends of Windows, zeros where a machine crashed.
AROUND = b"\xef\xbb\xbf\r\t \0"
SHOWN = 5


class Lines(NamedTuple):
    """What a file holds.

    Attributes:
      path: the file; it may be missing.
      rows: those that can be read.
      rest: what follows the last line's end, if it is a row too: whole where a checkpoint was saved after it, else
        perhaps the beginning of one.
      damaged: the numbers, from 1 on, of the other lines.
    """

    path: pathlib.Path
    rows: list[Any]
    rest: list[Any]
    damaged: list[int]

    @property
    def warning(self) -> str:
        """What is damaged."""
        numbers = ", ".join(map(str, self.damaged[:SHOWN]))
        more = f" and {len(self.damaged) - SHOWN} more" if len(self.damaged) > SHOWN else ""
        return f"{self.path}: line {numbers}{more} cannot be read"

    def set_aside(self, suffix: str) -> str:
        """Keeps the file under another name too, which it returns."""
        aside = free_name(self.path, suffix)
        shutil.copyfile(self.path, aside)
        return aside.name


def read_lines(path: pathlib.Path, read: Callable[[str], Any]) -> Lines:
    """The rows of a file. What follows the last line's end is what a killed process leaves, and no damage.

    Args:
      path: the file, which may be missing.
      read: makes a row of a line, or raises ValueError or TypeError; None for a line that is no row.

    Raises:
      InputError: if the system does not let us read it.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Lines(path, [], [], [])
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): restore it, or use a new --workdir") from error
    found = [_rows_in(line, read) for line in lines]
    damaged = [number for number, rows in enumerate(found, start=1) if rows is None]
    return Lines(path, [row for rows in found if rows for row in rows], _rows_in(last, read) or [], damaged)


def _rows_in(line: bytes, read: Callable[[str], Any]) -> list[Any] | None:
    """The row of a line, if it is one; None if it cannot be read."""
    text = line.strip(AROUND)
    try:
        row = read(text.decode()) if text else None
    except (ValueError, TypeError, csv.Error):
        return None
    return [] if row is None else [row]


def read_csv(path: pathlib.Path, columns: Sequence[str], read: Callable[..., Any]) -> Lines:
    """The rows of a CSV file.

    Args:
      path: the file, which may be missing.
      columns: of its first line.
      read: makes a row of texts, or raises ValueError.

    Raises:
      InputError: as `read_lines`.
    """

    def read_line(line: str) -> Any:
        cells = next(csv.reader([line]))
        return None if tuple(cells) == tuple(columns) else read(*cells)

    return read_lines(path, read_line)
