"""The train step compiled for TPUs and GPUs that are not here, where their compilers are."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from lsgd_jax import Topology
from lsgd_jax.accounting.ahead_of_time import compile_for, sent_together, traffic
from lsgd_jax.accounting.compiled import computations
from lsgd_jax.accounting.targets import CUDA_PLUGINS, devices_of, read_target
from lsgd_jax.commands.environment import set_for_compilers
from lsgd_jax.compile_for import compiled_figures, main, problem_of, report
from lsgd_jax.config.config import Config
from lsgd_jax.config.from_config import method_of
from lsgd_jax.engine.compiler import compiler_options
from lsgd_jax.errors import InputError

needs_tpu = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra 'tpu'")
needs_gpu = pytest.mark.skipif(not any(map(importlib.util.find_spec, CUDA_PLUGINS)), reason="needs the extra 'gpu'")
IMAGES: dict[str, Any] = {"model": "cnn3", "batch_size": 8}
# How a call ends there, and how it begins: by the compiler of jax 0.12, and of 0.10.
ON_SPARSE_CORES = ("call-done", "call-update", "call-start")
# A message of 12.8 million words, or of a quarter of them in tiles.
PARAMETERS = r"[su]32\[(1,)?12807168\]|s32\[3127,8,128\]"


def figures(target: str, **given: Any) -> dict[str, Any]:
    set_for_compilers()
    return compiled_figures(read_target(target), given, optimize=False)


def bytes_of(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """By level, in the program and in the ledger."""
    return {level["level"]: (sum(level["kinds"].values()), level["ledger"]) for level in found["levels"]}


@needs_tpu
@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5e:2x4", "tpu:v4:2x2x2", "tpu:v5p:2x2x1"])
@pytest.mark.parametrize(
    "how",
    [{}, {"wire_dtype": "int8"}, {"algorithm": "diloco"}, {"algorithm": "data_parallel"},
     {"compress": 4}, {"compress": 4, "compress_top_k": 0.02}, {"algorithm": "diloco", "compress": 8},
     {"algorithm": "local_sgd", "compress": 4, "compress_top_k": 0.02}],
    ids=str,
)  # fmt: skip
def test_bytes_are_those_of_the_ledger_none_outside_conditionals_and_the_state_is_updated_in_place(
    target: str, how: dict[str, Any]
) -> None:
    found = figures(target, **IMAGES, groups=2, **how)
    assert bytes_of(found)
    for level, (compiled, ledger) in bytes_of(found).items():
        assert compiled == ledger > 0, level
    assert all(level["conditional"] or level["level"] == "gradient" for level in found["levels"])
    assert not found["inside"]
    assert found["updated_in_place"] > 0.95
    assert found["peak"] < 2**26


@needs_tpu
@pytest.mark.slow
def test_slices_speak_over_the_data_center_network_at_the_global_level_alone() -> None:
    found = figures("tpu:v5e:2x2*2", **IMAGES)
    local, everywhere = found["levels"]
    assert (found["groups"], found["workers"]) == (2, 4)
    assert set(local["kinds"]) == {"all-reduce"}
    assert local["kinds"]["all-reduce"] == local["ledger"]
    assert everywhere["kinds"]["send"] == pytest.approx(everywhere["ledger"] / 4, rel=0.1)
    assert any("send over the data-center network" in line for line in report(found))


@needs_tpu
@pytest.mark.slow
def test_a_worker_of_several_chips_sends_its_parts_and_gathers_layer_by_layer(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(32, 127)) * 400)
    sizes: dict[str, Any] = {"model_width": 128, "model_layers": 4, "sequence_length": 64, "batch_size": 8}
    how: dict[str, Any] = {"compute_dtype": "bfloat16", "remat": "full", "sampling": "iid", **sizes}
    text = {"text_file": str(tmp_path / "text")}
    found = figures("tpu:v5e:2x4", **how, **text, groups=2, workers=2, worker_axes="fsdp=2")
    whole = figures("tpu:v5e:2x2", **how, **text, groups=2, workers=2)
    for level, (compiled, ledger) in bytes_of(found).items():
        assert compiled == ledger
        assert ledger == pytest.approx(bytes_of(whole)[level][1] / 2, rel=0.1)
    gathers = {each["loops"]: each["bytes"] for each in found["inside"] if each["kind"] == "all-gather"}
    block = 12 * 128**2 * 2  # bytes in bfloat16
    assert gathers == {1: pytest.approx(4 * 2 * block / 2, rel=0.3)}, "half of 4 blocks, forward and for the gradient"
    assert found["arguments"] < 0.6 * whole["arguments"]


@needs_tpu
@pytest.mark.slow
def test_a_cpu_host_traces_the_convolutions_of_the_target() -> None:
    """By Winograd's filtering, as on CPU, it would be products of matrices."""
    set_for_compilers()
    topology = Topology(2, 4, devices_of(read_target("tpu:v5e:2x4")))
    config = Config("unused", **IMAGES, groups=2, workers=4)
    jax.config.update("jax_enable_compilation_cache", False)
    problem, topology = problem_of(config, topology)
    found = compile_for(problem, method_of(config, topology), topology)
    assert found.text.count(" convolution(") >= 8, "two layers, with two gradients but for the first, and products"
    assert sent_together(found.sent["local"])


