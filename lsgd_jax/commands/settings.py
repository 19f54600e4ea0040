"""The flags of the scripts that train: those of `Config`, and those of the process."""

import dataclasses
import os
import typing
from typing import Any

from absl import flags

from lsgd_jax.commands.command_line import Flag
from lsgd_jax.config.config import Config
from lsgd_jax.config.methods import METHODS, users_of
from lsgd_jax.config.usual import USUAL

KINDS = {str: "string", int: "integer", float: "float", bool: "boolean"}
# A setting that more methods have is preceded by none of their names.
FEW = 4

# What concerns this process, not the run: not kept in config.json.
PROCESS: dict[str, tuple[Flag, ...]] = {
    "several processes": (
        Flag("coordinator_address", "string", None, "host:port that process 0 listens on (default: what JAX detects)"),
        Flag("num_processes", "integer", None, "how many; 1 for this one alone (default: what JAX detects)"),
        Flag("process_id", "integer", None, "which of them this is, from 0 on (default: what JAX detects)"),
        Flag("connect_timeout", "float", 120.0, "seconds in which all have to come"),
        Flag("heartbeat_timeout", "integer", 15, "seconds without a sign of life after which one counts as dead"),
        Flag("live", "boolean", False, "when a process dies the others go on, and one that comes is taken in; on CPU"),
    ),
    "run": (
        Flag(
            "resume",
            "automatic",
            False,
            "go on with the run in --workdir, with its settings; --resume=auto: or begin one there",
        ),
        Flag("elastic", "boolean", False, "with --resume: go on with other --groups and --workers; docs/cluster.md"),
        Flag("profile_dir", "path", None, "folder for a jax.profiler trace of the first rounds (default: none)"),
        Flag("live_report", "boolean", False, "keep a page of the run for browsers fresh in its --workdir"),
        Flag("wandb", "boolean", False, "send the metrics to Weights & Biases too; WANDB_MODE=offline keeps them here"),
        Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax for the next run"),
    ),
}
PROCESS_FLAGS = tuple(flag.name for group in PROCESS.values() for flag in group)


def _flags_of_config() -> dict[str, tuple[Flag, ...]]:
    """By heading, in the order of --help."""
    types = typing.get_type_hints(Config)
    groups: dict[str, tuple[Flag, ...]] = dict.fromkeys(
        ("what to train", "workers", "local steps", "communication", "several processes", "run"), ()
    )
    for field in dataclasses.fields(Config):
        about, users = field.metadata["about"], users_of(field.name)
        (kind,) = {*(typing.get_args(types[field.name]) or (types[field.name],))} - {type(None)}
        default = None if field.default is dataclasses.MISSING else field.default
        of = f"{', '.join(users)}: " if about.group == "communication" and 0 < len(users) <= FEW else ""
        flag = Flag(field.name, about.kind or KINDS[kind], default, of + about.help)
        groups[about.group] += (flag,)
    return groups


GROUPS = {group: members + PROCESS.get(group, ()) for group, members in _flags_of_config().items()}


def methods_help() -> list[str]:
    """The lines of a help text about methods."""
    return ["methods:", *(f"  {name:<18} {method.summary}" for name, method in METHODS.items())]


def usual_help() -> list[str]:
    """The lines of a help text about defaults."""
    lines = ["defaults of some data, in place of those below:"]
    for kind, values in USUAL.items():
        lines.append(f"  {kind:<18} " + " ".join(f"--{name}={value}" for name, value in values.items()))
    return lines


def given_settings(values: flags.FlagValues) -> dict[str, Any]:
    """The settings of a run that the user gave, by the command line or a flagfile."""
    names = [flag.name for group in GROUPS.values() for flag in group if flag.name not in PROCESS_FLAGS]
    given = {name: values[name].value for name in names if name in values and values[name].present}
    for name in ("data_dir", "text_file", "tokenizer"):
        if given.get(name):
            given[name] = os.path.abspath(str(given[name]))
    return given
