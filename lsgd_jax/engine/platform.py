"""What a model is traced for."""

from typing import Any

import jax


def platform() -> str:
    """What is traced for: the mesh in whose context it is, as in `jax.shard_map`; without one the default device.

    It may be another than this host's, whose programs can be compiled for devices that are not here.
    """
    config: Any = jax.config
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device
    device = of_mesh or config.jax_default_device or jax.local_devices()[0]
    return device if isinstance(device, str) else device.platform
