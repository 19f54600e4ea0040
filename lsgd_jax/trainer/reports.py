"""From the reports of rounds to leaders.csv, the log, and the progress bar."""

from collections.abc import Callable
from typing import NoReturn

import jax
import numpy as np

from lsgd_jax.cluster.processes import whole
from lsgd_jax.engine.communications import Election, RoundReport
from lsgd_jax.engine.simulated_speeds import Pace
from lsgd_jax.engine.topology import Topology
from lsgd_jax.errors import AllWorkersLostError
from lsgd_jax.trainer.progress import Progress
from lsgd_jax.trainer.records import LeaderRow, Records, RoundRow, WorkerRow


class RoundLog:
    """Writes down what happened in each round.

    A report is read one round late, while the devices compute the next one, so
    that they never wait for the host. `catch_up` reads what is left.

    The run is given up when all workers are lost and nothing is left to start them
    again: a global communication has left them so, or the method has none. So where
    calls are cut does not decide about it.

    Args:
      topology: the workers.
      records: where elections are written down.
      progress: where people are told.
      last_checkpoint: its step, or None.
      own_scores: whether workers lead by their own losses, and not by one on samples that are the same for all.
    """

    def __init__(
        self,
        topology: Topology,
        records: Records,
        progress: Progress,
        last_checkpoint: Callable[[], int | None],
        *,
        own_scores: bool = True,
    ) -> None:
        self.train_loss = float("nan")
        self._topology, self._records, self._progress = topology, records, progress
        self._last_checkpoint = last_checkpoint
        self._pending: tuple[int, RoundReport, Pace | None] | None = None
        self._lost = np.zeros(topology.shape, bool)
        self._scores = np.full(topology.shape, np.nan)
        self._unscored = np.zeros(topology.shape, bool)
        self._told_unscored = "has a loss that is not finite" + (" and cannot lead" if own_scores else "")

    def add(self, step: int, report: RoundReport, pace: Pace | None = None) -> None:
        """Takes the report of the round that ends at `step`, and its pace where workers differ."""
        self.catch_up()
        self._pending = step, *whole((report, pace), self._topology)

    def catch_up(self) -> None:
        """Writes down the reports that have been taken but not read.

        Raises:
          AllWorkersLostError: if no worker has finite parameters left, and no
            communication will start one again.
        """
        if self._pending is None:
            return
        step, report, pace = jax.device_get(self._pending)
        self._pending = None
        if pace is not None:
            each = enumerate(zip(pace.steps.flat, pace.waiting.flat, strict=True))
            self._records.add_rounds(RoundRow(step, rank, int(n), float(waiting)) for rank, (n, waiting) in each)

        self._report("has parameters that are not finite", step, report.lost, self._lost)
        unscored = ~np.isfinite(report.score) & ~report.lost
        if pace is not None:  # who has taken no step has no news
            unscored = np.where(pace.steps > 0, unscored, self._unscored)
        self._report(self._told_unscored, step, unscored, self._unscored)
        lost = report.lost
        for level, election in report.elections.items():
            if election.due.any():
                self._records.add_leaders(self._leader_rows(step, level, election))
                lost = lost & ~self._report_restarts(step, level, election)
        self._lost, self._unscored = lost, unscored
        everywhere = report.elections.get("global")
        if self.all_lost and (everywhere is None or everywhere.due.any()):
            self.give_up(step)

        self._scores = np.where(report.lost, np.nan, report.score)
        able = np.isfinite(report.score) & ~report.lost
        self.train_loss = float(np.mean(report.score, where=able, dtype=np.float64)) if able.any() else float("nan")
        best = int(np.argmin(np.where(able, report.score, np.inf))) if able.any() else None
        self._progress.update(step, self.train_loss, best)

    @property
    def all_lost(self) -> bool:
        """Whether no worker had finite parameters at the end of the last round that was read."""
        return bool(self._lost.all())

    def add_scores(self, step: int) -> None:
        """Writes down the score of each worker, as of the last round that was read."""
        self._records.add_workers(WorkerRow(step, rank, float(score)) for rank, score in enumerate(self._scores.flat))

    def give_up(self, step: int) -> NoReturn:
        """Ends the run.

        Raises:
          AllWorkersLostError: always.
        """
        last = self._last_checkpoint()
        self._records.add_incident(step, "all workers were lost (parameters that are not finite)")
        kept = "there is no checkpoint yet" if last is None else f"the last good checkpoint is that of step {last}"
        raise AllWorkersLostError(
            f"all workers were lost by step {step} (parameters that are not finite): "
            f"use a smaller --learning_rate in a new --workdir; {kept}"
        )

    def _leader_rows(self, step: int, level: str, election: Election) -> list[LeaderRow]:
        if election.leader is None:
            return []
        if level == "global":
            rank, score, _, valid = (x[0, 0] for x in election.leader)
            return [LeaderRow(step, level, "", int(rank), float(score))] if valid else []
        rows = []
        for group in range(self._topology.groups):
            rank, score, _, valid = (x[group, 0] for x in election.leader)
            if valid:
                rows.append(LeaderRow(step, level, group, self._rank(group, int(rank)), float(score)))
        return rows

    def _report_restarts(self, step: int, level: str, election: Election) -> np.ndarray:
        for group, worker in np.argwhere(election.restarted):
            source = ""
            if election.leader is not None:
                rank = int(election.leader.rank[group, worker])
                source = f" from the {level} leader, worker {rank if level == 'global' else self._rank(group, rank)}"
            self._tell(step, f"worker {self._rank(group, worker)} starts again{source}")
        return np.asarray(election.restarted)

    def _report(self, what: str, step: int, now: np.ndarray, before: np.ndarray) -> None:
        for group, worker in np.argwhere(now & ~before):
            self._tell(step, f"worker {self._rank(group, worker)} {what}")

    def _tell(self, step: int, what: str) -> None:
        self._progress.write(f"step {step}: {what}")
        self._records.add_incident(step, what)

    def _rank(self, group: int, worker: int) -> int:
        return int(group) * self._topology.workers + int(worker)
