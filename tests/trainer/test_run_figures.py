"""The scripts that draw finished runs: whose error, who led, and the loss between the leaders."""

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from made_up_runs import leave

import figures  # isort: skip
import landscape  # isort: skip
from lsgd_jax.compare.palette import line_of  # isort: skip

from lsgd_jax.config.config import Config
from lsgd_jax.config.reload import reload_run
from lsgd_jax.config.train import train
from lsgd_jax.files.files import write_json


def make_up(
    folder: Path, method: str, seed: int, errors: list[float | None], metric: str = "error", **settings: Any
) -> None:
    """A finished run with these figures of the center, 10 steps and 2 + seed seconds apart."""
    summary = leave(Config(str(folder), algorithm=method, seed=seed, groups=1, workers=3, **settings), metric)
    write_json(folder / "summary.json", summary | {"metric": metric})
    last = json.loads((folder / "metrics.jsonl").read_text()) | {f"leader_test_{metric}": 0.25}
    rows = [
        last | {"step": 10 * n, "seconds": (2.0 + seed) * n, f"test_{metric}": error}
        for n, error in enumerate(errors, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elections = "".join(f"{10 * n},global,,{leader},0.5\n" for n, leader in enumerate((0, 2, 2, 1), start=1))
    (folder / "leaders.csv").write_text("step,level,group,leader,score\n" + (elections if method == "lsgd" else ""))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_up(tmp_path / "lsgd/seed=1", "lsgd", 1, [0.8, 0.4])
    make_up(tmp_path / "lsgd/seed=2", "lsgd", 2, [0.6, None])
    make_up(tmp_path / "easgd/weak", "easgd", 1, [0.9, 0.5], beta=0.43)
    make_up(tmp_path / "easgd/strong", "easgd", 1, [0.9, 0.3])
    make_up(tmp_path / "search", "sgd", 0, [0.5])
    return tmp_path


def test_seeds_make_a_line_and_settings_several(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    importlib.reload(figures)  # flags keep what they were given
    assert figures.main(["figures.py", f"--runs={runs}", f"--workdir={tmp_path}/out"]) == 0
    with (tmp_path / "out/error.csv").open() as file:
        points = {(row["line"], int(row["step"])): row for row in csv.DictReader(file)}
    lines = ["lsgd", "easgd, beta 0.43", "easgd, beta 0.9"]
    assert sorted(points) == sorted((line, step) for line in lines for step in (10, 20))
    first, last = points["lsgd", 10], points["lsgd", 20]
    assert [float(first[name]) for name in ("seconds", "mean", "lowest", "highest")] == pytest.approx(
        [3.5, 0.7, 0.6, 0.8]
    )
    assert float(last["mean"]) == pytest.approx(0.7), "a center that is not finite is wrong everywhere"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["error.csv", "error.png", "leaders.png"]
    assert "leaders.png" in capsys.readouterr().out
    assert figures.main(["figures.py", f"--runs={runs}", f"--workdir={tmp_path}/out", "--model=leader"]) == 0
    with (tmp_path / "out/error.csv").open() as file:
        assert {float(row["mean"]) for row in csv.DictReader(file)} == {0.25}


def test_runs_with_workers_of_given_speeds_are_drawn_over_simulated_time(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = importlib.reload(figures)
    paces = {"slow": ("0.25,0.25,0.25", 40.0), "uneven": ("1,1,0.25", 15.0)}
    for name, (speeds, seconds) in paces.items():
        make_up(tmp_path / "paces" / name, "lsgd", 1, [0.8, 0.4], worker_speeds=speeds)
        path = tmp_path / "paces" / name / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = [json.dumps(row | {"simulated_seconds": seconds * row["step"] / 10}) + "\n" for row in rows]
        path.write_text("".join(told))
    assert script.main(["figures.py", f"--runs={tmp_path}/paces", f"--workdir={tmp_path}/out"]) == 0
    with (tmp_path / "out/error.csv").open() as file:
        found = {(row["line"], float(row["seconds"])) for row in csv.DictReader(file)}
    assert found == {(f"lsgd, worker_speeds {speeds}", n * s) for speeds, s in paces.values() for n in (1, 2)}
    capsys.readouterr()
    assert script.main(["figures.py", f"--runs={tmp_path}/paces,{runs}/easgd", f"--workdir={tmp_path}/out"]) == 2
    assert "--worker_speeds, whose time is simulated, and others: draw them apart" in capsys.readouterr().err
    lines = [line_of("lsgd", number) for number in range(4)]
    assert len({line["linestyle"] for line in lines}) == 4


def test_runs_on_text_are_drawn_by_bits_per_byte(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    importlib.reload(figures)
    make_up(tmp_path / "text/1", "none", 1, [4.0, 2.5], "bits_per_byte")
    make_up(tmp_path / "text/2", "none", 2, [None, 3.0], "bits_per_byte")
    assert figures.main(["figures.py", f"--runs={tmp_path}/text", f"--workdir={tmp_path}/out"]) == 0
    with (tmp_path / "out/bits_per_byte.csv").open() as file:
        assert [float(row["mean"]) for row in csv.DictReader(file)] == [6.0, 2.75], "one that is not finite costs 8"
    assert (tmp_path / "out/bits_per_byte.png").exists()
    assert "2 seeds:  2.750 bits per byte after" in capsys.readouterr().out
    make_up(tmp_path / "images", "none", 1, [0.5, 0.4])
    assert figures.main(["figures.py", f"--runs={tmp_path}", f"--workdir={tmp_path}/out"]) == 2
    assert "judged by bits_per_byte and by error: draw them apart" in capsys.readouterr().err


def test_a_method_of_ones_own_has_its_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    importlib.reload(figures)
    make_up(tmp_path / "own", "mine.py:pulls", 1, [0.7, 0.2])
    assert figures.main(["figures.py", f"--runs={runs},{tmp_path}/own", f"--workdir={tmp_path}/out"]) == 0
    assert "mine.py:pulls" in capsys.readouterr().out.splitlines()[-3], "after those of the palette"
    with (tmp_path / "out/error.csv").open() as file:
        assert [row["mean"] for row in csv.DictReader(file) if row["line"] == "mine.py:pulls"] == ["0.7", "0.2"]


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        (figures, [], "--runs is empty"),
        (figures, ["--runs=/nowhere"], "no finished run"),
        (figures, ["--runs=x", "--model=best"], "--model=best"),
        (landscape, [], "--run is missing"),
        (landscape, ["--run=/nowhere"], "/nowhere"),
        (landscape, ["--run=x", "--points=2"], "--points=2"),
        (landscape, ["--run=x", "--batches=0"], "--batches=0"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    script: Any, arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = importlib.reload(script)  # flags keep what they were given
    name, other = f"{script.__name__}.py", "--split=test" if script is figures else "--worker=0"
    assert script.main([name, f"--workdir={tmp_path}/out", other, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{name}: error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.thorough
def test_the_plane_goes_through_the_worker_and_both_leaders(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    settings: dict[str, Any] = {"model": "mlp", "workers": 2, "batch_size": 8, "steps": 6, "local_period": 2}
    config = Config(workdir=str(workdir), **settings, global_period=4, init="different")
    train(config, figures=False)
    found = landscape.survey(workdir, worker=None, points=5, batches=1, data_dir=None)
    assert found.losses.shape == (5, 5)
    assert np.isfinite(found.losses).all()
    assert found.step == 6
    leader, local, worker = found.places
    ranks = [int("".join(c for c in place.name if c.isdigit())) for place in found.places]
    assert [place.name.split(" (")[0][:12] for place in found.places] == [
        "global leade",
        "local leader",
        f"worker {ranks[2]}",
    ]
    assert ranks[1] // 2 == ranks[2] // 2 != ranks[0] // 2
    # Distances in the plane are those of the parameters.
    state = reload_run(workdir).state
    vectors = [ravel_pytree(jax.tree.map(lambda x, r=r: x[divmod(r, 2)], state.params))[0] for r in ranks]
    for (a, u), (b, v) in [((leader, vectors[0]), (local, vectors[1])), ((local, vectors[1]), (worker, vectors[2]))]:
        np.testing.assert_allclose(np.hypot(a.x - b.x, a.y - b.y), np.linalg.norm(u - v), rtol=1e-4)
    assert (leader.x, leader.y) == (0, 0)
