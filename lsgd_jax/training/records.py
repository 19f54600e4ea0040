"""The files that a run writes as it goes: metrics.jsonl, leaders.csv, rounds.csv, TensorBoard events."""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TextIO

from lsgd_jax.training import processes
from lsgd_jax.training.events import Events
from lsgd_jax.training.workdir import write_whole

LEADER_COLUMNS = ("step", "level", "group", "leader", "score")


class LeaderRow(NamedTuple):
    """A row of leaders.csv; `group` is empty at the global level, `leader` a rank j·l + i."""

    step: int
    level: str
    group: int | str
    leader: int
    score: float


class RoundRow(NamedTuple):
    """A row of rounds.csv: what the round that ended at `step` was for one worker.

    Attributes:
      step: the count that all workers share.
      worker: its rank j·l + i.
      steps: those it has taken itself.
      waiting: seconds it has waited for the others; simulated ones in a simulated round.
    """

    step: int
    worker: int
    steps: int
    waiting: float


class Records:
    """Appends to a run's records. `last_step` drops what was written after a checkpoint.

    There is a rounds.csv where workers differ in their steps.

    Attributes:
      last_evaluation: the step of the last row of metrics.jsonl, or None.
    """

    def __init__(self, workdir: pathlib.Path, *, last_step: int) -> None:
        self._metrics_path = workdir / "metrics.jsonl"
        kept = read_metrics(workdir, last_step)
        self.last_evaluation = kept[-1]["step"] if kept else None
        write_whole(self._metrics_path, "".join(map(_json_line, kept)))
        write_whole(workdir / "leaders.csv", _csv_text([LEADER_COLUMNS, *read_leaders(workdir, last_step)]))
        self._rounds_path = workdir / "rounds.csv"
        if self._rounds_path.exists():
            write_whole(self._rounds_path, _csv_text([RoundRow._fields, *read_rounds(workdir, last_step)]))
        self._metrics = self._metrics_path.open("a")
        self._leaders = (workdir / "leaders.csv").open("a", newline="")
        self._rounds: TextIO | None = None
        self._events = Events(workdir / "tensorboard", first_step=last_step + 1)

    def add_leaders(self, rows: Iterable[LeaderRow]) -> None:
        """Appends elections to leaders.csv."""
        self._leaders.write(_csv_text(rows))

    def add_rounds(self, rows: Iterable[RoundRow]) -> None:
        """Appends the workers' parts in a round to rounds.csv."""
        if self._rounds is None:
            begun = self._rounds_path.exists()
            self._rounds = self._rounds_path.open("a", newline="")
            self._rounds.write("" if begun else _csv_text([RoundRow._fields]))
        self._rounds.write(_csv_text(rows))

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Appends an evaluation to metrics.jsonl; a number that is not finite becomes null."""
        self._metrics.write(_json_line(row))
        self.last_evaluation = row["step"]
        for file in self._files():  # for those who watch
            file.flush()
        self._events.add(row["step"], row)

    def flush(self) -> None:
        """Brings all rows to disk, so that no checkpoint is newer than they are."""
        for file in self._files():
            file.flush()
            os.fsync(file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        for file in self._files():
            file.close()
        self._events.close()

    def _files(self) -> list[TextIO]:
        return [file for file in (self._metrics, self._leaders, self._rounds) if file is not None]


class Unwritten(Records):
    """The records of a process that leaves writing to another; `last_evaluation` is that one's."""

    def __init__(self, last_evaluation: int | None) -> None:
        self.last_evaluation = last_evaluation

    def add_leaders(self, rows: Iterable[LeaderRow]) -> None:
        """Nothing."""

    def add_rounds(self, rows: Iterable[RoundRow]) -> None:
        """Nothing."""

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_records(workdir: pathlib.Path, last_step: int) -> Records:
    """The records of a run; all its processes have to call this. The main process writes them."""
    if processes.is_main():
        records = Records(workdir, last_step=last_step)
        processes.from_main(lambda: records.last_evaluation)
        return records
    return Unwritten(processes.from_main(lambda: None))


def read_metrics(workdir: pathlib.Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to a step. A line that was cut off ends them."""
    rows: list[dict[str, Any]] = []
    for line in _lines(workdir / "metrics.jsonl"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row["step"] <= last_step:
            rows.append(row)
    return rows


def read_leaders(workdir: pathlib.Path, last_step: float = math.inf) -> list[LeaderRow]:
    """The rows of leaders.csv up to a step. A line that was cut off ends them."""

    def read(step: str, level: str, group: str, leader: str, score: str) -> LeaderRow:
        return LeaderRow(int(step), level, int(group) if group else "", int(leader), float(score))

    return _read_csv(workdir / "leaders.csv", read, last_step)


def read_rounds(workdir: pathlib.Path, last_step: float = math.inf) -> list[RoundRow]:
    """The rows of rounds.csv up to a step, none if it is missing. A line that was cut off ends them."""

    def read(step: str, worker: str, steps: str, waiting: str) -> RoundRow:
        return RoundRow(int(step), int(worker), int(steps), float(waiting))

    return _read_csv(workdir / "rounds.csv", read, last_step)


def _read_csv(path: pathlib.Path, read: Callable[..., Any], last_step: float) -> list[Any]:
    rows = []
    for line in csv.reader(_lines(path)[1:]):
        try:
            row = read(*line)
        except (TypeError, ValueError):
            break
        if row.step <= last_step:
            rows.append(row)
    return rows


def _lines(path: pathlib.Path) -> list[str]:
    """The complete lines of a file, none if it is missing."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def _json_line(row: dict[str, Any]) -> str:
    finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
    return json.dumps(finite) + "\n"


def _csv_text(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
