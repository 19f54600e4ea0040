"""From the settings of a run to its trainer."""

import dataclasses
import math
from typing import Any

from lsgd_jax.cluster import processes
from lsgd_jax.config.config import Config, check_config
from lsgd_jax.config.kinds import AnySource, kind_of
from lsgd_jax.config.make_method import check_wrapped, learning_rate, make_method
from lsgd_jax.config.own_code import is_own
from lsgd_jax.engine.method_checks import check_method, follows_factor
from lsgd_jax.engine.schedules import SCHEDULES, Schedule
from lsgd_jax.engine.simulated_speeds import check_rounds
from lsgd_jax.engine.topology import Topology
from lsgd_jax.engine.train_step import round_steps
from lsgd_jax.errors import InputError
from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer
from lsgd_jax.tasks.task import check_model
from lsgd_jax.trainer.trainer import Trainer

# Of a worker, in steps a second.
SPEEDS = 1e-6, 1e6


def trainer_of(config: Config, source: AnySource) -> Trainer:
    """The trainer that the settings describe; reads the data.

    Raises:
      InputError: if they cannot be.
    """
    topology = topology_of(config)
    task = kind_of(source).task(config, source)
    if config.fragments > 1:
        check_wrapped(config, check_model(task.init)[0])
    if is_own(config.algorithm):
        method, (params, _) = method_of(config, topology), check_model(task.init)
        check_method(method, params)
        if not follows_factor(method, params):
            raise InputError(
                f"--algorithm={config.algorithm}: its update does not follow --learning_rate: "
                "pass **extra on to that of the base optimizer"
            )
    return Trainer(
        task,
        lambda topology: method_of(config, topology),
        topology,
        workdir=config.workdir,
        seed=config.seed,
        eval_every=config.evaluation_period,
        checkpoint_every=config.checkpoint_period,
        schedule=dataclasses.replace(schedule_of(config), learning_rate=learning_rate(config)),
        same_init=config.init == "same",
        worker_speeds=None if config.worker_speeds is None else read_speeds(config),
        asynchronous=config.asynchronous,
    )


def topology_of(config: Config) -> Topology:
    """Where the workers live, on the devices of all processes.

    Raises:
      InputError: if there are fewer devices than one of them takes.
    """
    axes = config.own_axes
    devices = processes.devices_for(overlapped=config.overlap is not None and not axes)
    if (needed := math.prod(axes.values())) > len(devices):
        raise InputError(
            f"--worker_axes={config.worker_axes}: a worker of {needed} devices does not fit on {len(devices)}: use "
            "smaller axes, or more devices (of a CPU with JAX_NUM_CPU_DEVICES)"
        )
    try:
        return Topology(config.groups, config.workers, devices, worker_axes=axes)
    except ValueError as error:
        raise InputError(f"--worker_axes={config.worker_axes}: {error}") from error


def method_of(config: Config, topology: Topology) -> DistributedOptimizer:
    """The distributed optimizer of workers of that topology. The learning rate itself is in their state."""
    groups, workers = topology.shape
    return make_method(
        dataclasses.replace(config, groups=groups, workers=workers, learning_rate=1.0, scale_learning_rate=False)
    )


def fit_devices(config: Config) -> Config:
    """The settings, with as many of their workers as give each device the same number: at least one.

    Nothing changes where every process has workers anyway. Otherwise there are as many groups
    as that number of workers allows, at most those of the settings.

    Raises:
      InputError: if the settings are wrong.
    """
    check_config(config)
    topology = topology_of(config)
    if not processes.idle(topology):
        return config
    assert topology.devices is not None
    places = len(topology.devices) // topology.devices_per_worker
    size = max(1, topology.size // places) * places
    groups = max(n for n in range(1, config.groups + 1) if size % n == 0)
    processes.say(
        f"{config.groups} × {config.workers} workers cannot be shared by {processes.count()} processes: "
        f"going on with {groups} × {size // groups}"
    )
    return dataclasses.replace(config, groups=groups, workers=size // groups)


def keep_batch_size(config: Config, saved: dict[str, Any], source: AnySource) -> Config:
    """The settings, with the batch size that a run has had: one that follows from the shards would change with them.

    Args:
      config: the settings now.
      saved: those of the run before.
      source: its data set.

    Raises:
      InputError: if it does not fit into the new shards.
    """
    kind = kind_of(source)
    config = dataclasses.replace(config, batch_size=kind.batch_size(Config(**saved), source))
    kind.batch_size(config, source)
    return config


def schedule_of(config: Config) -> Schedule:
    """How the learning rate changes.

    Raises:
      InputError: for an unknown schedule, or drops that cannot be.
    """
    if config.schedule not in SCHEDULES:
        raise InputError(f"unknown --schedule={config.schedule}: choose one of {', '.join(SCHEDULES)}")
    if (config.schedule == "drop") != bool(config.drop_at):
        raise InputError("--schedule=drop and --drop_at=STEP,STEP go together: give both, or neither")
    try:
        drops = tuple(int(text) for text in config.drop_at.split(",")) if config.drop_at else ()
    except ValueError as error:
        raise InputError(f"--drop_at={config.drop_at}: must be whole numbers, separated by commas") from error
    try:
        return Schedule(config.schedule, drops, config.warmup_steps, config.plateau_patience)
    except ValueError as error:
        raise InputError(
            f"--drop_at={config.drop_at}: must be numbers of steps, each larger than the one before"
        ) from error


def read_speeds(config: Config) -> tuple[float, ...]:
    """The speeds of --worker_speeds, in the order of ranks.

    Raises:
      InputError: if they are no positive numbers, one for each worker.
    """
    text, (least, most) = config.worker_speeds or "", SPEEDS
    try:
        speeds = tuple(float(speed) for speed in text.split(","))
    except ValueError as error:
        raise InputError(f"--worker_speeds={text}: must be numbers, separated by commas") from error
    if len(speeds) != config.groups * config.workers:
        raise InputError(
            f"--worker_speeds={text}: {len(speeds)} numbers for {config.groups} × {config.workers} workers: "
            "give one for each, group by group"
        )
    if not all(least <= speed <= most for speed in speeds):
        raise InputError(f"--worker_speeds={text}: must lie in [{least:g}, {most:g}]")
    return speeds


def check_asynchronous(config: Config, method: DistributedOptimizer, *, resume: bool = False) -> None:
    """Checks the settings of a run whose workers differ in speed.

    Args:
      config: the settings.
      method: the method that they describe.
      resume: whether the run goes on, which it may in one process too.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    flag = config.asynchronous_flag
    if flag is None:
        return
    if config.worker_speeds is not None:
        if config.asynchronous:
            raise InputError("--worker_speeds simulates what --asynchronous does with real processes: leave one out")
        read_speeds(config)
    try:
        check_rounds(method, config.groups)
    except ValueError as error:
        raise InputError(f"{flag} does not go with --algorithm={config.algorithm}: {error}") from error
    period = round_steps(method, config.groups)
    if config.worker_speeds is not None and config.steps % period:
        fewer = config.steps // period * period
        possible = " or ".join(str(steps) for steps in (fewer, fewer + period) if steps)
        raise InputError(f"--steps={config.steps}: with {flag} a run is whole rounds: use {possible}")
    if config.asynchronous and processes.alone() and not resume:
        raise InputError(
            "--asynchronous: this is the only process: start several with python -m lsgd_jax.launch, "
            "or simulate what they would do with --worker_speeds"
        )
