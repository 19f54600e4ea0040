"""The trainer for a task and a method of one's own."""

import dataclasses
import inspect
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.asynchronous import check_shares
from lsgd_jax.cluster.joining import naming_lost_processes
from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.engine.method_checks import check_method, digest_of_shapes, fingerprint, follows_factor, name_of
from lsgd_jax.engine.numerics import check_jax, fixed_numerics
from lsgd_jax.engine.schedules import CONSTANT, Schedule
from lsgd_jax.engine.simulated_speeds import check_rounds
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import round_steps
from lsgd_jax.errors import InputError, naming_arguments
from lsgd_jax.files.fields import Fields, read_fields
from lsgd_jax.files.files import write_json
from lsgd_jax.files.output import lasting_output
from lsgd_jax.files.paths import expanded
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.tasks.evaluation import Candidate
from lsgd_jax.tasks.task import Task, check_model, laid_out, open_task
from lsgd_jax.trainer.conditions import Conditions, agreed_conditions, write_conditions
from lsgd_jax.trainer.live import LiveRun
from lsgd_jax.trainer.loop import Ended, Way, go, own_folder
from lsgd_jax.trainer.periods import usual_checkpoint_period, usual_evaluation_period
from lsgd_jax.trainer.plan import Plan
from lsgd_jax.trainer.resuming import CONFIG, check_folder
from lsgd_jax.trainer.run import MethodOf, Run, make_run
from lsgd_jax.trainer.weights_and_biases import check_wandb

# Workers on a single device, unless a topology is given.
ON_ONE_DEVICE = 4
# What a result shows of its summary, besides the models.
FIGURES = ("validation_", "test_", "leader_validation_", "leader_test_")


