"""What can be wrong with a run, seen before it begins."""

import dataclasses
import pathlib
from typing import Any

from lsgd_jax.cluster import processes
from lsgd_jax.cluster.asynchronous import check_shares
from lsgd_jax.config.config import Config, check_config, check_resumable
from lsgd_jax.config.from_config import check_asynchronous, schedule_of, topology_of
from lsgd_jax.config.kinds import AnySource, find_source, kind_of
from lsgd_jax.config.make_method import make_method
from lsgd_jax.config.saved import read_config
from lsgd_jax.config.usual import usual_settings
from lsgd_jax.engine.numerics import check_jax
from lsgd_jax.errors import InputError
from lsgd_jax.files.writable import make_writable
from lsgd_jax.trainer.conditions import check_data, check_precision
from lsgd_jax.trainer.workdir import check_shared_workdir, check_workdir


def check_alone(config: Config) -> None:
    """Checks the settings as far as they can be judged without their data.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    check_config(config)
    make_method(config)
    schedule_of(config)


def load_config(workdir: str, given: dict[str, Any], *, resume: bool) -> Config:
    """The settings of a run: those given, over the saved ones of a run to be resumed, or over those that suit its data.

    Raises:
      InputError: if a run is to be resumed and there is none, or its saved settings cannot be.
    """
    if not resume:
        return Config(**usual_settings(given) | given)
    path = pathlib.Path(workdir)
    check_workdir(path, resume=True)
    saved = Config(**read_config(path))
    config = dataclasses.replace(saved, **given | {"workdir": workdir})
    mistake = _mistake(config)
    if mistake is not None and mistake == _mistake(saved):  # of flags that nobody has given
        raise InputError(f"{path / 'config.json'} is damaged ({mistake}): use a new --workdir, or restore it")
    return config


def _mistake(config: Config) -> str | None:
    try:
        check_alone(config)
    except InputError as error:
        return str(error)
    return None


def check_settings(
    config: Config,
    workdir: pathlib.Path,
    *,
    resume: bool,
    elastic: bool = False,
    profile_dir: str | None = None,
    source: AnySource | None = None,
) -> AnySource:
    """Finds the data set, after checking all that can be wrong before its images are read.

    Raises:
      InputError: what is wrong and what to do, in one line.
    """
    check_jax()
    check_alone(config)
    check_shared_workdir(workdir, resume=resume)
    if resume:
        check_resumable(read_config(workdir), config, elastic=elastic)
    check_asynchronous(config, make_method(config), resume=resume)
    topology = topology_of(config)
    processes.check_all_work(topology)
    if config.asynchronous:
        check_shares(topology)
    source = source or find_source(config)
    if resume:
        check_precision(workdir)
        if note := check_data(workdir, source, Config(**read_config(workdir)).text_name):
            processes.say(f"note: {note}")
    kind_of(source).batch_size(config, source)
    if processes.is_main():
        if profile_dir is not None:
            make_writable(pathlib.Path(profile_dir), "profile_dir")
        if not resume:  # a finished run may be anywhere; what goes on is looked at by part
            make_writable(workdir)
    return source
