"""What the compiler is told, by dtype and by how lanes are computed."""

import jax
import pytest

from lsgd_jax.engine.compiler import compiler_options
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
