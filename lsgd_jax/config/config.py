"""The settings of a run, and what can be wrong with them."""

import dataclasses
import functools
import math
import os
from typing import Any

from lsgd_jax.config.methods import METHODS, OF_GROUPS, MethodSettings, users_of
from lsgd_jax.config.setting import setting
from lsgd_jax.errors import InputError
from lsgd_jax.files.paths import why_not_local
from lsgd_jax.trainer.periods import usual_checkpoint_period, usual_evaluation_period

# These may differ when a run is resumed: they change neither the model nor the algorithm.
FREE_AT_RESUME = frozenset(
    {"steps", "workdir", "data_dir", "download", "eval_every", "checkpoint_every", "loader_processes"}
    | {"worker_axes", "remat"}
)
# These may differ too when it is resumed with --elastic.
SHAPE = frozenset({"groups", "workers"})

TEXT_MODEL = "transformer"

# What counts on the devices are 32-bit integers.
LARGEST = 2**31 - 1
LARGEST_WINDOW = 10**6

# How a leader's model may travel, besides as it is.
WIRE_DTYPES = ("bfloat16", "float16", "int8")


_what = functools.partial(setting, "what to train")
_workers = functools.partial(setting, "workers")
_steps = functools.partial(setting, "local steps")
_communication = functools.partial(setting, "communication")
_run = functools.partial(setting, "run")


@dataclasses.dataclass(frozen=True)
class Config(MethodSettings):
    """The settings of a run, which are the flags of `lsgd_jax.train`, and those of methods.

    None stands for a default that depends on other settings; see the properties.
    """

    workdir: str = _run(
        dataclasses.MISSING, "folder for the results (default: runs/ and date, data set and algorithm)", "path"
    )
    algorithm: str = _what("lsgd", "the method, one of those above, or FILE.py:NAME")
    method_args: str | None = _what(None, "of FILE.py:NAME, as pull=0.5,period=8")
    dataset: str = _what("digits", "digits (no download), or a TFDS set of labelled images or of text")
    text_file: str | None = _what(None, "in place of a data set: a UTF-8 file, of which bytes are predicted", "path")
    tokenizer: str | None = _what(
        None, "of text: tokens in place of bytes, by a tokenizer.json of Hugging Face", "path"
    )
    task: str | None = _what(None, "in place of both: FILE.py:NAME, a function that returns a lsgd_jax.Task")
    model: str | None = _what(None, "docs/command_line.md (default: digits cnn3, other images cnn7, text transformer)")
    model_width: int | None = _what(None, "of text: units of a layer (default: lstm 650, transformer 256)")
    model_layers: int | None = _what(None, "of text: layers (default: lstm 2, transformer 4)")
    dropout: float | None = _what(None, "of text: share of units dropped (default: lstm 0.5, transformer 0.1)")
    data_dir: str | None = _what(None, "folder of prepared TFDS sets (default: ~/tensorflow_datasets)", "path")
    download: bool = _what(False, "let TFDS fetch and prepare a missing set (needs the extra 'tensorflow')")
    seed: int = _what(0, "a run is a function of it: start, order, augmentation, held-out images")
    groups: int = _workers(2, "groups of workers; one has only a global leader; distributed: one per machine")
    workers: int = _workers(4, "workers in each group; distributed: one per device")
    sampling: str = _workers("shard", "shard (one each), reshuffle (dealt anew each epoch) or iid (any sample)")
    init: str = _workers("same", "same or different initial parameters of the workers")
    worker_speeds: str | None = _workers(
        None, "simulated, of each in steps a second, as 1,1,1,0.25: docs/asynchronous.md"
    )
    worker_axes: str | None = _workers(
        None, "devices of one worker, by axis, as fsdp=4 or fsdp=2,tensor=2 (default: one)"
    )
    asynchronous: bool = _workers(False, "let each of several processes take local steps at its own pace")
    optimizer: str = _steps("sgd", "sgd, adam, adamw or lars")
    learning_rate: float = _steps(0.05, "of the local steps")
    momentum: float = _steps(0.9, "of sgd (Nesterov's), lars and eamsgd; 0 for none")
    weight_decay: float = _steps(1e-4, "weight decay")
    scale_learning_rate: bool = _steps(False, "times the number of workers, for data_parallel")
    schedule: str = _steps("constant", "of the learning rate: constant, drop, plateau or cosine")
    drop_at: str | None = _steps(None, "drop: a tenth of the rate from each of these steps on, as 1000,2000")
    plateau_patience: int = _steps(5, "plateau: a tenth of it after so many evaluations without improvement")
    warmup_steps: int = _steps(0, "steps in which the learning rate rises to its value")
    clip_norm: float | None = _steps(None, "gradients of a larger norm are scaled down to this one (default: none is)")
    batch_size: int | None = _steps(None, "samples a worker and step (default: 128, or the shard if it is smaller)")
    sequence_length: int = _steps(128, "of text: tokens of a sample; then the default batch is 32")
    steps: int = _steps(640, "local steps of each worker")
    remat: str | None = _steps(None, "of a transformer, for less memory: compute products or full blocks again")
    compute_dtype: str = _steps("float32", "float32 or bfloat16: of products; the rest stays float32")
    score_samples: int = _communication(0, "lsgd: held-out samples that all are scored on; 0: each on its own batches")
    compress: int | None = _communication(None, "bits of a number on its way, 8 or 4 (default: as many as it has)")
    compress_top_k: float | None = _communication(None, "share of the numbers that is sent, in (0, 1) (default: all)")
    fragments: int = _communication(1, "parts of the parameters, which communicate one after the other")
    overlap: int | None = _communication(None, "steps after which a communication takes effect (default: at once)")
    overlap_keep: float = _communication(0.5, "then of means: a worker's share of itself in what it becomes, in [0, 1]")
    eval_every: int | None = _run(None, "steps between two evaluations (default: a twentieth of the run)")
    checkpoint_every: int | None = _run(None, "steps between two checkpoints (default: a fifth of the run)")
    loader_processes: int | None = _run(None, "that decode streamed images (default: one a core, up to 16)")

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
    def own_axes(self) -> dict[str, int]:
        """The sizes of the axes of one worker, by name.

        Raises:
          InputError: if they cannot be read.
        """
        return read_worker_axes(self.worker_axes)

    @property
    def asynchronous_flag(self) -> str | None:
        """The flag by which workers do not step together, or None."""
        return "--asynchronous" if self.asynchronous else None if self.worker_speeds is None else "--worker_speeds"

    @property
    def loader_process_count(self) -> int:
        """Processes that decode streamed images: by default one a CPU core that this one may use, at most 16."""
        return min(16, usable_cores()) if self.loader_processes is None else self.loader_processes


