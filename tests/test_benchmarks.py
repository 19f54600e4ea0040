"""What the benchmarks make of times, and what they train; nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import bench_pieces
import gpu_lanes
import gpu_predictions
import instruction_set
import jax
import jax.numpy as jnp
import live_faults
import peer_ratios
import peer_torch
import peer_workload
import pytest
from measure import Timing, in_turn
from text_workload import text_train_step
from workload import Runner


def rates(**medians: float) -> dict[str, peer_ratios.Rate]:
    return {name.replace("_", " "): peer_ratios.Rate(x, x, x) for name, x in medians.items()}


def test_each_turn_runs_every_alternative_once_in_an_order_of_its_own() -> None:
    ran: list[str] = []
    timings = in_turn({name: lambda name=name: ran.append(name) for name in "abcde"}, repeats=5)
    turns = ["".join(ran[i : i + 5]) for i in range(0, 30, 5)]
    assert list(timings) == list("abcde")
    assert {"".join(sorted(turn)) for turn in turns} == {"abcde"}
    assert len(set(turns)) > 3


def test_a_rate_is_slowest_where_the_time_is_longest() -> None:
    assert peer_ratios.rate(12, Timing(median=3.0, low=2.0, high=4.0)) == (4, 3, 6)


def test_ratios_are_to_pytorchs_best_of_the_same_dtype_and_in_float32() -> None:
    measured = {
        **rates(lsgd_float32=6, lsgd_bfloat16=8, torch_float32_a=3, torch_float32_b=4, torch_bfloat16_a=16),
        "EXO Gym diloco float32": peer_ratios.Rate(100, 100, 100),
    }
    rows = {row["what"]: row for row in peer_ratios.rows(measured, "tokens")}
    assert rows["lsgd float32"]["of_best_torch"] == rows["lsgd float32"]["of_best_torch_float32"] == 1.5
    assert rows["lsgd bfloat16"]["of_best_torch"] == 0.5
    assert rows["lsgd bfloat16"]["of_best_torch_float32"] == 2
    assert rows["torch float32 a"]["of_best_torch"] == 0.75
    assert peer_ratios.of([*rows.values()], "tokens", "lsgd float32", "EXO Gym diloco float32") == 0.06


def test_without_pytorch_there_are_no_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    rows = peer_ratios.rows(rates(lsgd_float32=6), "images")
    assert rows[0]["of_best_torch"] is None
    peer_ratios.show(rows, "cnn7", "images")
    assert capsys.readouterr().out.splitlines()[1].split() == ["lsgd", "float32", "6", "6", "6"]


def test_each_model_and_set_of_instructions_has_its_file() -> None:
    names = {peer_torch.default_output(m, isa).name for m in peer_workload.MODELS for isa in instruction_set.ISAS}
    assert len(names) == 6
    assert peer_torch.default_output("cnn7", "native").name == "peer_torch.json"
    assert peer_torch.default_output("lstm", "avx2").name == "peer_torch_lstm_avx2.json"


@pytest.mark.skipif(instruction_set.why_not("avx2") is not None, reason=str(instruction_set.why_not("avx2")))
def test_newer_instructions_are_hidden_from_a_process_and_from_those_that_it_starts() -> None:
    found = "from numpy._core._multiarray_umath import __cpu_features__ as has; print(has['AVX2'], has['AVX512F'])"
    started = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {found!r}], check=True)"
    program = f"import instruction_set; instruction_set.keep_to('avx2'); {started}"
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=instruction_set.SOURCE.parent, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]


def test_a_limit_of_instructions_keeps_other_libraries_and_comes_once() -> None:
    once = instruction_set.environment_of("avx2", {"LD_PRELOAD": "/lib/other.so", "HOME": "x"})
    assert once["LD_PRELOAD"] == f"{instruction_set.BUILT} /lib/other.so"
    assert instruction_set.environment_of("avx2", once) == once
    assert instruction_set.environment_of("native", once) == once


def test_the_transformer_has_as_many_parameters_on_both_sides() -> None:
    peer_workload.check_parameters("transformer", 3_257_856)
    with pytest.raises(RuntimeError, match="3,257,855 parameters on the other side, not 3,257,856"):
        peer_workload.check_parameters("transformer", 3_257_855)


@pytest.mark.parametrize("model", peer_workload.MODELS)
def test_the_networks_of_pytorch_have_the_sizes_of_ours(model: str) -> None:
    pytest.importorskip("torch")
    from torch_nets import parameter_count
    from torch_workers import ImageWorker, TextWorker

    workload = json.loads(peer_workload.description(model, 4, 16, ["float32"]))
    worker = ImageWorker(2, "NHWC", "float32") if model == "cnn7" else TextWorker(workload, "eager", "float32")
    peer_workload.check_parameters(model, parameter_count(worker.net))
    worker.step()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("method", ["lsgd", "diloco"])
def test_the_workload_of_text_trains(method: str) -> None:
    runner = Runner(text_train_step("lstm", 2, method=method, period=2, length=4, size=1000))
    runner(2)
    assert runner.state.step == 2
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(runner.state.params))


def test_the_table_is_of_now_beside_the_last_one(tmp_path: Path) -> None:
    assert bench.last_figures(tmp_path / "none.json") == {}
    (tmp_path / "last.json").write_text(json.dumps({"results": {"figures": {"a": 2.0, "gone": 1.0, "zero": 0.0}}}))
    lines = bench.lines({"a": 3.0, "new": 4.0, "zero": 5.0}, bench.last_figures(tmp_path / "last.json"))
    assert lines == [("a", "3.00", "2.00", "1.50"), ("new", "4.00", "", ""), ("zero", "5.00", "0.00", "")]


def test_figures_are_those_of_ours_with_and_without_pytorch() -> None:
    measured = rates(lsgd_jax_float32=6, torch_float32_a=3)
    measured["lsgd_jax float32"] = measured.pop("lsgd jax float32")
    results = {"rows": peer_ratios.rows(measured, "images"), "compile_seconds": {"lsgd_jax float32": 5.0}}
    compiled = {"cnn7 float32, compile [s]": 5.0}
    assert bench_pieces.of_peer("cnn7", results) == {"cnn7 float32, speed over PyTorch's best": 2.0, **compiled}
    del measured["torch float32 a"]
    alone = {**results, "rows": peer_ratios.rows(measured, "images")}
    assert bench_pieces.of_peer("cnn7", alone) == compiled


def test_more_workers_are_told_beside_four() -> None:
    rows = [{"workers": n, "images_per_second": {"median": x}} for n, x in ((1, 5.0), (4, 10.0), (64, 9.0))]
    assert bench_pieces.of_scaling({"over_workers": rows}) == {"cnn7, images/s of 64 workers over those of 4": 0.9}


def test_each_piece_is_a_script_that_is_there() -> None:
    assert all((bench.HERE / piece.script).exists() for piece in bench_pieces.PIECES)
    assert len({piece.name for piece in bench_pieces.PIECES}) == len(bench_pieces.PIECES)


KERNELS = """
%one (arg: f32[8]) -> f32[8] {
  %sum = (f32[8], u8[0]) custom-call(%a), window={size=24x24}, feature_group_count=4, custom_call_target="@Forward"
  ROOT %part = f32[8] get-tuple-element(%sum), index=0
}

