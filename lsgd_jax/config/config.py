"""The settings of a run, and what can be wrong with them."""

import dataclasses
import math
import os
from typing import Any

from lsgd_jax.errors import InputError
from lsgd_jax.files.paths import why_not_local
from lsgd_jax.trainer.plan import usual_checkpoint_period, usual_evaluation_period

# These may differ when a run is resumed: they change neither the model nor the algorithm.
FREE_AT_RESUME = frozenset(
    {"steps", "workdir", "data_dir", "download", "eval_every", "checkpoint_every", "loader_processes"}
)
# These may differ too when it is resumed with --elastic.
SHAPE = frozenset({"groups", "workers"})
# One group has had no use for these.
OF_GROUPS = frozenset({"local_pull", "local_period", "stale_local_pull"})

TEXT_MODEL = "transformer"

# What counts on the devices are 32-bit integers.
LARGEST = 2**31 - 1
LARGEST_WINDOW = 10**6

# How a leader's model may travel, besides as it is.
WIRE_DTYPES = ("bfloat16", "float16", "int8")


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run, named as the flags of `experiments/train.py`.

    None stands for a default that depends on other settings; see the properties.
    """

    workdir: str
    # What
    algorithm: str = "lsgd"
    method_args: str | None = None
    dataset: str = "digits"
    text_file: str | None = None
    task: str | None = None
    model: str | None = None
    model_width: int | None = None
    model_layers: int | None = None
    dropout: float | None = None
    data_dir: str | None = None
    download: bool = False
    seed: int = 0
    # Workers
    groups: int = 2
    workers: int = 4
    sampling: str = "shard"
    init: str = "same"
    worker_speeds: str | None = None
    asynchronous: bool = False
    # Local steps
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    scale_learning_rate: bool = False
    schedule: str = "constant"
    drop_at: str | None = None
    plateau_patience: int = 5
    warmup_steps: int = 0
    clip_norm: float | None = None
    batch_size: int | None = None
    sequence_length: int = 128
    steps: int = 640
    compute_dtype: str = "float32"
    # Communication
    local_pull: float = 0.1
    global_pull: float = 0.1
    stale_local_pull: float = 0.0
    stale_global_pull: float = 0.0
    local_period: int = 16
    global_period: int = 64
    leader_window: int = 10
    wire_dtype: str | None = None
    beta: float = 0.9
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    push: float = 0.1
    # Run
    eval_every: int | None = None
    checkpoint_every: int | None = None
    loader_processes: int | None = None

    @property
    def data_name(self) -> str:
        """The data set, the text file without its folder, or the task."""
        if self.task is not None:
            return os.path.basename(self.task)
        return self.dataset if self.text_file is None else os.path.basename(self.text_file)

    @property
    def text_name(self) -> str | None:
        """The text file without its folder, or None."""
        return None if self.text_file is None else self.data_name

    @property
    def model_name(self) -> str:
        """The model: by default one that suits the data set, which is one of images unless a text file is named."""
        if self.task is not None:
            return self.data_name
        image_model = "cnn3" if self.dataset == "digits" else "cnn7"
        return self.model or (image_model if self.text_file is None else TEXT_MODEL)

    @property
    def evaluation_period(self) -> int:
        """Local steps between two evaluations: by default a twentieth of the run."""
        return self.eval_every or usual_evaluation_period(self.steps)

    @property
    def checkpoint_period(self) -> int:
        """Local steps between two checkpoints: by default a fifth of the run."""
        return self.checkpoint_every or usual_checkpoint_period(self.steps)

    @property
    def asynchronous_flag(self) -> str | None:
        """The flag by which workers do not step together, or None."""
        return "--asynchronous" if self.asynchronous else None if self.worker_speeds is None else "--worker_speeds"

    @property
    def loader_process_count(self) -> int:
        """Processes that decode streamed images: by default one a CPU core that this one may use, at most 16."""
        return min(16, usable_cores()) if self.loader_processes is None else self.loader_processes


def usable_cores() -> int:
    """The CPU cores that this process may use: a scheduler may have given it a part of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_config(config: Config) -> None:
    """Checks the settings that can be judged on their own.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    for name in ("workdir", "data_dir", "text_file"):
        if reason := why_not_local(getattr(config, name) or ""):
            raise InputError(f"--{name}={getattr(config, name)}: {reason}")
    counts = ("groups", "workers", "steps", "leader_window", "global_period", "plateau_patience", "sequence_length")
    for name in counts:
        _check_at_least(config, name, 1)
    if config.leader_window > LARGEST_WINDOW:
        raise InputError(f"--leader_window={config.leader_window}: must be at most {LARGEST_WINDOW:,}")
    for name in ("batch_size", "eval_every", "checkpoint_every", "model_width", "model_layers"):
        if getattr(config, name) is not None:
            _check_at_least(config, name, 1)
    if config.loader_processes is not None:
        _check_at_least(config, "loader_processes", 0)
    for name in ("learning_rate", "weight_decay", "warmup_steps", "outer_learning_rate", "push", "seed"):
        _check_at_least(config, name, 0)
    for name in ("momentum", "outer_momentum"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: must lie in [0, 1)")
    if config.clip_norm is not None and not 0 < config.clip_norm < math.inf:
        raise InputError(f"--clip_norm={config.clip_norm}: must be more than 0")
    if config.dropout is not None and not 0 <= config.dropout < 1:
        raise InputError(f"--dropout={config.dropout}: must lie in [0, 1)")
    if config.text_file is not None and config.dataset != Config.dataset:
        raise InputError(f"--text_file and --dataset={config.dataset} are two data sets: leave one out")
    if config.task is not None and (config.text_file is not None or config.dataset != Config.dataset):
        raise InputError(f"--task={config.task} has its own data: leave --dataset and --text_file out")
    if not 0 <= config.beta <= 1:
        raise InputError(f"--beta={config.beta}: must lie in [0, 1]")
    _check_choice(config, "sampling", ("reshuffle", "shard", "iid"))
    _check_choice(config, "init", ("same", "different"))
    _check_choice(config, "compute_dtype", ("float32", "bfloat16"))
    if config.wire_dtype is not None:
        _check_choice(config, "wire_dtype", WIRE_DTYPES)
        if config.algorithm != "lsgd":
            raise InputError(f"--wire_dtype={config.wire_dtype}: {config.algorithm} does not use it: leave it out")
    for level in ("local", "global"):
        if level == "local" and config.groups == 1:
            continue  # one group has no level of its own
        for name in (f"{level}_pull", f"stale_{level}_pull"):
            if not 0 <= getattr(config, name) <= 1:
                raise InputError(f"--{name}={getattr(config, name)}: must lie in [0, 1]")
    if config.groups > 1:
        _check_at_least(config, "local_period", 1)
    if config.algorithm == "data_parallel" and config.init == "different":
        raise InputError("--init=different: data_parallel keeps its workers equal, so use --init=same")
    if config.algorithm == "sgd" and config.groups * config.workers > 1:
        raise InputError("--algorithm=sgd trains one worker: add --groups=1 --workers=1, or use --algorithm=none")


def check_resumable(saved: dict[str, Any], config: Config, *, elastic: bool = False) -> None:
    """Refuses to go on with a run whose model or algorithm would change.

    Args:
      saved: the settings that the run was started with.
      config: the settings now.
      elastic: whether the number of workers may change.

    Raises:
      InputError: naming the flags that differ.
    """
    before, now = Config(**saved), config
    free = FREE_AT_RESUME | (SHAPE if elastic else set())
    if elastic and before.groups == 1:
        free |= OF_GROUPS
    changed = {
        name: (getattr(before, name), getattr(now, name))
        for name in saved.keys() - free
        if getattr(before, name) != getattr(now, name)
    }
    if before.model_name == now.model_name:
        changed.pop("model", None)
    if before.text_file and now.text_file:  # it may have moved
        changed.pop("text_file", None)
    with_speeds = before.worker_speeds is not None
    if elastic and with_speeds and (before.groups, before.workers) != (now.groups, now.workers):
        raise InputError(
            f"--elastic cannot change the number of workers of a run with --worker_speeds={before.worker_speeds}: "
            f"go on with --groups={before.groups} --workers={before.workers}, or use a new --workdir"
        )
    if changed:
        told = ", ".join(f"--{name} was {old}, is {new}" for name, (old, new) in sorted(changed.items()))
        hint = ", or add --elastic" if changed.keys() <= SHAPE and not with_speeds else ""
        raise InputError(f"cannot resume with other settings ({told}): leave them out, or use a new --workdir{hint}")


def _check_at_least(config: Config, name: str, least: int) -> None:
    value = getattr(config, name)
    if not value >= least:
        raise InputError(f"--{name}={value}: must be at least {least}")
    if value > LARGEST:
        raise InputError(f"--{name}={value}: must be at most {LARGEST:,}")


def _check_choice(config: Config, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise InputError(f"unknown --{name}={getattr(config, name)}: choose one of {', '.join(choices)}")
