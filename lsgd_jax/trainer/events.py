"""Scalars for TensorBoard, written by the thread that adds them: a full disk is told where it can be heard."""

import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


def finite_numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Those of a row of metrics.jsonl, by name, without its step."""
    for name, value in row.items():
        if name != "step" and isinstance(value, int | float) and math.isfinite(value):
            yield name, value


class Events:
    """Appends to a new file of events in a folder.

    Args:
      folder: where all files of a run are.
      first_step: of what is to come; TensorBoard hides what older files have from there on.
    """

    def __init__(self, folder: pathlib.Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder.absolute() / "events"))  # what comes before a colon names a store
        self._writer.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds the finite numbers of a row."""
        for name, value in finite_numbers(row):
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Brings them to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