%step (arg: f32[8]) -> f32[8] {
  %own = (f32[8], u8[0]) custom-call(%a), window={size=5x5 pad=2_2x2_2}, custom_call_target="@BackwardFilter"
  %all = f32[8] while(%own), condition=%until, body=%one, backend_config={"known_trip_count":{"n":"16"}}
  ROOT %add = f32[8]{0} fusion(%all), kind=kLoop, calls=%inside
}

%inside (arg: f32[8]) -> f32[8] {
  ROOT %plus = f32[8] add(%arg, %arg)
}

%until (arg: f32[8]) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %before = f32[8] fusion(%p), kind=kLoop, calls=%inside
  ROOT %steps = f32[8] while(%before), condition=%until, body=%step
}
""".replace("@", "__cudnn$conv")


def test_kernels_of_a_local_step_are_those_of_its_loops_and_convolutions_are_told_by_kind_window_and_groups() -> None:
    kernels, convolutions = gpu_lanes.launched(KERNELS)
    assert kernels == 16 + 1 + 1
    assert convolutions == {"convForward 24² in 4 groups": 16, "convBackwardFilter 5²": 1}


def test_a_prediction_stands_beside_what_was_measured_if_anything_was() -> None:
    predicted = {"flops": 2e9, "at_peak_seconds": 0.5e-3, "peak": 2**30, "compile_seconds": 3.0}
    alone = gpu_predictions.columns("some", predicted)
    assert alone == ("some", "2.0", "0.50", "–", "–", "1.00", "–", "3.0", "–")
    measured = {"step_seconds": 2e-3, "peak": 3 * 2**29, "compile_seconds": 4.0}
    assert gpu_predictions.columns("some", predicted, measured)[3:] == ("2.00", "0.25", "1.00", "1.50", "3.0", "4.0")
    assert len(alone) == len(gpu_predictions.COLUMNS)


def test_recoveries_are_counted_from_a_kill_to_the_next_steps_of_those_who_are_left_and_of_all() -> None:
    said = [
        *((1.0, "step 4/90, fast\n"), (10.2, "launch: process 1 was killed\n"), (11.0, "lost: process 1: going on\n")),
        *((13.0, "step 8/90, slow\n"), (15.0, "[1] taken in: process 1: going on\n"), (18.0, "step 12/90, fast\n")),
        *((21.0, "resuming run at step 12\n"), (24.0, "step 16/90, fast\n")),
    ]
    assert live_faults.recoveries([10.0, 20.0], said) == ([3.0, 4.0], [8.0, 4.0])
    assert live_faults.recoveries([], said) == ([], [])


def test_steps_count_of_as_many_workers_as_there_were(tmp_path: Path) -> None:
    assert live_faults.useful(tmp_path, 100) == 400
    lines = ["generation,step,groups,workers,processes,lost,taken_in", "1,0,2,2,0 1 2 3,,", "2,40,1,3,0 1 2,3,"]
    (tmp_path / "generations.csv").write_text("\n".join([*lines, "3,60,2,2,0 1 2 3,,3"]))
    assert live_faults.useful(tmp_path, 100) == 4 * 40 + 3 * 20 + 4 * 40
