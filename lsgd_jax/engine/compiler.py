"""In what dtype products are computed, what the compiler is told about it, and where it does not help."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from lsgd_jax.engine.topology import Topology

# By which TPUs send while they take local steps that do not need it. On a slice of v5e an all-reduce is woven into the
# products of the steps; between its slices what goes over the data-center network straddles them.
WOVEN = dict.fromkeys(
    (
        "xla_enable_async_all_reduce",
        "xla_tpu_enable_async_collective_fusion",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
        "xla_tpu_enable_async_collective_fusion_while_loops",
        "xla_tpu_overlap_compute_collective_tc",
    ),
    True,
)
STRADDLES = {"xla_tpu_enable_async_collective_fusion": False}
# Sparse cores do it on chips that have them for it; they are one queue, so local steps must not look up rows there.
ON_SPARSE_CORES = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
    "xla_tpu_offload_gather_to_sparsecore": False,
}
HAVE_SPARSE_CORES = ("TPU v5", "TPU v6 lite")


def compiler_options(compute_dtype: str, topology: Topology, *, overlapped: bool = False) -> dict[str, Any] | None:
    """Options for compiling the train step, of a method that is `overlapped` or is not.

    On GPUs what is sent before local steps that do not need it is under way meanwhile without an option, on TPUs v5e,
    v5p and v6e with some; on v4 none was found that does the same (results/compiled.md).

    On CPU bfloat16 is fast in oneDNN alone (jax 0.11 and newer; older ones ignore the option), which takes minutes for
    batched kernels: never for vmapped lanes. In float32 it would be 5 to 10 % faster too, but programs that call it
    cannot be kept for the next run.
    """
    if topology.platform == "cpu" and jnp.dtype(compute_dtype) == jnp.bfloat16 and topology.lanes == "sequential":
        return {"xla_cpu_experimental_onednn_custom_call": True}
    return _under_way_on(topology) if overlapped else None


def _under_way_on(topology: Topology) -> dict[str, Any] | None:
    devices = topology.mesh.devices.ravel()
    kinds, slices = ({getattr(d, name, None) for d in devices} for name in ("device_kind", "slice_index"))
    between = STRADDLES if len(slices) > 1 else {}
    if kinds == {"TPU v5 lite"}:
        return between or WOVEN
    return ON_SPARSE_CORES | between if kinds.issubset(HAVE_SPARSE_CORES) else None


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
