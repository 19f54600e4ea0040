"""Limits the vector instructions that compilers and kernels on CPU may use, by environment variables."""

import os
import sys
from collections.abc import Mapping

ISAS = ("native", "avx2")
ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def of_jax(isa: str, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which jax keeps to `isa`, if it is set before jax is imported."""
    if isa == "native":
        return dict(environment)
    flag = "--xla_cpu_max_isa=AVX2"
    given = environment.get("XLA_FLAGS", "").split()
    return {**environment, **ONEDNN, "XLA_FLAGS": " ".join([*(each for each in given if each != flag), flag])}


def of_torch(isa: str, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a process of PyTorch keeps to `isa`.

    What `torch.compile` vectorizes does; the C++ compiler that it calls still knows the machine.
    """
    if isa == "native":
        return dict(environment)
    return {**environment, **ONEDNN, "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def dtypes(isa: str) -> tuple[str, ...]:
    """What is worth measuring: no bfloat16 without instructions for it."""
    return ("float32", "bfloat16") if isa == "native" else ("float32",)


def keep_to(isa: str) -> None:
    """Starts this program again in the environment of `of_jax`, unless that is where it runs."""
    environment = of_jax(isa, os.environ)
    if environment != dict(os.environ):
        os.execve(sys.executable, sys.orig_argv, environment)
