"""The page of runs: its numbers are those of their files, and a browser draws it without a complaint."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_up_runs import leave
from started_processes import wait_until
from tanh_task import loss, wrong

from lsgd_jax import Task, Topology, Trainer, from_arrays, local_sgd, train
from lsgd_jax.config.config import Config
from lsgd_jax.errors import InputError
from lsgd_jax.report.command import main
from lsgd_jax.report.live import kept_fresh
from lsgd_jax.report.page import page
from lsgd_jax.report.runs import read_runs

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
# A browser that asks nobody for anything.
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def run(folder: Path, **settings: Any) -> Path:
    """Leaves a run with three evaluations, five elections, and a worker less in the end."""
    leave(Config(str(folder), steps=30, **settings), sent=3_000_000)
    (last,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [
        last | {"step": step, "seconds": step / 7, "bytes_communicated": step * 100_000, "test_error": 9 / step}
        for step in (10, 20, 30)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elections = [(6, "local", 0, 1), (6, "local", 1, 2), (12, "global", "", 2), (24, "global", "", 0)]
    table = "".join(f"{step},{level},{group},{leader},0.25\n" for step, level, group, leader in elections)
    (folder / "leaders.csv").write_text(f"step,level,group,leader,score\n{table}")
    return folder


def drawn(text: str) -> list[list[dict[str, Any]]]:
    """What Plotly is given, of each figure."""
    decoder, found = json.JSONDecoder(), []
    for start in re.finditer(r'Plotly\.newPlot\(\s*"[\w-]+",\s*', text):
        found.append(decoder.raw_decode(text, start.end())[0])
    return found


def cells(text: str, head: str) -> list[list[str]]:
    """The rows of the table under a heading."""
    table = text.partition(f"<h2>{head}</h2>")[2].partition("<h2>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_the_numbers_are_those_of_the_files(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    error, elections, sent = drawn(page(read_runs([folder])))
    curves = {trace["name"]: trace for trace in error}
    for name, column in (("center, test", "test_error"), ("leader, validation", "leader_validation_error")):
        assert curves[name]["x"] == [row["step"] for row in rows]
        assert curves[name]["y"] == pytest.approx([100 * row[column] for row in rows])
    assert curves["each worker, test"]["y"] == [30.0, 40.0]
    local, often, together, how_often = elections
    assert (local["x"], local["y"], often["x"]) == ([6, 6], [1, 2], [0, 1, 1])
    assert (together["x"], together["y"], how_often["x"]) == ([12, 24], [2, 0], [1, 0, 1])
    assert [trace["x"] for trace in sent] == [[3.0]]


def test_curves_can_be_seen_over_seconds_and_bytes(tmp_path: Path) -> None:
    text = page(read_runs([run(tmp_path / "one")]))
    menus, _ = json.JSONDecoder().raw_decode(text.partition('"updatemenus":')[2])
    over = [button["args"][0]["x"][0] for button in menus[0]["buttons"]]
    assert over == [[10, 20, 30], [10 / 7, 20 / 7, 30 / 7], [1.0, 2.0, 3.0]]


def test_bytes_are_told_by_level_where_a_run_tells_them(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    summary = json.loads((folder / "summary.json").read_text()) | {"bytes_by_level": {"local": 10**6, "global": 10**6}}
    (folder / "summary.json").write_text(json.dumps(summary))
    sent = drawn(page(read_runs([folder])))[-1]
    assert {trace["name"]: trace["x"] for trace in sent} == {"local": [1.0], "global": [1.0], "others": [1.0]}


def test_settings_in_which_runs_differ_come_first_and_are_marked(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", learning_rate=0.1), run(tmp_path / "b", learning_rate=0.2)
    text = page(read_runs([first, second]))
    head, row, *others = cells(text, "Settings")
    assert (head, row) == (["", "a", "b"], ["learning_rate", "0.1", "0.2"])
    assert all(left == right for _, left, right in others)
    assert text.count("<tr class=differs>") == 1
    assert [each[0] for each in cells(text, "Runs")[1:]] == ["a", "b"]


def test_processes_that_were_lost_and_came_are_told(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    rows = ["generation,step,groups,workers,processes,lost,taken_in", "1,0,2,2,0 1 2 3,,"]
    rows += ["2,12,1,2,0 1,2 3,", "3,20,1,3,0 1 3,,3", ""]
    (folder / "generations.csv").write_text("\n".join(rows))
    assert [row[1:] for row in cells(page(read_runs([folder])), "What happened")[1:]] == [
        ["12", "processes 2, 3 lost: 1 × 2 workers"],
        ["20", "process 3 taken in: 1 × 3 workers"],
    ]


def test_a_run_that_is_not_finished_has_a_page_too(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    (folder / "summary.json").unlink()
    row = cells(page(read_runs([folder]), refresh=5), "Runs")[1]
    assert row[2:6] == ["30", "of 30", "30.00 %", "40.00 %"]


def test_what_a_run_has_written_down_happened(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    (folder / "incidents.csv").write_text("step,what\n20,worker 1 starts again\n20,resumed from a checkpoint\n")
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().replace("0.1,", "null,", 1))
    assert [row[1:] for row in cells(page(read_runs([folder])), "What happened")[1:]] == [
        ["10", "the training loss is not finite"],
        ["20", "worker 1 starts again"],
        ["20", "resumed from a checkpoint"],
    ]


def test_the_score_of_each_worker_is_a_line(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    table = "".join(f"{step},{worker},{score}\n" for step in (10, 20) for worker, score in ((0, 0.5), (1, "nan")))
    (folder / "workers.csv").write_text(f"step,worker,score\n{table}")
    of_workers = drawn(page(read_runs([folder])))[1]
    assert [(trace["name"], trace["x"], trace["y"]) for trace in of_workers] == [
        ("worker 0", [10, 20], [0.5, 0.5]),
        ("worker 1", [10, 20], [None, None]),
    ]


def test_a_figure_that_has_diverged_is_short(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    leave_loss(folder, 4.128e29)
    assert cells(page(read_runs([folder])), "Runs")[1][4] == "4.13e+29"


def leave_loss(folder: Path, loss: float) -> None:
    """Makes a run of one that is judged by its loss."""
    row = {"step": 30, "seconds": 1.0, "bytes_communicated": 8, "train_loss": 0.1, "leader": 0}
    row |= dict.fromkeys(("validation_loss", "leader_validation_loss"), loss)
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "summary.json").unlink()


def test_a_page_is_made_anew_while_a_run_goes_on_and_its_last_one_stays(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    summary, file = (folder / "summary.json").read_text(), folder / "report.html"
    (folder / "summary.json").unlink()
    with kept_fresh(folder, every=0.05):
        wait_until(lambda: file.exists() and 'http-equiv="refresh" content="0.05"' in file.read_text())
        (folder / "summary.json").write_text(summary)
    assert 'http-equiv="refresh"' not in file.read_text()
    assert cells(file.read_text(), "Runs")[1][3] == "finished"


def test_the_page_of_another_run_is_left_alone_by_one_that_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    with pytest.raises(InputError, match="already used"), kept_fresh(folder):
        raise InputError("already used")
    assert not (folder / "report.html").exists()


@pytest.mark.usefixtures("fresh_flags")
def test_a_page_is_kept_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model=mlp", "--groups=1", "--workers=2", "--steps=8", "--batch_size=8", "--live_report"]
    assert train.main(["train.py", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    page_of_it = tmp_path / "run" / "report.html"
    assert f"as a page for a browser: {page_of_it.as_uri()}" in capsys.readouterr().out
    assert [trace["name"] for trace in drawn(page_of_it.read_text())[2]] == ["worker 0", "worker 1"]
    assert ["jax", jax.__version__] in cells(page_of_it.read_text(), "Environment")


def test_methods_of_trainers_are_told_apart_by_their_arguments(tmp_path: Path) -> None:
    first, second = (trained(tmp_path / name, (), period) for name, period in (("a", 2), ("b", 4)))
    rows = cells(page(read_runs([first, second])), "Settings")
    assert ["global_period", "2", "4"] in rows[1:3]
    assert ["algorithm", "local_sgd", "local_sgd"] in rows


def trained(folder: Path, splits: tuple[str, ...], period: int = 2) -> Path:
    """A run of a `Trainer` in Python, with what there is to judge it by."""
    samples = {"x": np.arange(24, dtype=np.float32).reshape(8, 3), "y": np.arange(8) % 2}
    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    given: dict[str, Any] = dict.fromkeys(splits, samples)
    task = Task(lambda key: (params, {}), loss, train=from_arrays(samples, 2), metrics={"error": wrong}, **given)
    Trainer(task, local_sgd(optax.sgd(0.1), global_period=period), Topology(1, 2), workdir=folder).fit(4, figures=False)
    return folder


@pytest.mark.parametrize("splits", [(), ("validation",), ("validation", "test")])
def test_a_run_of_a_trainer_has_a_page_whatever_it_is_judged_by(splits: tuple[str, ...], tmp_path: Path) -> None:
    folder = trained(tmp_path / "own", splits=splits)
    text = page(read_runs([folder, run(tmp_path / "flags")]))
    names = [trace["name"] for trace in drawn(text)[0] if trace["name"].startswith("own: ")]
    workers = ["own: each worker, test"] if "test" in splits else []
    assert sorted(names) == sorted(
        [f"own: {model}, {split}" for model in ("center", "leader") for split in splits] + workers
    )
    settings = {row[0]: row[1] for row in cells(text, "Settings")[1:]}
    assert (settings["batch_size"], settings["task"]) == ("2", "task")


@pytest.mark.usefixtures("fresh_flags")
def test_flags_do_not_go_on_with_the_run_of_a_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(tmp_path / "own", splits=("validation",))
    assert train.main(["train.py", f"--workdir={folder}", "--resume"]) == 2
    assert f"{folder} is the run of a Trainer in Python" in capsys.readouterr().err


def test_names_are_no_html(tmp_path: Path) -> None:
    text = page(read_runs([run(tmp_path / "<b>one")]))
    assert "<b>one" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


@pytest.mark.usefixtures("fresh_flags")
def test_the_command_writes_one_file_that_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "one")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == (folder / "report.html").as_uri()
    text = (folder / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]* (?:src|href)=", text)
    assert main(["report", str(tmp_path), f"--output={tmp_path / 'all.html'}"]) == 0
    assert (tmp_path / "all.html").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which runs? name the --workdir of each"),
        (["{}/nowhere"], "nowhere has no metrics.jsonl: give the --workdir of a run, or a folder of runs"),
        (["{}/empty"], "empty has no evaluation yet: wait for its first"),
        (["{}/one", "--output={}/none/x.html"], "No such file or directory: name another file"),
        (["{}/one", "--every=0"], "--every=0.0: must be more than 0"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metrics.jsonl").write_text("")
    assert main(["report", *(argument.format(tmp_path) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: error: ")
    assert told in line


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_draws_every_curve_and_complains_of_nothing(tmp_path: Path) -> None:
    folder = run(tmp_path / "one")
    file = tmp_path / "report.html"
    file.write_text(page(read_runs([folder])))
    command = [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'browser'}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=10000", "--dump-dom", file.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in seen.stderr
    figures = drawn(file.read_text())
    scattered = sum(trace["type"] == "scatter" for figure in figures for trace in figure)
    assert len(re.findall(r'class="trace scatter', seen.stdout)) == scattered
    assert seen.stdout.count('class="trace bars') == sum(trace["type"] == "bar" for f in figures for trace in f)