@needs_tpu
@pytest.mark.slow
def test_a_model_that_does_not_fit_is_told_with_the_compilers_figure(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(bytes(range(32, 127)) * 400)
    sizes: dict[str, Any] = {"model_width": 4096, "model_layers": 24, "sequence_length": 64, "batch_size": 8}
    with pytest.raises(
        InputError, match=r"it does not fit: [\d.]+G of 1[56].[\d.]+G of a device's memory: split a worker"
    ):
        figures("tpu:v5e:2x2", text_file=str(tmp_path / "text"), **sizes, sampling="iid")


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"algorithm": "data_parallel"}], ids=str)
def test_on_gpus_too_bytes_are_those_of_the_ledger_and_the_state_is_updated_in_place(how: dict[str, Any]) -> None:
    found = figures("h100:2x4", **IMAGES, **how)
    assert (found["groups"], found["workers"]) == (2, 4), "a node is a group"
    for level, (compiled, ledger) in bytes_of(found).items():
        assert compiled == ledger > 0, level
    assert all(level["conditional"] or level["level"] == "gradient" for level in found["levels"])
    assert found["updated_in_place"] > 0.95
    assert found["peak"] < 2**26


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, 20])
def test_on_a_gpu_convolutions_are_those_of_cudnn_for_one_worker_after_the_other(workers: int) -> None:
    set_for_compilers()
    topology = Topology(1, workers, devices_of(read_target("h100:1x1")))
    config = Config("unused", **IMAGES, groups=1, workers=workers)
    jax.config.update("jax_enable_compilation_cache", False)
    problem, topology = problem_of(config, topology)
    text = compile_for(problem, method_of(config, topology), topology).text
    assert "_group_count=" not in text
    in_program = 1 if workers > 16 else workers  # more are looped over
    assert text.count('"__cudnn$convBackwardFilter"') == 2 * in_program
    assert text.count('"__cudnn$convBackwardInput"') == in_program


@needs_tpu
@pytest.mark.slow
@pytest.mark.usefixtures("fresh_flags")
def test_the_command_prints_and_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    assert main(["compile_for.py", "--target=tpu:v5e:2x2", "--model=mlp", f"--json={file}"]) == 0
    found = json.loads(file.read_text())
    assert (found["devices"], found["groups"], found["workers"]) == (4, 1, 4)
    assert capsys.readouterr().out.splitlines() == report(found)


@pytest.mark.usefixtures("fresh_flags")
def test_without_a_target_one_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile_for.py"]) == 2
    assert capsys.readouterr().err.startswith("compile_for.py: error: --target is missing: name the hardware")


