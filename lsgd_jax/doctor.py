"""Tells what is installed, which devices JAX finds, and what is missing for which feature.

Its command is `python -m lsgd_jax.doctor`; it needs nothing but what is always installed.
"""

import argparse
import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator, Sequence

from lsgd_jax.errors import first_line
from lsgd_jax.trainer.provenance import version

PACKAGE = "lsgd_jax"
# What each extra is for; those that are not here are for the project's own tests.
FEATURES = {
    "train": "the trainer, its command lines and figures",
    "tokenizers": "--tokenizer: texts as tokens",
    "safetensors": "export_center, import_center",
    "wandb": "--wandb: metrics for Weights & Biases",
    "tensorflow": "--download: data sets that are not prepared yet",
    "gpu": "NVIDIA GPUs",
    "tpu": "TPUs",
}
# What JAX's own extras install.
PLUGINS = {"jax[cuda12]": "jax-cuda12-plugin", "jax[tpu]": "libtpu"}
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+(?:\[[\w,-]+\])?)[^;]*(?:;.*\bextra\s*==\s*['\"](?P<extra>[\w-]+)['\"])?")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if JAX finds no device, or the package is not installed."""
    parser = argparse.ArgumentParser(prog="python -m lsgd_jax.doctor", description=__doc__)
    parser.parse_args(argv)
    try:
        needed = requirements(importlib.metadata.requires(PACKAGE) or [])
    except importlib.metadata.PackageNotFoundError:
        print(f"{PACKAGE} is not installed: pip install {PACKAGE}, or -e . in a checkout of it", file=sys.stderr)
        return 1
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in (PACKAGE, *sorted(needed[None])):
        print(f"{name} {version(name) or 'is missing'}")
    found, told = devices()
    print(*told, "", sep="\n")
    for extra, feature in FEATURES.items():
        versions = {name: version(package_of(name)) for name in sorted(needed.get(extra, ()))}
        missing = [name for name, of in versions.items() if not of]
        state = f"missing: {', '.join(missing)} (pip install '{PACKAGE}[{extra}]')" if missing else "installed"
        print(f"{feature}: {state}")
        if there := [f"{package_of(name)} {of}" for name, of in versions.items() if of]:
            print(f"  {', '.join(there)}")
    return 0 if found else 1


def requirements(lines: Sequence[str]) -> dict[str | None, set[str]]:
    """The packages that each extra needs besides, and those that are always needed, of None.

    Args:
      lines: as in a package's metadata.
    """
    found: dict[str | None, set[str]] = {None: set()}
    for line in lines:
        if match := REQUIREMENT.match(line):
            found.setdefault(match["extra"], set()).add(match["name"])
    return found


def package_of(requirement: str) -> str:
    """The package that is there if a requirement is met: itself, or of an extra of JAX what it installs."""
    return PLUGINS.get(requirement, requirement.partition("[")[0])


def devices() -> tuple[bool, list[str]]:
    """Whether JAX finds any, and lines about them."""
    try:
        import jax

        kinds = [f"{device.platform}, {device.device_kind}" for device in jax.devices()]
    except Exception as error:  # whatever a plugin raises
        return False, [f"no devices: {first_line(error)}"]
    lines = [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]
    return True, [f"devices: {'; '.join(lines)}", *_notes(jax.devices()[0].platform)]


def _notes(kind: str) -> Iterator[str]:
    """What to know about computing on such devices."""
    from lsgd_jax.engine.compiler import why_bfloat16_is_slow

    if reason := why_bfloat16_is_slow(kind):
        yield f"bfloat16 is no faster than float32 here: {reason}"
    if kind == "cpu":
        yield "more CPU devices, for a mesh: JAX_NUM_CPU_DEVICES=8"


if __name__ == "__main__":
    sys.exit(main())
