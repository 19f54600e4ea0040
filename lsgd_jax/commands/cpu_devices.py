"""A CPU device for each core."""

import contextlib
import os

FLAG = "xla_force_host_platform_device_count"


def make_cpu_devices(count: int | None = None) -> None:
    """Has JAX make so many CPU devices, by default as many as this process has cores, before it begins.

    Workers that share a device step one after the other, and what is small in a step keeps one core busy. On a
    device of its own each core steps through a worker: up to 1.4 times as fast (results/speed.md).
    `JAX_NUM_CPU_DEVICES`, and XLA's flag, say otherwise. Where there are GPUs or TPUs it is of no effect.
    """
    import jax

    from lsgd_jax.config.config import usable_cores

    chosen = jax.config.jax_num_cpu_devices >= 0 or FLAG in os.environ.get("XLA_FLAGS", "")  # type: ignore[attr-defined]
    if not chosen:
        with contextlib.suppress(RuntimeError):  # JAX has begun, in the process of somebody who calls `main`
            jax.config.update("jax_num_cpu_devices", usable_cores() if count is None else count)