def overlapped_program(target: str, folder: Path, groups: int = 1) -> tuple[str, list[dict[str, Any]]]:
    """The text of one in which communications begin, of 13 million parameters, and the figures of its levels."""
    set_for_compilers()
    jax.config.update("jax_enable_compilation_cache", False)
    chosen = read_target(target)
    devices = devices_of(chosen)
    topology = Topology(groups, len(devices) // groups, devices)
    (folder / "text").write_bytes(bytes(range(32, 127)) * 400)
    sizes: dict[str, Any] = {"model_width": 512, "model_layers": 4, "batch_size": 32, "optimizer": "adamw"}
    text = {"text_file": str(folder / "text"), "compute_dtype": "bfloat16", "sampling": "iid"}
    shape = {"groups": groups, "workers": topology.workers}
    config = Config("unused", **sizes, **text, **shape, local_period=4, global_period=4, overlap=4)
    problem, topology = problem_of(config, topology)
    method = method_of(config, topology)
    options = compiler_options("bfloat16", topology, overlapped=True)
    jax.config.update("jax_optimization_level", "UNKNOWN")
    found = compile_for(problem, method, topology, options)
    levels = traffic(found, problem, method, topology, chosen.network(topology.workers))["levels"]
    return found.text, levels


def straddle_the_steps(text: str, ends: str, *begins: str) -> list[str]:
    """What is under way while local steps are taken: instructions that begin it before their loop, and end it after."""
    entry, instructions = computations(text)
    lines = instructions[entry]
    steps = next(i for i, line in enumerate(lines) if " while(" in line)
    after = " ".join(line for line in lines[steps:] if f" {ends}(" in line)
    begun = rf" ({'|'.join(begins)})\("
    names = {line: re.findall(r"%([\w.\-]+) =", line)[0] for line in lines[:steps] if re.search(begun, line)}
    return [line for line, name in names.items() if f"%{name})" in after or f"%{name}," in after]


@needs_gpu
@pytest.mark.slow
def test_on_gpus_an_overlapped_communication_is_under_way_while_local_steps_are_taken(tmp_path: Path) -> None:
    text, (level,) = overlapped_program("h100:1x8", tmp_path)
    assert level["asynchronous"]
    assert sum(level["kinds"].values()) == level["ledger"]
    assert re.search(PARAMETERS, " ".join(straddle_the_steps(text, "all-reduce-done", "all-reduce-start")))


@needs_tpu
@pytest.mark.slow
def test_on_a_slice_of_v5e_an_overlapped_communication_is_woven_into_the_products_of_local_steps(
    tmp_path: Path,
) -> None:
    text, (level,) = overlapped_program("tpu:v5e:2x4", tmp_path)
    assert level["asynchronous"]
    assert sum(level["kinds"].values()) == level["ledger"], "though its text is repeated"
    _, instructions = computations(text)
    woven = [lines for name, lines in instructions.items() if name.startswith("async_collective_fusion")]
    assert any(" convolution(" in line for lines in woven for line in lines)


@needs_tpu
@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v5p:2x2x2", "tpu:v6e:2x4"])
def test_sparse_cores_carry_an_overlapped_communication_while_local_steps_are_taken(
    target: str, tmp_path: Path
) -> None:
    text, (level,) = overlapped_program(target, tmp_path)
    assert level["asynchronous"]
    assert sum(level["kinds"].values()) == level["ledger"]
    assert re.search(PARAMETERS, " ".join(straddle_the_steps(text, *ON_SPARSE_CORES)))


@needs_tpu
@pytest.mark.slow
@pytest.mark.parametrize(("target", "inside"), [("tpu:v5e:2x2*2", False), ("tpu:v5p:2x2x1*2", True)])
def test_what_slices_send_to_each_other_is_under_way_while_local_steps_are_taken(
    target: str, inside: bool, tmp_path: Path
) -> None:
    text, _ = overlapped_program(target, tmp_path, groups=2)
    between = straddle_the_steps(text, "send-done", "send")
    assert re.search(PARAMETERS, " ".join(between)), "a quarter of the model for each of 4 chips"
    assert re.search(PARAMETERS, " ".join(straddle_the_steps(text, "recv-done", "recv")))
    sums = straddle_the_steps(text, *ON_SPARSE_CORES)
    assert bool(re.search(PARAMETERS, " ".join(sums))) == inside, "the leaders of groups, whose slices are their own"


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_flags")
@pytest.mark.skipif(not any(map(importlib.util.find_spec, ("libtpu", *CUDA_PLUGINS))),
                    reason="needs a compiler")  # fmt: skip
def test_a_compiler_that_breaks_down_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = "tpu:v5e:2x2" if importlib.util.find_spec("libtpu") else "h100:1x1"
    (tmp_path / "own.py").write_text("""
import os

def task():
    os.write(2, b"F1 fusion.cc:1] Check failed: 1 == 2\\n*** stack ***\\n")
    os.abort()
""")
    assert main(["compile_for.py", f"--target={target}", f"--task={tmp_path / 'own.py'}:task"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"compile_for.py: error: --target={target}: its compiler broke down: F1 fusion.cc:1] Check")
    assert "try other hardware" in line


OWN = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from lsgd_jax import Task, from_arrays

def task():
    data = {"x": np.ones((64, 64), np.float32)}
    loss = lambda params, state, batch, key: ((batch["x"] @ params["w"]).mean(), state)
    init = lambda key: ({"w": jax.random.normal(key, (64, 128))}, {})
    return Task(init, loss, train=from_arrays(data, 8, sampling="iid"), partition=[("w", P("fsdp", None))])
"""


def test_a_task_of_ones_own_is_split_as_it_says_and_gathered_over_the_axes_of_the_target(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    config = Config("unused", task=f"{tmp_path / 'mine.py'}:task", groups=1, workers=2)
    problem, topology = problem_of(config, Topology(1, 2, jax.devices()[:4], worker_axes={"fsdp": 2}))
    shapes, _ = jax.eval_shape(problem.init, jax.random.key(0))
    assert topology.of_model(shapes)["w"].spec == PartitionSpec("fsdp", None)

    def of_device(params: Any) -> Any:
        return problem.loss(params, {}, {"x": jnp.ones((8, 64))}, jax.random.key(0))[0]

    mapped = topology.over_devices(of_device, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    assert "sharding_constraint" in str(jax.make_jaxpr(mapped)(shapes))
