"""What the compiler is told, by dtype and by how lanes are computed, and where bfloat16 is slow."""

import pathlib
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from lsgd_jax.engine import compiler
from lsgd_jax.engine.compiler import compiler_options, why_bfloat16_is_slow
from lsgd_jax.engine.topology import Topology


@pytest.mark.parametrize(
    ("compute_dtype", "lanes", "told"),
    [("float32", "sequential", False), ("bfloat16", "sequential", True), ("bfloat16", "vmap", False)],
)
def test_onednn_is_asked_for_in_bfloat16_and_never_together_with_vmap(
    compute_dtype: str, lanes: str, told: bool
) -> None:
    options = compiler_options(compute_dtype, Topology(1, 2, jax.devices()[:1], lanes=lanes))
    assert options == ({"xla_cpu_experimental_onednn_custom_call": True} if told else None)
    assert jax.jit(lambda x: 2 * x, compiler_options=options)(3.0) == 6.0


class Slice(NamedTuple):
    """A device that is not here."""

    device_kind: str
    slice_index: int = 0
    platform: str = "tpu"


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ([Slice("TPU v5 lite")] * 2, compiler.WOVEN),
        ([Slice("TPU v5 lite", 0), Slice("TPU v5 lite", 1)], compiler.STRADDLES),
        ([Slice("TPU v5")] * 2, compiler.ON_SPARSE_CORES),
        ([Slice("TPU v6 lite", 0), Slice("TPU v6 lite", 1)], compiler.ON_SPARSE_CORES | compiler.STRADDLES),
        ([Slice("TPU v4")] * 2, None),
        ([Slice("NVIDIA H100 80GB HBM3", platform="gpu")] * 2, None),
    ],
)
def test_what_lets_tpus_send_while_they_take_steps_goes_by_their_kind_and_only_to_overlapped_methods(
    devices: list[Slice], told: dict[str, bool] | None
) -> None:
    laid_out: Any = types.SimpleNamespace(
        platform=devices[0].platform, lanes="vmap", mesh=types.SimpleNamespace(devices=np.empty((1, 2), object))
    )
    for i, device in enumerate(devices):
        laid_out.mesh.devices[0, i] = device
    assert compiler_options("bfloat16", laid_out, overlapped=True) == told
    assert compiler_options("bfloat16", laid_out) is None


@pytest.mark.parametrize(
    ("version", "flags", "reason"),
    [
        ((0, 10, 1), "avx2 amx_bf16", "computes it in float32 on CPU"),
        ((0, 12, 0), "fma avx2", "no instructions for it"),
        ((0, 12, 0), "avx2 avx512_bf16", None),
        ((0, 12, 0), "avx2 amx_bf16", None),
        ((0, 12, 0), None, None),
    ],
)
def test_where_bfloat16_is_slow_it_is_known_why(
    version: tuple[int, ...],
    flags: str | None,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    about = tmp_path / "cpuinfo"
    if flags is not None:
        about.write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(compiler.jax, "__version_info__", version)
    monkeypatch.setattr(compiler.pathlib, "Path", lambda _: about)
    found = why_bfloat16_is_slow("cpu")
    assert why_bfloat16_is_slow("tpu") is None
    assert (found is None) if reason is None else (found is not None and reason in found)
