"""The flags that describe a run, for the scripts that train: their groups, defaults and help."""

import os
from typing import Any

from absl import flags
from command_line import Flag

# A default of None is explained in the help.
GROUPS: dict[str, tuple[Flag, ...]] = {
    "what to train": (
        Flag(
            "algorithm",
            "string",
            "lsgd",
            "the method, one of those above, or FILE.py:NAME",
        ),
        Flag("method_args", "string", None, "of FILE.py:NAME, as pull=0.5,period=8"),
        Flag("dataset", "string", "digits", "digits (no download), or a TFDS set of labelled images or of text"),
        Flag("text_file", "path", None, "in place of a data set: a UTF-8 file, of which bytes are predicted"),
        Flag("task", "string", None, "in place of both: FILE.py:NAME, a function that returns a lsgd_jax.Task"),
        Flag("model", "string", None, "see the README (default: digits cnn3, other images cnn7, text transformer)"),
        Flag("model_width", "integer", None, "of text: units of a layer (default: lstm 650, transformer 256)"),
        Flag("model_layers", "integer", None, "of text: layers (default: lstm 2, transformer 4)"),
        Flag("dropout", "float", None, "of text: share of units dropped (default: lstm 0.5, transformer 0.1)"),
        Flag("data_dir", "path", None, "folder of prepared TFDS sets (default: ~/tensorflow_datasets)"),
        Flag("download", "boolean", False, "let TFDS fetch and prepare a missing set (needs the extra 'tensorflow')"),
        Flag("seed", "integer", 0, "a run is a function of it: start, order, augmentation, held-out images"),
    ),
    "workers": (
        Flag("groups", "integer", 2, "groups of workers; one group has only the global leader"),
        Flag("workers", "integer", 4, "workers in each group"),
        Flag("sampling", "string", "shard", "shard (one each), reshuffle (dealt anew each epoch) or iid (any sample)"),
        Flag("init", "string", "same", "same or different initial parameters of the workers"),
        Flag(
            "worker_speeds",
            "string",
            None,
            "simulated, of each worker in steps a second, as 1,1,1,0.25: see the README",
        ),
        Flag("asynchronous", "boolean", False, "let each of several processes take local steps at its own pace"),
    ),
    "local steps": (
        Flag("optimizer", "string", "sgd", "sgd, adam, adamw or lars"),
        Flag("learning_rate", "float", 0.05, "of the local steps"),
        Flag("momentum", "float", 0.9, "of sgd (Nesterov's), lars and eamsgd; 0 for none"),
        Flag("weight_decay", "float", 1e-4, "weight decay"),
        Flag("scale_learning_rate", "boolean", False, "times the number of workers, for data_parallel"),
        Flag("schedule", "string", "constant", "of the learning rate: constant, drop, plateau or cosine"),
        Flag("drop_at", "string", None, "drop: a tenth of the rate from each of these steps on, as 1000,2000"),
        Flag("plateau_patience", "integer", 5, "plateau: a tenth of it after so many evaluations without improvement"),
        Flag("warmup_steps", "integer", 0, "steps in which the learning rate rises to its value"),
        Flag("clip_norm", "float", None, "gradients of a larger norm are scaled down to this one (default: none is)"),
        Flag("batch_size", "integer", None, "samples a worker and step (default: 128, or the shard if it is smaller)"),
        Flag("sequence_length", "integer", 128, "of text: bytes of a sample; then the default batch is 32"),
        Flag("steps", "integer", 640, "local steps of each worker"),
        Flag("compute_dtype", "string", "float32", "float32 or bfloat16: of products; the rest stays float32"),
    ),
    "communication": (
        Flag("local_pull", "float", 0.1, "lsgd: pull toward the group's leader, in [0, 1]"),
        Flag("global_pull", "float", 0.1, "lsgd: pull toward the leader of all; grawa, dppf: to the mean; in [0, 1]"),
        Flag("stale_local_pull", "float", 0.0, "lsgd: pull of every step toward the group's last leader, in [0, 1]"),
        Flag("stale_global_pull", "float", 0.0, "lsgd: pull of every step toward the last leader of all, in [0, 1]"),
        Flag("local_period", "integer", 16, "lsgd, local_sgd: steps between two communications inside a group"),
        Flag("global_period", "integer", 64, "steps between two communications of all, a multiple of the local period"),
        Flag("leader_window", "integer", 10, "batches in a score, the mean training loss (grawa: gradient norm)"),
        Flag(
            "wire_dtype",
            "string",
            None,
            "lsgd: bfloat16, float16 or int8, how a leader's model travels (default: as it is)",
        ),
        Flag("beta", "float", 0.9, "easgd, eamsgd: how far the center moves to the workers, in [0, 1]"),
        Flag("outer_learning_rate", "float", 0.7, "diloco: of the outer optimizer, SGD"),
        Flag("outer_momentum", "float", 0.9, "diloco: its Nesterov momentum; 0 for none"),
        Flag("push", "float", 0.1, "dppf: length of the push away from the mean"),
    ),
    "several processes": (
        Flag("coordinator_address", "string", None, "host:port that process 0 listens on (default: what JAX detects)"),
        Flag("num_processes", "integer", None, "how many; 1 for this one alone (default: what JAX detects)"),
        Flag("process_id", "integer", None, "which of them this is, from 0 on (default: what JAX detects)"),
        Flag("connect_timeout", "float", 120.0, "seconds in which all have to come"),
        Flag("heartbeat_timeout", "integer", 15, "seconds without a sign of life after which one counts as dead"),
    ),
    "run": (
        Flag("workdir", "path", None, "folder for the results (default: runs/ and the date, data set and algorithm)"),
        Flag("eval_every", "integer", None, "steps between two evaluations (default: a twentieth of the run)"),
        Flag("checkpoint_every", "integer", None, "steps between two checkpoints (default: a fifth of the run)"),
        Flag(
            "loader_processes",
            "integer",
            None,
            "that decode streamed images; 0: this one (default: one a core, up to 16)",
        ),
        Flag(
            "resume",
            "automatic",
            False,
            "go on with the run in --workdir, with its settings; --resume=auto: or begin one there",
        ),
        Flag("elastic", "boolean", False, "with --resume: go on with other --groups and --workers; see the README"),
        Flag("profile_dir", "path", None, "folder for a jax.profiler trace of the first rounds (default: none)"),
        Flag("compilation_cache", "boolean", True, "keep compiled programs in ~/.cache/lsgd_jax for the next run"),
    ),
}

# What concerns this process, not the run: not kept in config.json.
PROCESS_FLAGS = (
    "resume",
    "elastic",
    "profile_dir",
    "compilation_cache",
    "coordinator_address",
    "num_processes",
    "process_id",
    "connect_timeout",
    "heartbeat_timeout",
)


def given_settings(values: flags.FlagValues) -> dict[str, Any]:
    """The settings of a run that the user gave, by the command line or a flagfile."""
    names = [flag.name for group in GROUPS.values() for flag in group if flag.name not in PROCESS_FLAGS]
    given = {name: values[name].value for name in names if name in values and values[name].present}
    for name in ("data_dir", "text_file"):
        if given.get(name):
            given[name] = os.path.abspath(str(given[name]))
    return given