class Result(NamedTuple):
    """What came of a run.

    Attributes:
      center: (params, model_state) of the center: the mean of all workers, or what the method has in its place.
      leader: of the worker with the lowest score at the end.
      best: the one of the two with the better first metric on validation data; the center without any.
      metrics: the rows of metrics.jsonl, one an evaluation.
      summary: what summary.json has; None of a run that was stopped, and can be resumed.
    """

    center: Candidate
    leader: Candidate
    best: Candidate
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None

    def __repr__(self) -> str:
        figures = {} if self.summary is None else self.summary
        shown = [f"{name}={x:.4g}" for name, x in figures.items() if name.startswith(FIGURES) and isinstance(x, float)]
        return f"Result({', '.join([f'{len(self.metrics)} evaluations', *shown])})"


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains a task with a method, on any number of workers, in one process or several.

    Attributes:
      task: what is learned.
      method: the distributed optimizer; or a function that makes it for a `Topology`, where that
        depends on the number of workers or groups.
      topology: where the workers live. By default a group for each machine, or slice of a TPU pod,
        and a worker for each device; four workers on a single one.
      workdir: the folder of the run's files; None to leave none.
      seed: the run is a function of it (and of the task and the method).
      eval_every: local steps between two evaluations; a twentieth of the run by default.
      checkpoint_every: local steps between two checkpoints; a fifth of the run by default.
      schedule: how the learning rate changes. The base optimizer then has to end with `follow_factor`; one
        with an optax schedule of its own needs none.
      same_init: whether all workers start from the same parameters.
      worker_speeds: simulated, of each worker in steps a second, in the order of ranks; None for workers in step.
      asynchronous: whether each of several processes steps at its own pace.

    Raises:
      InputError: naming what cannot be.
    """

    task: Task
    method: DistributedOptimizer | MethodOf
    topology: Topology | None = None
    _: dataclasses.KW_ONLY
    workdir: str | os.PathLike[str] | None = None
    seed: int = 0
    eval_every: int | None = None
    checkpoint_every: int | None = None
    schedule: Schedule = CONSTANT
    same_init: bool = True
    worker_speeds: Sequence[float] | None = None
    asynchronous: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise InputError(f"task is {type(self.task).__name__}: use lsgd_jax.Task")
        if not isinstance(self.method, DistributedOptimizer):
            if not callable(self.method):
                given = type(self.method).__name__
                raise InputError(f"method is {given}: use lsgd(...), say, or a function of a Topology")
            if "base" in inspect.signature(self.method).parameters:
                name = getattr(self.method, "__name__", "the method")
                raise InputError(f"method is a factory: call it with a base optimizer, as {name}(optax.sgd(0.1))")
        if not isinstance(self.topology, Topology | None):
            raise InputError(f"topology is {type(self.topology).__name__}: use Topology(groups, workers)")
        if not isinstance(self.schedule, Schedule):
            given = type(self.schedule).__name__
            raise InputError(f"schedule is {given}: use Schedule(...), or give the base optimizer an optax schedule")
        for name in ("eval_every", "checkpoint_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not isinstance(self.seed, int):
            raise InputError(f"seed must be an integer, got {self.seed!r}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must lie in [0, 2³²), got {self.seed}")

    def fit(
        self,
        steps: int,
        *,
        resume: bool = False,
        elastic: bool = False,
        profile_dir: str | None = None,
        stop: StopRequest | None = None,
        figures: bool = True,
        wandb: bool = False,
    ) -> Result:
        """Trains, and leaves the results in the workdir. Ctrl-C and SIGTERM stop it after a round, with a checkpoint.

        Args:
          steps: local steps of each worker.
          resume: whether to go on with the run that is in the workdir.
          elastic: whether that may be with another number of workers.
          profile_dir: a folder for a `jax.profiler` trace of the first rounds, or None.
          stop: whether to stop, where the caller listens to signals itself.
          figures: whether to draw them, at the end.
          wandb: whether to send the metrics to Weights & Biases too, whose variables of the environment say where to.

        Raises:
          InputError: if something cannot be, in one line that says what to do; nothing has been changed then.
          AllWorkersLostError: if no worker has finite parameters left, and no
            communication will start one again.
          DiskFullError: if the disk of the workdir is full.
          RunFailedError: if a collective has failed, most likely since another process has ended.
        """
        with naming_arguments(), naming_lost_processes(), lasting_output(), fixed_numerics():
            if not isinstance(steps, int) or steps < 1:
                raise InputError(f"steps must be an integer of at least 1, got {steps!r}")
            if resume and self.workdir is None:
                raise InputError("resume needs to know the run: give the Trainer its workdir")
            if wandb and self.workdir is None:
                raise InputError("wandb keeps files beside those of the run: give the Trainer a workdir")
            check_jax()
            processes.check_joined()
            topology = self.topology or default_topology()
            settings = processes.together(lambda: self._checked_settings(steps, topology))
            processes.check_same(settings | {"resume": resume, "elastic": elastic})
            conditions = agreed_conditions(self.task)
            if wandb:
                processes.from_main(check_wandb)
            if (workdir := self.folder) is not None:
                processes.together(lambda: check_folder(workdir, settings, self.task, resume=resume, elastic=elastic))
            labels = {"algorithm": name_of(self.method_of(topology)), "dataset": self.task.name}
            how: Any = {"resume": resume, "profile_dir": profile_dir, "stop": stop, "figures": figures, "wandb": wandb}
            with own_folder(workdir):
                ended = run_trainer(self, steps, conditions, {CONFIG: settings}, labels, **how)
            candidates = ended.candidates()
            return Result(
                center=candidates.center,
                leader=candidates.leader,
                best=getattr(candidates, ended.best),
                metrics=ended.metrics,
                summary=ended.summary,
            )

    @property
    def folder(self) -> pathlib.Path | None:
        """The workdir as a path."""
        return None if self.workdir is None else expanded(self.workdir)

    def plan(self, steps: int) -> Plan:
        """What a run of so many steps does."""
        return Plan(
            steps=steps,
            seed=self.seed,
            evaluation_period=self.eval_every or usual_evaluation_period(steps),
            checkpoint_period=self.checkpoint_every or usual_checkpoint_period(steps),
            schedule=self.schedule,
            same_init=self.same_init,
            speeds=None if self.worker_speeds is None else tuple(self.worker_speeds),
            asynchronous=self.asynchronous,
            compute_dtype=self.task.compute_dtype,
        )

    def method_of(self, topology: Topology) -> DistributedOptimizer:
        """The method, for workers of a topology."""
        return self.method if isinstance(self.method, DistributedOptimizer) else self.method(topology)

    def build(self, steps: int) -> Run:
        """Everything that a run of so many steps computes with; neither trains nor writes anything."""
        topology = laid_out(self.task, self.topology or default_topology())
        opened = open_task(self.task, topology, seed=self.seed, steps=steps)
        return make_run(self.plan(steps), opened, self.method_of, topology)

    def _checked_settings(self, steps: int, topology: Topology) -> dict[str, Any]:
        params = self._check(self.plan(steps), topology)
        return self._settings(steps, topology, params)

    def _settings(self, steps: int, topology: Topology, params: Any) -> dict[str, Any]:
        """What a run has to have in common with what it goes on from, as JSON has it."""
        return {
            "task": self.task.name,
            "loss": getattr(self.task.loss, "__qualname__", type(self.task.loss).__name__),
            "batch_size": self.task.train.batch_size,
            "algorithm": name_of(self.method_of(topology)),
            "arguments": dict(self.method_of(topology).arguments),
            **self._digests(topology, params),
            "groups": topology.groups,
            "workers": topology.workers,
            "steps": steps,
            "seed": self.seed,
            "eval_every": self.eval_every,
            "checkpoint_every": self.checkpoint_every,
            "schedule": self.schedule.kind,
            "drop_at": list(self.schedule.drop_at),
            "warmup_steps": self.schedule.warmup_steps,
            "patience": self.schedule.patience,
            **({} if self.schedule.learning_rate == 1 else {"learning_rate": self.schedule.learning_rate}),
            "same_init": self.same_init,
            "worker_speeds": None if self.worker_speeds is None else list(self.worker_speeds),
            "asynchronous": self.asynchronous,
        }

    def _digests(self, topology: Topology, params: Any) -> dict[str, str]:
        """What tells whether model and method are the same when a run goes on."""
        if self.workdir is None:
            return {}
        return {"parameters": digest_of_shapes(params), "method": fingerprint(self.method_of(topology), params)}

    def _check(self, plan: Plan, topology: Topology) -> Any:
        """Checks what can be judged before anything is read; returns the shapes of one worker's parameters.

        Raises:
          InputError: what is wrong and what to do, in one line.
        """
        method = self.method_of(topology)
        if not isinstance(method, DistributedOptimizer):
            raise InputError(f"method makes {type(method).__name__} of a topology: return a DistributedOptimizer")
        params, _ = check_model(self.task.init)
        check_method(method, params)
        if self.schedule.kind == "plateau" and self.task.evaluate is None and self.task.validation is None:
            raise InputError("schedule is 'plateau', which looks at validation data: give the task some")
        if self.schedule != CONSTANT and not follows_factor(method, params):
            raise InputError(
                f"schedule is {self.schedule.kind!r}, but the base optimizer does not follow it: end it with "
                "optax.chain(..., follow_factor()), or give it an optax schedule and leave schedule out"
            )
        processes.check_all_work(topology)
        if plan.speeds is None and not plan.asynchronous:
            return params
        if self.task.train.in_step:
            raise InputError(
                "worker_speeds and asynchronous do not go with data that come to all workers step by step: "
                "use from_arrays"
            )
        try:
            check_rounds(method, topology.groups)
        except ValueError as error:
            raise InputError(f"worker_speeds and asynchronous do not go with this method: {error}") from error
        if plan.asynchronous:
            if processes.alone():
                raise InputError("asynchronous: this is the only process: start several, or give worker_speeds")
            check_shares(topology)
        if plan.speeds is not None:
            if len(plan.speeds) != topology.size or min(plan.speeds) <= 0:
                raise InputError(f"worker_speeds={plan.speeds}: must be a positive number for each worker")
            period = round_steps(method, topology.groups)
            if plan.steps % period:
                raise InputError(f"steps={plan.steps}: with worker_speeds a run is whole rounds of {period} steps")
        return params


def run_trainer(
    trainer: Trainer,
    steps: int,
    conditions: Conditions,
    files: Mapping[str, Any],
    labels: Mapping[str, Any],
    *,
    resume: bool = False,
    profile_dir: str | None = None,
    stop: StopRequest | None = None,
    figures: bool = True,
    wandb: bool = False,
    live: LiveRun | None = None,
) -> Ended:
    """What `Trainer.fit` does once its settings are checked, and the folder is this run's own.

    Args:
      trainer: the trainer.
      steps: local steps of each worker.
      conditions: what has to be the same when the run goes on.
      files: what the workdir keeps of the settings, as JSON has it, by the file's name.
      labels: what the summary says besides: the algorithm, the data set.
      resume, profile_dir, stop, figures, wandb: as in `Trainer.fit`.
      live: as `Way` has it.
    """
    workdir, plan = trainer.folder, trainer.plan(steps)

    def keep_settings() -> None:
        if workdir is not None:
            for name, content in files.items():
                write_json(workdir / name, content)
            write_conditions(workdir, conditions)

    def plan_before() -> Plan:
        fields = Fields({"steps": int, "eval_every": int | None}, optional=["steps", "eval_every"], others=object)
        saved = {} if workdir is None else read_fields(workdir / CONFIG, fields, "use a new workdir, or restore it")
        before = saved.get("steps", steps)
        period = saved.get("eval_every") or usual_evaluation_period(before)
        return dataclasses.replace(plan, steps=before, evaluation_period=period)

    way = Way(workdir, labels, keep_settings, plan_before, resume, profile_dir, stop, figures, wandb, live)
    return go(lambda: trainer.build(steps), plan, way)


def default_topology() -> Topology:
    """A group for each machine or TPU slice, a worker for each device; on a single one `ON_ONE_DEVICE` workers."""
    devices, groups = processes.devices(), processes.machines()
    return Topology(groups, max(len(devices) // groups, 1) if len(devices) > 1 else ON_ONE_DEVICE, devices)
