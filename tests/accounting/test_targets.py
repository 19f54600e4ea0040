"""How hardware that is not here is named, and what is told where it cannot be compiled for."""

import importlib.util

import pytest

from lsgd_jax.accounting.targets import CHIPS, GIB, devices_of, read_target
from lsgd_jax.errors import InputError


def test_a_target_names_a_kind_of_chip_their_shape_and_how_many_slices_or_nodes() -> None:
    pod, slices, nodes = map(read_target, ("tpu:v5e:16x16", "tpu:v5p:2x2x4*4", "h100:4x8"))
    assert (pod.chip, pod.platform, pod.shape, pod.groups) == (CHIPS["v5e"], "tpu", "16x16", 1)
    assert (slices.chip, slices.shape, slices.groups) == (CHIPS["v5p"], "2x2x4", 4)
    assert (nodes.chip, nodes.platform, nodes.shape, nodes.groups) == (CHIPS["h100"], "gpu", "4x8", 4)
    assert read_target("h200:1x8").chip.memory > 1.7 * CHIPS["h100"].memory


def test_slices_and_nodes_share_a_network_and_a_single_one_has_its_links() -> None:
    pod, slices, nodes = map(read_target, ("tpu:v5e:4x4", "tpu:v5e:4x4*4", "h100:4x8"))
    assert pod.network(4).between == pod.network(4).inside == CHIPS["v5e"].link
    assert slices.network(16).between.bandwidth == 16 * 25e9 / 8  # 200 Gbit/s a host of 8 chips
    assert nodes.network(8).between.bandwidth == 8 * 400e9 / 8
    assert nodes.network(8).inside.bandwidth > nodes.network(8).between.bandwidth
    assert 15 * GIB < CHIPS["v5e"].memory < 16 * GIB


@pytest.mark.parametrize("text", ["v5e:4x4", "tpu:v5e", "tpu:v5e:4", "tpu:v5e:4x4*", "h100:8", "a100:1x8"])
def test_what_is_no_target_is_told_with_what_is(text: str) -> None:
    with pytest.raises(InputError, match=r"--target=.*: use tpu:v5e:4x4, with slices tpu:v5e:4x4\*4, or h100:NODES"):
        read_target(text)


def test_an_unknown_kind_of_tpu_is_told_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match="--target=tpu:v9:2x2: unknown kind of TPU: choose one of v4, v5e, v5p, v6e"):
        read_target("tpu:v9:2x2")


@pytest.mark.parametrize(
    ("text", "module", "extra"), [("tpu:v5e:2x2", "libtpu", "tpu"), ("h100:1x8", "jax_cuda12_plugin", "gpu")]
)
def test_a_compiler_that_is_not_installed_is_told_with_its_extra(text: str, module: str, extra: str) -> None:
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(InputError, match=rf"--target={text} needs its compiler: pip install 'lsgd_jax\[{extra}\]'"):
        devices_of(read_target(text))
