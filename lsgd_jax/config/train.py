"""A run from its settings to its results."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.config.checks import check_settings
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import fit_devices, keep_batch_size, trainer_of
from lsgd_jax.config.kinds import AnySource
from lsgd_jax.config.own_code import CODE, changed_since, digests_of
from lsgd_jax.config.saved import read_config
from lsgd_jax.config.summary import finished
from lsgd_jax.engine.numerics import fixed_numerics
from lsgd_jax.files.output import lasting_output
from lsgd_jax.trainer.conditions import agreed_conditions
from lsgd_jax.trainer.live import LiveRun
from lsgd_jax.trainer.loop import own_folder
from lsgd_jax.trainer.trainer import CONFIG, run_trainer
from lsgd_jax.trainer.weights_and_biases import check_wandb


@lasting_output()
@fixed_numerics()
def train(
    config: Config,
    *,
    resume: bool = False,
    elastic: bool = False,
    profile_dir: str | None = None,
    source: AnySource | None = None,
    stop: StopRequest | None = None,
    figures: bool = True,
    wandb: bool = False,
    live: LiveRun | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Trains as the settings say, and leaves the results in `config.workdir`.

    Args:
      config: the settings.
      resume: whether to go on with the run that is in that workdir.
      elastic: whether that may be with another number of workers: that of the settings or, where
        this leaves a process without any, one that does not.
      profile_dir: a folder for a `jax.profiler` trace of the first rounds, or None.
      source: the data set of the settings, where the caller has found it already.
      stop: whether to stop, where the caller listens to signals itself; awaited from the first round on.
      figures: whether to draw them, at the end.
      wandb: whether to send the metrics to Weights & Biases too.
      live: what this process carries along in a run that outlives its processes; the settings are those of all of them.
      notes: to be said once the settings are known to work.

    Returns:
      The summary that is also in summary.json; None if the run was stopped before its end,
      by a signal or by `stop`, and is ready to be resumed.

    Raises:
      InputError: if the settings cannot work; nothing has been changed then.
      AllWorkersLostError: if no worker has finite parameters left, and no
        communication will start one again.
      DiskFullError: if the disk of the workdir is full.
    """
    workdir = pathlib.Path(config.workdir)
    processes.check_same({**dataclasses.asdict(config), "resume": resume, "elastic": elastic})
    if wandb:
        processes.from_main(check_wandb)
    if live is not None:
        live.workdir, live.shape = config.workdir, (config.groups, config.workers)
        groups, workers = processes.together(live.shape_now)
        config = dataclasses.replace(config, groups=groups, workers=workers)
    elif elastic:
        config = processes.together(lambda: fit_devices(config))
    source = processes.together(
        lambda: check_settings(config, workdir, resume=resume, elastic=elastic, profile_dir=profile_dir, source=source)
    )
    conditions, code = agreed_conditions(source), digests_of(config.task, config.algorithm)
    for note in notes:
        processes.say(f"note: {note}")
    for name in changed_since(workdir, code):
        processes.say(f"note: {name} has changed since the run in {workdir} began: going on with what it is now")
    if elastic:
        config = processes.together(lambda: keep_batch_size(config, read_config(workdir), source))
    if resume and (summary := processes.from_main(lambda: finished(workdir, config.steps))):
        processes.say(
            f"the run in {workdir} is already finished, at step {summary['step']}; a larger --steps trains on"
        )
        return summary

    settings = dataclasses.asdict(config)
    if live is not None and live.shape is not None:  # of the run when all are there
        settings["groups"], settings["workers"] = live.shape
    files = {CONFIG: settings} | ({CODE: code} if code else {})
    labels = {"algorithm": config.algorithm, "dataset": config.data_name}
    how: Any = {"resume": resume, "profile_dir": profile_dir, "stop": stop, "figures": figures, "wandb": wandb}
    with own_folder(workdir):
        ended = run_trainer(trainer_of(config, source), config.steps, conditions, files, labels, live=live, **how)
    return ended.summary
