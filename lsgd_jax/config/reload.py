"""A run as its newest checkpoint has it, to look at."""

import contextlib
import dataclasses
import pathlib
from typing import NamedTuple

from lsgd_jax.cluster import processes
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import trainer_of
from lsgd_jax.config.kinds import find_source
from lsgd_jax.config.saved import read_config
from lsgd_jax.engine.numerics import fixed_numerics
from lsgd_jax.engine.state import TrainState, state_shardings
from lsgd_jax.errors import InputError
from lsgd_jax.trainer.checkpoints import Checkpoints
from lsgd_jax.trainer.conditions import check_data
from lsgd_jax.trainer.run import Run
from lsgd_jax.trainer.workdir import check_workdir


class Reloaded(NamedTuple):
    """A run, and the state of its workers after `step` local steps."""

    config: Config
    run: Run
    state: TrainState
    step: int


@fixed_numerics()
def reload_run(workdir: pathlib.Path, data_dir: str | None = None) -> Reloaded:
    """Builds the run of a workdir again, and restores its newest checkpoint.

    Args:
      workdir: the run's folder.
      data_dir: where prepared TFDS sets are; None for where they were in the run.

    Raises:
      InputError: if there is no run or no whole checkpoint, or its data set is no longer there or another.
    """
    check_workdir(workdir, resume=True)
    config = Config(**read_config(workdir))
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=data_dir)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise InputError(f"there is no checkpoint in {workdir}: a comparison keeps none, train.py does")
        if damage := checkpoints.damage(step):
            raise InputError(f"the checkpoint of step {step} in {workdir} is damaged ({damage}): go on with --resume")
        groups, workers = checkpoints.info(step).shape  # it may be about to go on with others
        config = dataclasses.replace(config, groups=groups, workers=workers)
        source = find_source(config)
        if note := check_data(workdir, source, config.text_name):
            processes.say(f"note: {note}")
        run = trainer_of(config, source).build(config.steps)
        shapes = run.state_shapes(run.topology.shape)
        state = checkpoints.restore(step, shapes, state_shardings(run.topology, shapes))
    return Reloaded(config, run, state, step)
