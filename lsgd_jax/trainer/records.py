"""What a run writes as it goes: metrics.jsonl and tables beside it, TensorBoard events; and to Weights & Biases."""

import json
import math
import os
import pathlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, TextIO

from lsgd_jax.cluster import processes
from lsgd_jax.files.fields import Fields, check_fields
from lsgd_jax.files.files import csv_text, parse_json, write_whole
from lsgd_jax.files.lines import Lines, read_csv, read_lines
from lsgd_jax.trainer.events import Events
from lsgd_jax.trainer.weights_and_biases import WeightsAndBiases

# What readers of metrics.jsonl need of each row, besides the columns of a metric.
ROW = {"step": int, "seconds": float, "bytes_communicated": int}
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


class WorkerRow(NamedTuple):
    """A row of workers.csv: a worker's score at an evaluation; NaN of one that has none."""

    step: int
    worker: int
    score: float


class Incident(NamedTuple):
    """A row of incidents.csv: what happened that does not in every run, as a worker that was lost, or a resume."""

    step: int
    what: str


class Records:
    """Appends to a run's records, from which it drops first what was written after a checkpoint.

    Lines that cannot be read are told, and kept in a copy of the file; but for a last one without an end, which a
    process leaves that is killed. There is a rounds.csv where workers differ in their steps, and an incidents.csv where
    anything has happened.

    Args:
      workdir: the run's folder.
      last_step: of the checkpoint. All up to it was written whole before it was saved.
      columns: figures that rows of metrics.jsonl have; one without them cannot be read.
      wandb: whether Weights & Biases has them too.

    Attributes:
      last_evaluation: the step of the last row of metrics.jsonl, or None.
    """

    def __init__(
        self, workdir: pathlib.Path, *, last_step: int, columns: Collection[str] = (), wandb: bool = False
    ) -> None:
        metrics, leaders = _metrics(workdir, columns), _leaders(workdir)
        tables = {"rounds": _rounds(workdir), "workers": _workers(workdir), "incidents": _incidents(workdir)}
        kept = _up_to(last_step, metrics)
        self.last_evaluation = kept[-1]["step"] if kept else None
        _rewrite(metrics, "".join(map(_json_line, kept)))
        _rewrite(leaders, csv_text([LEADER_COLUMNS, *_up_to(last_step, leaders)]))
        for name, lines in tables.items():
            if lines.path.exists():
                _rewrite(lines, csv_text([TABLES[name]._fields, *_up_to(last_step, lines)]))
        self._metrics = metrics.path.open("a", encoding="utf-8")
        self._leaders = leaders.path.open("a", encoding="utf-8", newline="")
        self._tables = {name: lines.path for name, lines in tables.items()}
        self._opened: dict[str, TextIO] = {}
        self._events = Events(workdir / "tensorboard", first_step=last_step + 1)
        self._wandb = WeightsAndBiases(workdir) if wandb else None

    def add_leaders(self, rows: Iterable[LeaderRow]) -> None:
        """Appends elections to leaders.csv."""
        self._leaders.write(csv_text(rows))

    def add_rounds(self, rows: Iterable[RoundRow]) -> None:
        """Appends the workers' parts in a round to rounds.csv."""
        self._add("rounds", rows)

    def add_workers(self, rows: Iterable[WorkerRow]) -> None:
        """Appends the workers' scores to workers.csv."""
        self._add("workers", rows)

    def add_incident(self, step: int, what: str) -> None:
        """Appends to incidents.csv, for those who watch too."""
        self._add("incidents", [Incident(step, what)])
        self._opened["incidents"].flush()

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Appends an evaluation to metrics.jsonl; a number that is not finite becomes null."""
        self._metrics.write(_json_line(row))
        self.last_evaluation = row["step"]
        for file in self._files():  # for those who watch
            file.flush()
        self._events.add(row["step"], row)
        if self._wandb is not None:
            self._wandb.add(row["step"], row)

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
        if self._wandb is not None:
            self._wandb.close()

    def _files(self) -> list[TextIO]:
        return [self._metrics, self._leaders, *self._opened.values()]

    def _add(self, name: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Appends to a table that not every run has."""
        if name not in self._opened:
            begun = self._tables[name].exists()
            self._opened[name] = self._tables[name].open("a", encoding="utf-8", newline="")
            self._opened[name].write("" if begun else csv_text([TABLES[name]._fields]))
        self._opened[name].write(csv_text(rows))


# Their columns.
TABLES: dict[str, Any] = {"rounds": RoundRow, "workers": WorkerRow, "incidents": Incident}


