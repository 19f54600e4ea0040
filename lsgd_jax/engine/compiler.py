"""In what dtype products are computed, what the compiler is told about it, and where it does not help."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from lsgd_jax.engine.topology import Topology


def compiler_options(compute_dtype: str, topology: Topology) -> dict[str, Any] | None:
    """Options for compiling the train step.

    On CPU bfloat16 is fast in oneDNN alone (jax 0.11 and newer; older ones ignore the option), which takes minutes for
    batched kernels: never for vmapped lanes. In float32 it would be 5 to 10 % faster too, but programs that call it
    cannot be kept for the next run.
    """
    if topology.platform == "cpu" and jnp.dtype(compute_dtype) == jnp.bfloat16 and topology.lanes == "sequential":
        return {"xla_cpu_experimental_onednn_custom_call": True}
    return None


def why_bfloat16_is_slow(platform: str) -> str | None:
    """Why products in bfloat16 take at least as long as in float32 on such devices, or None where they do not."""
    if platform != "cpu":
        return None
    if jax.__version_info__ < (0, 11):
        return f"jax {jax.__version__} computes it in float32 on CPU: use jax 0.11 or newer, on Python 3.12 or newer"
    found = cpu_features()
    if not found or {"amx_bf16", "avx512_bf16", "bf16"} & found:
        return None
    return "this CPU has no instructions for it (AMX or AVX512_BF16)"


def cpu_features() -> set[str]:
    """The words of /proc/cpuinfo, the CPU's features among them; none outside Linux, where they are not known."""
    about = pathlib.Path("/proc/cpuinfo")
    return set(about.read_text().split()) if about.exists() else set()
