"""What command lines make of their environment."""

import importlib.metadata
import logging
import os
import sys

from lsgd_jax.errors import InputError, first_line
from lsgd_jax.files.output import make_output_last

# Figures go to files, and look the same everywhere; what a user's file says may not work here.
FIGURES = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
# What variables that are meant for other programs begin with: settings of progress bars, and checks of JAX that one may
# want of one's own programs. Ours are not written for them: infinities stand for what is not there.
FOR_OTHERS = (
    "TQDM_",
    "JAX_DEBUG_INFS",
    "JAX_NO_EXECUTION",
    "JAX_NO_TRACING",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_NUMPY_RANK_PROMOTION",
    "JAX_TRANSFER_GUARD",
)


def set_for_this_program() -> None:
    """Leaves out of the environment, before JAX starts, what is meant for other programs; and lets output last."""
    for name in [name for name in os.environ if name.startswith(FOR_OTHERS) and name != "TQDM_DISABLE"]:
        del os.environ[name]
    os.environ.update(FIGURES)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells at length that there is no home directory
    _hush_old_jaxlib()
    make_output_last()


def set_for_compilers() -> None:
    """Sets the environment, before JAX is imported, for compilers of hardware that is not here."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no machine in a cloud to ask
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process stops at a lock file
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    # A GPU that is not here cannot be timed.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()


def why_jax_cannot_start(error: Exception) -> str | None:
    """What is wrong with JAX's variables or devices, if an error may come from that: it fails where first used."""
    if "jax" not in sys.modules:  # it has not got so far, or no further
        message = f"JAX cannot start ({first_line(error)}): mend that variable, or unset it"
        return message if isinstance(error, ValueError) else None
    from lsgd_jax.cluster.processes import devices

    try:
        devices()
    except InputError as missing:
        return str(missing)
    return None


def _hush_old_jaxlib() -> None:
    """jaxlib 0.10.1 logs two errors of 2 kB for each program of its cache, though all is well.

    A 1 is no choice of the user's: JAX leaves it to whatever a program starts that has imported it.
    """
    if importlib.metadata.version("jaxlib") == "0.10.1" and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what is fatal is still told