class Unwritten(Records):
    """The records of a run that leaves no files, or of a process that leaves writing to another.

    Attributes:
      last_evaluation: that of the process that writes.
      rows: of metrics.jsonl, those of this process.
    """

    def __init__(self, last_evaluation: int | None = None) -> None:
        self.last_evaluation = last_evaluation
        self.rows: list[dict[str, Any]] = []

    def add_leaders(self, rows: Iterable[LeaderRow]) -> None:
        """Nothing."""

    def add_rounds(self, rows: Iterable[RoundRow]) -> None:
        """Nothing."""

    def add_workers(self, rows: Iterable[WorkerRow]) -> None:
        """Nothing."""

    def add_incident(self, step: int, what: str) -> None:
        """Nothing."""

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Keeps a row."""
        self.rows.append(row)

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_records(workdir: pathlib.Path, last_step: int, columns: Collection[str], wandb: bool = False) -> Records:
    """The `Records` of a run; all its processes have to call this. The main process writes them."""
    opened: list[Records] = []

    def open_them() -> int | None:
        opened.append(Records(workdir, last_step=last_step, columns=columns, wandb=wandb))
        return opened[0].last_evaluation

    last_evaluation = processes.from_main(open_them)
    return opened[0] if opened else Unwritten(last_evaluation)


def set_aside(workdir: pathlib.Path) -> None:
    """Keeps the records of a run that begins again, if it has any, in copies, with a warning."""
    tables = (_leaders(workdir), _rounds(workdir), _workers(workdir), _incidents(workdir))
    found = [lines for lines in (_metrics(workdir, ()), *tables) if lines.rows]
    if found:
        last = max(_step_of(row) for lines in found for row in lines.rows)
        kept = ", ".join(lines.set_aside(".before") for lines in found)
        processes.say(
            f"warning: the run had come to step {last}, but there is no checkpoint of it: it begins again, and what it "
            f"has recorded is kept in {kept}"
        )


def read_metrics(workdir: pathlib.Path, columns: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that can be read; a warning tells which lines cannot.

    Args:
      workdir: the run's folder.
      columns: figures that a row needs to have.
    """
    metrics = _metrics(workdir, columns)
    return _readable(metrics) + metrics.rest  # no beginning of one is a row too


def read_leaders(workdir: pathlib.Path) -> list[LeaderRow]:
    """The rows of leaders.csv that can be read; a warning tells which lines cannot."""
    return _readable(_leaders(workdir))


def read_rounds(workdir: pathlib.Path) -> list[RoundRow]:
    """The rows of rounds.csv that can be read, none if it is missing; a warning tells which lines cannot."""
    return _readable(_rounds(workdir))


def read_workers(workdir: pathlib.Path) -> list[WorkerRow]:
    """The rows of workers.csv that can be read, none if it is missing; a warning tells which lines cannot."""
    return _readable(_workers(workdir))


def read_incidents(workdir: pathlib.Path) -> list[Incident]:
    """The rows of incidents.csv that can be read, none if it is missing; a warning tells which lines cannot."""
    return _readable(_incidents(workdir))


def _metrics(workdir: pathlib.Path, columns: Collection[str]) -> Lines:
    kinds = ROW | {"simulated_seconds": float} | dict.fromkeys(columns, float | None)
    fields = Fields(kinds, optional=["simulated_seconds"], others=float | None)

    def read(line: str) -> dict[str, Any]:
        row = parse_json(line)
        check_fields(row, fields)
        return row

    return read_lines(workdir / "metrics.jsonl", read)


def _leaders(workdir: pathlib.Path) -> Lines:
    def read(step: str, level: str, group: str, leader: str, score: str) -> LeaderRow:
        return LeaderRow(int(step), level, int(group) if group else "", int(leader), float(score))

    return read_csv(workdir / "leaders.csv", LEADER_COLUMNS, read)


def _rounds(workdir: pathlib.Path) -> Lines:
    def read(step: str, worker: str, steps: str, waiting: str) -> RoundRow:
        return RoundRow(int(step), int(worker), int(steps), float(waiting))

    return read_csv(workdir / "rounds.csv", RoundRow._fields, read)


def _workers(workdir: pathlib.Path) -> Lines:
    def read(step: str, worker: str, score: str) -> WorkerRow:
        return WorkerRow(int(step), int(worker), float(score))

    return read_csv(workdir / "workers.csv", WorkerRow._fields, read)


def _incidents(workdir: pathlib.Path) -> Lines:
    def read(step: str, what: str) -> Incident:
        return Incident(int(step), what)

    return read_csv(workdir / "incidents.csv", Incident._fields, read)


def _up_to(last_step: int, lines: Lines) -> list[Any]:
    return [row for row in lines.rows + lines.rest if _step_of(row) <= last_step]


def _step_of(row: Any) -> int:
    step: int = row["step"] if isinstance(row, dict) else row.step
    return step


def _rewrite(lines: Lines, text: str) -> None:
    """Replaces a file; what cannot be read of it is kept beside it."""
    if lines.damaged:
        processes.say(f"warning: {lines.warning}; as it was it is kept in {lines.set_aside('.damaged')}")
    write_whole(lines.path, text)


def _readable(lines: Lines) -> list[Any]:
    if lines.damaged:
        processes.say(f"warning: {lines.warning}")
    return lines.rows


def _json_line(row: dict[str, Any]) -> str:
    finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
    return json.dumps(finite) + "\n"
