"""The code of the README and of docs/ runs as it stands there, and their figures are those of the files in results/."""

import csv
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from claims import interval
from started_processes import wait_until

from lsgd_jax.compare.evaluations import spread
from lsgd_jax.compare.significance import not_apart, standard_errors
from lsgd_jax.trainer.checkpoints import DIGESTS

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OWN_LOOP, OWN_MODEL, CHOOSING, THEORY = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("own_loop", "own_model", "choosing", "theory")
)


def blocks(page: str) -> list[str]:
    """Its programs in Python."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


@pytest.mark.slow
def test_the_loop_of_ones_own_learns_and_has_the_two_lines_of_the_readme() -> None:
    code = next(block for block in blocks(OWN_LOOP) if "periodic(" in block)
    two = next(block for block in blocks(README) if "periodic(" in block)
    assert [line.partition("  #")[0].split(" = ")[0] for line in two.splitlines()] == ["optimizer", "updates, state"]
    assert "updates, state = optimizer.update(grads, state, params, value=loss)" in code
    assert "updates, state = optimizer.update(grads, state, params, value=loss)" in two

    def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
        return jnp.mean((batch - params) ** 2)

    names = {"loss_fn": loss_fn}
    exec(code, names)
    rng = np.random.default_rng(0)
    batches = rng.normal(3.0, 0.1, size=(8, 130, 4, 2)).astype(np.float32)
    center, losses = names["run"](jnp.zeros(2), batches)
    np.testing.assert_allclose(center, 3.0, atol=0.1)
    assert losses.shape == (8, 130)
    assert float(losses[:, -1].mean()) < 0.1 < float(losses[:, 0].mean())


@pytest.mark.slow
def test_a_loop_of_one_step_at_a_time_goes_where_the_scan_goes() -> None:
    scan, steps = blocks(OWN_LOOP)[:2]

    def loss_fn(params: jax.Array, batch: jax.Array) -> jax.Array:
        return jnp.mean((batch - params) ** 2)

    batches = np.random.default_rng(0).normal(3.0, 0.1, size=(8, 70, 4, 2)).astype(np.float32)
    names: dict[str, Any] = {"loss_fn": loss_fn, "initial": jnp.zeros(2)}
    exec(scan, names)
    center, losses = names["run"](names["initial"], batches)
    names["batches"] = list(batches.swapaxes(0, 1).reshape(70, 32, 2))
    exec(steps, names)
    np.testing.assert_allclose(names["model"], center, rtol=1e-6)
    np.testing.assert_allclose(names["losses"], losses[:, -1], rtol=1e-5)


OWN = [block for block in blocks(README) + blocks(OWN_MODEL) if "Task(init, loss" in block]


def test_an_own_model_on_own_arrays_takes_fifteen_lines() -> None:
    assert len([line for line in OWN[0].splitlines() if line.strip()]) == 15


@pytest.mark.slow
def test_the_own_task_of_the_pages_is_learned(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "not main"}
    exec("\n".join(OWN), names)
    method = names["lsgd"](names["optax"].sgd(0.1, momentum=0.9), local_period=4, global_period=16)
    result = names["Trainer"](names["task"](), method, names["Topology"](2, 4)).fit(960)
    errors = [row["validation_error"] for row in result.metrics]
    assert errors[0] > 0.25
    assert errors[-1] < 0.15


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.processes
def test_the_own_task_in_the_readme_goes_on_after_a_kill_bit_for_bit(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = OWN[0]
    (tmp_path / "mine.py").write_text(code)
    with subprocess.Popen([sys.executable, "mine.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}) as run:
        wait_until(lambda: (tmp_path / "runs/own/checkpoints/192" / DIGESTS).exists())
        run.kill()

    def center_of(code: str) -> Any:
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(code, names)
        return names["params"]

    monkeypatch.chdir(tmp_path)
    resumed = center_of(code.replace("steps=960", "steps=960, resume=True"))
    jax.tree.map(np.testing.assert_array_equal, resumed, center_of(code.replace("runs/own", "runs/whole")))


def test_every_path_in_the_pages_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("*.md")):
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / path).exists(), (page.name, path)


def rows(path: str) -> list[dict[str, str]]:
    with (ROOT / "results" / path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_of_the_theory_in_its_page_are_those_of_its_files() -> None:
    draws = rows("theory/matrix_completion/draws.csv")
    arrivals = {name: [row["converged_at"] for row in draws if (row["rank"], row["method"]) == ("1", name)]
                for name in ("lsgd", "easgd", "local_sgd", "none")}  # fmt: skip
    of, latest = len(arrivals["lsgd"]), max(map(int, arrivals["lsgd"]))
    assert f"below 1e-6 in all of {of} draws, within {latest} iterations" in THEORY
    assert all(arrivals["local_sgd"] + arrivals["none"]), "get there in all"
    through = sum(map(bool, arrivals["easgd"]))
    low, high = interval(through, of)
    assert f"LSGD solves all of {of} draws, elastic\n  averaging {through} of them" in README
    assert f"elastic averaging in {through} (95 %: {low:.2f} to {high:.2f} of all)" in THEORY
    some = [row for row in draws if (row["rank"], row["method"]) == ("10", "easgd")]
    assert f"with rank 10 in {sum(bool(row['converged_at']) for row in some)} of {len(some)}" in THEORY
    strong = [
        row for row in rows("theory/symmetric_landscape/symmetric_landscape.csv") if float(row["strength"]) > 0.03
    ]
    lgd, eagd = ([row for row in strong if row["method"] == name] for name in ("lsgd", "easgd"))
    assert all(row["arrived"] == row["draws"] for row in lgd)
    earliest = min(int(row["earliest"]) for row in eagd if row["earliest"])
    told = (
        f"within {max(int(row['latest']) for row in lgd)} iterations in all of {max(int(row['draws']) for row in lgd)}"
    )
    assert f"{told} draws, with elastic averaging after {earliest} or never" in THEORY
    pairs = [row for row in rows("theory/step_direction/step_direction.csv")
             if float(row["pull"]) <= 2 * math.tan(math.radians(float(row["degrees"]))) ** 2]  # fmt: skip
    assert sum(int(row["neither"]) for row in pairs) == 0
    assert f"in all of {sum(int(row['pairs']) for row in pairs):,} pairs" in THEORY


def test_the_table_of_flatness_is_that_of_its_file() -> None:
    measured: dict[str, list[tuple[float, ...]]] = {}
    for row in rows("paper/flatness.csv"):
        of = tuple(float(row[name]) for name in ("eigenvalue", "trace", "loss"))
        measured.setdefault(row["algorithm"], []).append(of)
    page = (ROOT / "results/comparisons.md").read_text().partition("### Flatness")[2]
    for method, values in measured.items():
        value, trace, loss = (spread(column) for column in zip(*values, strict=True))
        cells = [f"{value.mean:.1f} ± {value.deviation:.1f}", f"{trace.mean:.0f} ± {trace.deviation:.0f}"]
        cells.append(f"{loss.mean:.2f} ± {loss.deviation:.2f}")
        assert re.search(rf"{method}(\*\*)? \| {re.escape(' | '.join(cells))} \|", page), (method, cells)


def test_what_is_said_of_elections_is_what_was_measured() -> None:
    errors: dict[str, list[float]] = {}
    for row in rows("elections/cifar10_errors.csv"):
        errors.setdefault(row["election"], []).append(100 * float(row["test_error"]))
    found = {name: spread(values) for name, values in errors.items()}
    shown = {name: f"{of.mean:.1f} ± {of.deviation:.1f}" for name, of in found.items()}
    table = (ROOT / "results/comparisons.md").read_text().partition("### What it does to the error")[2]
    table = table.partition("\n## ")[0]
    methods = (ROOT / "docs/methods.md").read_text()
    for name, values in errors.items():
        assert f"| {shown[name]} | {', '.join(f'{value:.2f}' for value in values)} |" in table, name
    for name in errors.keys() - {"window_64"}:
        assert f"| {shown[name]} % |" in methods, name
    assert f"({shown['score']} against {shown['random']} % after 10 epochs)" in README
    assert f"held-out samples elect better ({shown['held_out']}), and" in README
    assert f"does best ({shown['mean']};" in README
    assert f"{shown['soft']} in place of {shown['score']} %" in CHOOSING
    table = table.partition("**Text and digits**")[2]
    digits: dict[tuple[str, str], list[float]] = {}
    for row in rows("elections/digits_errors.csv"):
        digits.setdefault((row["election"], row["sampling"]), []).append(100 * float(row["test_error"]))
    text: dict[str, list[float]] = {}
    for row in rows("elections/text_errors.csv"):
        text.setdefault(row["election"], []).append(float(row["test_bits_per_byte"]))
    for name, of_text in text.items():
        bits, (shard, dealt) = spread(of_text), (spread(digits[name, sampling]) for sampling in ("shard", "reshuffle"))
        cells = [f"{bits.mean:.3f} ± {bits.deviation:.3f}"]
        cells += [f"{of.mean:.1f} ± {of.deviation:.1f} %" for of in (shard, dealt)]
        assert f"| {' | '.join(cells)} |" in table, name
    assert "random" in not_apart({name: spread(values) for name, values in text.items()})["score"]
    in_shards = {name: spread(values) for (name, sampling), values in digits.items() if sampling == "shard"}
    assert "none" in not_apart(in_shards)["score"]
    assert "random" not in not_apart(in_shards)["score"]
    same = not_apart(found)
    assert "random" in same["score"]
    assert "random" not in same["held_out"]
    assert "held_out" in same["score"]
    assert same["mean"] == ["soft"]


def test_the_table_of_settings_has_the_errors_of_the_search() -> None:
    shown = {}
    for line in CHOOSING.partition("| method | strength | period |")[2].partition("\n\n")[0].splitlines()[2:]:
        method, strength, period, *errors = (cell.strip(" `") for cell in line.strip("| ").split(" | "))
        shown[method, strength.rpartition(" ")[2].replace("–", ""), period] = [float(error) for error in errors]
    found: dict[tuple[str, ...], dict[float, float]] = {}
    for row in rows("paper/convergence_a_runs.csv"):
        if row["phase"] == "search" and row["method"] != "data_parallel":
            deployed = min(float(row["validation_error"]), float(row["leader_validation_error"]))
            of_setting = found.setdefault((row["method"], row["strength"], row["global_period"]), {})
            of_setting[float(row["learning_rate"])] = round(100 * deployed, 1)
    assert shown == {setting: [errors[rate] for rate in sorted(errors)] for setting, errors in found.items()}

    def gains(worse: str, better: str, methods: str) -> tuple[float, float]:
        """The least and the most that one value of a setting gains over another, all else equal."""
        gained = [
            error - other
            for setting, errors in shown.items()
            if setting[0] in methods and worse in setting
            for error, other in zip(
                errors, shown[tuple(better if part == worse else part for part in setting)], strict=True
            )
        ]
        return round(min(gained), 1), round(max(gained), 1)

    pairs = {"better in all six pairs above, by {} to {} points; EASGD": ("0.1", "0.5", "lsgd")}
    pairs |= {"with β = 0.9 in place of 0.43, by {} to {}.": ("0.43", "0.9", "easgd")}
    pairs |= {"better than 64 in all 15 pairs, by {} to {} points": ("64", "16", "lsgd easgd local_sgd")}
    for text, (worse, better, methods) in pairs.items():
        low, high = gains(worse, better, methods)
        assert low > 0
        assert text.format(low, high) in CHOOSING, (text, low, high)


def test_the_errors_after_24_epochs_are_those_of_all_runs() -> None:
    errors: dict[str, list[float]] = {}
    losses: dict[str, list[float]] = {}
    for stage in "ab":
        for row in rows(f"paper/convergence_{stage}_runs.csv"):
            if row["phase"] == "test":
                errors.setdefault(row["method"], []).append(100 * float(row["test_error"]))
                losses.setdefault(row["method"], []).append(float(row["train_loss"]))
                if row["method"] == "none":
                    errors.setdefault("none, the best worker", []).append(100 * float(row["leader_test_error"]))
    spreads = {method: spread(values) for method, values in errors.items()}
    page = (ROOT / "results" / "comparisons.md").read_text().partition("## CIFAR-10, 24 epochs")[2]
    shown = {}
    for line in page.partition("\n| --- ")[2].partition("\n\n")[0].splitlines()[1:]:
        method, _, _, _, error, each, loss, _ = (cell.strip(" *") for cell in line.strip("|").split("|"))
        shown[method] = (error, each, loss)
    assert shown == {
        method: (
            f"{mean:.1f} ± {deviation:.1f}",
            ", ".join(f"{error:.2f}" for error in errors[method]),
            f"{spread(losses[method]).mean:.2f}" if method in losses else "",
        )
        for method, (mean, deviation, _) in spreads.items()
    }
    paragraph = CHOOSING.partition("**After 24 epochs**")[2].partition("\n\n")[0]
    for method, name in (("diloco", "DiLoCo"), ("local_sgd", "local SGD"), ("dppf", "DPPF"), ("grawa", "MGRAWA"),
                         ("data_parallel", "data parallel has"), ("downpour", "DOWNPOUR")):  # fmt: skip
        assert f"{name} {spreads[method].mean:.1f} ± {spreads[method].deviation:.1f}" in paragraph, method
    assert not_apart(spreads)["lsgd"] == ["easgd"]
    assert all(
        spreads[m].mean < spreads["easgd"].mean for m in spreads if m not in ("lsgd", "easgd") and "none" not in m
    )
    assert {*not_apart(spreads)["sgd"]} == {"data_parallel", "downpour"}
    assert not_apart(spreads)["local_sgd"] == ["dppf"]
    assert not_apart(spreads)["diloco"] == []
    stale_rows = [row for row in rows("paper/convergence_a_stale_runs.csv") if row["phase"] == "test"]
    stale = spread([100 * float(row["test_error"]) for row in stale_rows])
    assert f"({stale.mean:.1f} ± {stale.deviation:.1f} % with 0.1/16, 27.0 ± 0.2 without" in CHOOSING
    assert standard_errors(stale, spreads["lsgd"]) == pytest.approx(0.2, abs=0.05)
    for method in ("lsgd", "easgd", "local_sgd", "diloco", "data_parallel"):
        assert re.search(rf"(?<![\d.]){spreads[method].mean:.1f}(?!\d)", README), method


def test_what_compression_and_overlap_cost_in_the_readme_is_what_was_measured() -> None:
    lsgd = [row for row in rows("error_over_bytes_cifar10_period64/error_over_bytes.csv") if row["method"] == "lsgd"]
    sent = {way: [row for row in lsgd if row["sent_as"] == way] for way in ("10 % in 8 bits", "32 bits")}
    few, full = (spread([100 * float(row["test"]) for row in way]) for way in sent.values())
    told = f"{few.mean:.1f} ± {few.deviation:.1f} against {full.mean:.1f} ± {full.deviation:.1f} %"
    text = " ".join(README.split())  # wherever its lines are broken
    assert told in text
    (fewer,) = {round(float(row["times_fewer"])) for row in sent["10 % in 8 bits"]}
    assert f"{fewer:,} times fewer" in text
    measured = json.loads((ROOT / "results/hiding/hiding.json").read_text())["results"]["runs"]
    ratios = {run["run"]: run["ratio"] for run in measured}
    assert f"{ratios['lsgd'] - ratios['nothing is sent']:.2f} of its 16 local steps" in text
    assert f"{ratios['lsgd']:.2f} of the time" in text
    assert f"`--overlap=16` {ratios['lsgd, late']:.2f}" in text


def test_the_figures_of_cifar_10_where_one_chooses_are_those_of_the_report() -> None:
    tested = [row for row in rows("comparison_cifar10/runs.csv") if row["phase"] == "test"]
    errors: dict[str, list[float]] = {}
    for row in tested:
        errors.setdefault(row["method"], []).append(100 * float(row["deployed_test_error"]))
    means = {method: f"{spread(values).mean + 1e-9:.1f}" for method, values in errors.items()}  # a half is rounded up
    paragraph = CHOOSING.partition("**In a short run.**")[2].partition("\n\n")[0]
    for method, name in (("easgd", "EASGD and DPPF"), ("grawa", "MGRAWA"), ("data_parallel", "data parallel"),
                         ("downpour", "DOWNPOUR"), ("local_sgd", "local SGD"), ("diloco", "DiLoCo")):  # fmt: skip
        assert re.search(rf"{name} \(?{means[method]}", paragraph), method
    assert f"test error was {means['lsgd']} %" in paragraph
    apart = standard_errors(spread(errors["lsgd"]), spread(errors["none"]))
    assert f"no communication at all ({means['none']}, {apart:.1f} standard errors away)" in paragraph
    assert not_apart({name: spread(values) for name, values in errors.items()})["lsgd"] == ["eamsgd", "none"]
