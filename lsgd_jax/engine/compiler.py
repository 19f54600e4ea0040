"""In what dtype products are computed, and what the compiler is told about it."""

from typing import Any

import jax.numpy as jnp

from lsgd_jax.engine.topology import Topology


def compiler_options(compute_dtype: str, topology: Topology) -> dict[str, Any] | None:
    """Options for compiling the train step.

    On CPU bfloat16 is fast in oneDNN alone (jax 0.11 and newer; older ones ignore the
    option), which takes minutes for batched kernels: never for vmapped lanes.
    """
    on_cpu = topology.mesh.devices.flat[0].platform == "cpu"
    if on_cpu and jnp.dtype(compute_dtype) == jnp.bfloat16 and topology.lanes == "sequential":
        return {"xla_cpu_experimental_onednn_custom_call": True}
    return None