def read_worker_axes(text: str | None) -> dict[str, int]:
    """The sizes of --worker_axes, by name; none without it.

    Raises:
      InputError: if they are no positive numbers with names.
    """
    found: dict[str, int] = {}
    for part in text.split(",") if text else ():
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not (equals and name.isidentifier() and size.isdecimal() and int(size)) or name in found:
            raise InputError(f"--worker_axes={text}: must be name=devices, each once, as fsdp=4 or fsdp=2,tensor=2")
        found[name] = int(size)
    return found


def usable_cores() -> int:
    """The CPU cores that this process may use: a scheduler may have given it a part of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_config(config: Config) -> None:
    """Checks the settings that can be judged on their own.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    for name in ("workdir", "data_dir", "text_file", "tokenizer"):
        if reason := why_not_local(getattr(config, name) or ""):
            raise InputError(f"--{name}={getattr(config, name)}: {reason}")
    counts = ("groups", "workers", "steps", "leader_window", "global_period", "plateau_patience", "sequence_length")
    for name in (*counts, "fragments"):
        _check_at_least(config, name, 1)
    if config.leader_window > LARGEST_WINDOW:
        raise InputError(f"--leader_window={config.leader_window}: must be at most {LARGEST_WINDOW:,}")
    for name in ("batch_size", "eval_every", "checkpoint_every", "model_width", "model_layers", "overlap"):
        if getattr(config, name) is not None:
            _check_at_least(config, name, 1)
    if config.loader_processes is not None:
        _check_at_least(config, "loader_processes", 0)
    for name in ("learning_rate", "weight_decay", "warmup_steps", "outer_learning_rate", "push", "temperature", "seed"):
        _check_at_least(config, name, 0)
    for name in ("momentum", "outer_momentum"):
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: must lie in [0, 1)")
    if config.compress not in (None, 4, 8):
        raise InputError(f"--compress={config.compress}: must be 8 or 4")
    if config.compress_top_k is not None and not 0 < config.compress_top_k < 1:
        raise InputError(f"--compress_top_k={config.compress_top_k}: must lie between 0 and 1")
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
    _check_choice(config, "election", ("score", "random"))
    if config.temperature and (config.election == "random" or config.wire_dtype is not None):
        other = "--election=random" if config.election == "random" else f"--wire_dtype={config.wire_dtype}"
        raise InputError(f"--temperature={config.temperature} makes a mean of all: leave it or {other} out")
    _check_at_least(config, "score_samples", 0)
    if config.score_samples and config.algorithm in METHODS.keys() - {"lsgd"}:
        raise InputError(f"--score_samples={config.score_samples}: {config.algorithm} elects nobody: leave it out")
    if config.score_samples and config.election == "random":
        raise InputError(
            f"--score_samples={config.score_samples}: with --election=random no score counts: leave it out"
        )
    _check_choice(config, "compute_dtype", ("float32", "bfloat16"))
    if config.wire_dtype is not None:
        _check_choice(config, "wire_dtype", WIRE_DTYPES)
        if config.algorithm not in users_of("wire_dtype"):
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
    for name in ("text_file", "tokenizer"):
        if getattr(before, name) and getattr(now, name):  # it may have moved
            changed.pop(name, None)
    with_speeds = before.worker_speeds is not None
    if elastic and with_speeds and (before.groups, before.workers) != (now.groups, now.workers):
        raise InputError(
            f"--elastic cannot change the number of workers of a run with --worker_speeds={before.worker_speeds}: "
            f"go on with --groups={before.groups} --workers={before.workers}, or use a new --workdir"
        )
    if changed:
        shown = ", ".join(f"--{name} was {old}, is {new}" for name, (old, new) in sorted(changed.items()))
        hint = ", or add --elastic" if changed.keys() <= SHAPE and not with_speeds else ""
        raise InputError(f"cannot resume with other settings ({shown}): leave them out, or use a new --workdir{hint}")


def _check_at_least(config: Config, name: str, least: int) -> None:
    value = getattr(config, name)
    if not value >= least:
        raise InputError(f"--{name}={value}: must be at least {least}")
    if value > LARGEST:
        raise InputError(f"--{name}={value}: must be at most {LARGEST:,}")


def _check_choice(config: Config, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise InputError(f"unknown --{name}={getattr(config, name)}: choose one of {', '.join(choices)}")
