"""Limits the vector instructions that compilers and kernels on CPU find, to those of an older machine."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping

ISAS = ("native", "avx2")
SOURCE = pathlib.Path(__file__).with_name("avx2_only.c")
BUILT = SOURCE.parents[1] / "build" / "avx2_only.so"


def why_not(isa: str) -> str | None:
    """Why this machine cannot be limited to `isa`, or None if it can."""
    if isa == "native":
        return None
    from lsgd_jax.engine.compiler import cpu_features

    if not {"avx2", "cpuid_fault"} <= cpu_features():
        return "Linux on an Intel CPU with AVX2 and cpuid_fault is needed (/proc/cpuinfo), to hide what is newer"
    return None if shutil.which("cc") else "a C compiler is needed (cc)"


def environment_of(isa: str, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a process, and all that it starts, keeps to `isa`."""
    if isa == "native":
        return dict(environment)
    libraries = environment.get("LD_PRELOAD", "").split()
    preloaded = [str(BUILT), *(each for each in libraries if each != str(BUILT))]
    # torch.compile reads /proc/cpuinfo, from which nothing is hidden.
    return {**environment, "LD_PRELOAD": " ".join(preloaded), "ATEN_CPU_CAPABILITY": "avx2"}


def dtypes(isa: str) -> tuple[str, ...]:
    """What is worth measuring: no bfloat16 without instructions for it."""
    return ("float32", "bfloat16") if isa == "native" else ("float32",)


def keep_to(isa: str) -> None:
    """Starts this program again in the environment of `isa`, unless that is where it runs."""
    environment = environment_of(isa, os.environ)
    if environment != dict(os.environ):
        BUILT.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(BUILT), str(SOURCE)], check=True)
        os.execve(sys.executable, sys.orig_argv, environment)
