"""Hardware that programs can be compiled for without it: chips, what connects them, and how they are named.

Figures are nominal, of one device as JAX counts them, from:

* TPUs: "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" of docs.cloud.google.com/tpu/docs. Memory is what the compiler says
  that a program may use. A chip's ports are shared evenly by the axes of its torus; a ring along one of them uses two,
  one in each direction. The data-center network is that of a host's cards, shared by its chips.
* H100 and H200: the data sheets of the H100 SXM5 and the H200, and the DGX systems: a card of 400 Gbit/s for each GPU.
"""

import re
from typing import Any, NamedTuple

import jax

from lsgd_jax.accounting.network import NVLINK_4, Link, Network
from lsgd_jax.errors import InputError

GIB = 2**30


class Chip(NamedTuple):
    """A kind of device.

    Attributes:
      name: as JAX calls it.
      memory: bytes that a program may use.
      peak: floating-point operations a second, of dense products in bfloat16.
      clock: cycles a second, where the compiler estimates cycles: what follows from the peak, and from how many
        products a cycle makes.
      link: to its neighbours, in a ring.
      between: bytes a second that it can send beyond them: its share of the network between slices or nodes.
    """

    name: str
    memory: int
    peak: float
    clock: float | None
    link: Link
    between: float


# By the name of a target.
CHIPS = {
    "v4": Chip("TPU v4", int(31.75 * GIB), 275e12, 1.05e9, Link(1e-6, 2 * 50e9), 6.25e9),
    "v5e": Chip("TPU v5 lite", int(15.75 * GIB), 197e12, 1.5e9, Link(1e-6, 2 * 50e9), 3.125e9),
    "v5p": Chip("TPU v5", int(95.74 * GIB), 459e12, 1.75e9, Link(1e-6, 2 * 100e9), 6.25e9),
    "v6e": Chip("TPU v6 lite", int(31.24 * GIB), 918e12, 1.75e9, Link(1e-6, 2 * 100e9), 12.5e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", int(79.1 * GIB), 989e12, None, NVLINK_4, 50e9),
    "h200": Chip("NVIDIA H200", int(139.8 * GIB), 989e12, None, NVLINK_4, 50e9),
}
LATENCY_BETWEEN = {"tpu": 50e-6, "gpu": 5e-6}
NAMED = re.compile(r"tpu:(v\w+):(\d+x\d+(?:x\d+)?)(?:\*(\d+))?|(h[12]00):(\d+)x(\d+)")
USAGE = "use tpu:v5e:4x4, with slices tpu:v5e:4x4*4, or h100:NODESxGPUS, as h100:4x8 (h200 too)"
# What the compiler for GPUs is told of one: it has none to ask. The two have the same cores, and other memory.
HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: %(bandwidth)d
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: %(memory)d
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "%(name)s"
"""
BANDWIDTH = {"h100": 3_352_320_000_000, "h200": 4_800_000_000_000}
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


class Target(NamedTuple):
    """Hardware to compile for.

    Attributes:
      text: as it was named.
      chip: its kind of device.
      platform: "tpu" or "gpu".
      shape: of a slice, as "4x4"; of nodes and their GPUs.
      groups: slices, or nodes: what is inside one communicates cheaply.
    """

    text: str
    chip: Chip
    platform: str
    shape: str
    groups: int

    def network(self, devices: int) -> Network:
        """What connects groups of so many devices: their links, and all their shares of what lies between."""
        beyond = Link(LATENCY_BETWEEN[self.platform], devices * self.chip.between)
        return Network(self.chip.link, self.chip.link if self.groups == 1 else beyond)


def read_target(text: str) -> Target:
    """The hardware of a --target.

    Raises:
      InputError: if there is no such hardware.
    """
    found = NAMED.fullmatch(text)
    if not found:
        raise InputError(f"--target={text}: {USAGE}")
    if found[4]:
        return Target(text, CHIPS[found[4]], "gpu", f"{found[5]}x{found[6]}", int(found[5]))
    if found[1] not in CHIPS:
        known = ", ".join(name for name in CHIPS if name.startswith("v"))
        raise InputError(f"--target={text}: unknown kind of TPU: choose one of {known}")
    return Target(text, CHIPS[found[1]], "tpu", found[2], int(found[3] or 1))


def devices_of(target: Target) -> list[Any]:
    """Its devices, for a mesh; no array can be put on them.

    Raises:
      InputError: if the compiler is not installed, or knows no such topology.
    """
    from jax.experimental import topologies

    try:
        if target.platform == "gpu":
            nodes, gpus = target.shape.split("x")
            told = {"bandwidth": BANDWIDTH[target.text[:4]], "memory": target.chip.memory, "name": target.chip.name}
            kind: dict[str, Any] = {"platform": "cuda", "target_config": HOPPER % told}
            described = topologies.get_topology_desc(**kind, topology=f"{nodes}x1x{gpus}")
        else:
            slices: dict[str, Any] = {"num_slices": target.groups} if target.groups > 1 else {}
            name = f"{target.text.split(':')[1]}:{target.shape}"
            if name.startswith("v4"):
                slices["chip_config_name"] = "megacore"
            described = topologies.get_topology_desc(platform="tpu", topology_name=name, **slices)
    except (RuntimeError, NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
        if target.platform == "tpu" and not _installed("libtpu"):
            extra = "tpu"
        elif target.platform == "gpu" and not any(map(_installed, CUDA_PLUGINS)):
            extra = "gpu"
        else:
            raise InputError(f"--target={target.text}: {str(error).splitlines()[0]}") from error
        raise InputError(f"--target={target.text} needs its compiler: pip install 'lsgd_jax[{extra}]'") from error
    return list(described.devices)


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
