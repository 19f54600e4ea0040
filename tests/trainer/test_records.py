"""What a run writes down, the settings it refuses, and its figures."""

import contextlib
import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from lsgd_jax.config.config import FREE_AT_RESUME, Config, check_config, check_resumable
from lsgd_jax.errors import InputError
from lsgd_jax.tasks.classification import ERROR
from lsgd_jax.trainer.events import Events
from lsgd_jax.trainer.figures import draw_figures
from lsgd_jax.trainer.records import (
    LEADER_COLUMNS,
    LeaderRow,
    Records,
    RoundRow,
    WorkerRow,
    read_incidents,
    read_leaders,
    read_metrics,
    read_rounds,
    read_workers,
    set_aside,
)

NAN = float("nan")
METRIC = {
    "step": 32, "seconds": 1.5, "bytes_communicated": 10**7, "train_loss": 2.0, "validation_loss": 2.1,
    "validation_error": 0.5, "test_loss": 2.2, "test_error": 0.4, "leader_validation_error": 0.3,
    "leader_test_error": 0.35, "leader": 1,
}  # fmt: skip
LEADERS = [
    LeaderRow(16, "local", 0, 2, 1.25),
    LeaderRow(16, "local", 1, 7, 0.1 + 0.2),
    LeaderRow(32, "local", 0, 0, 1e-30),
    LeaderRow(32, "global", "", 0, 0.5),
]


def write(workdir: Path, metrics: list[dict[str, Any]], leaders: list[LeaderRow] = LEADERS, last_step: int = 0) -> None:
    """One session of a run, which goes on from `last_step`."""
    records = Records(workdir, last_step=last_step)
    for row in metrics:
        records.add_metrics(row)
    records.add_leaders(leaders)
    records.close()


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "seconds": 0.5 * step, "bytes_communicated": 8, "train_loss": 1 / step} for step in steps]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, rows(16, 32))
    assert read_metrics(tmp_path) == rows(16, 32)
    assert read_leaders(tmp_path) == LEADERS
    assert (tmp_path / "leaders.csv").read_text().splitlines()[:2] == [
        "step,level,group,leader,score",
        "16,local,0,2,1.25",
    ]
    assert (tmp_path / "leaders.csv").read_text().splitlines()[-1] == "32,global,,0,0.5"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leaders.csv", "metrics.jsonl", "tensorboard"]
    assert len(list(tmp_path.glob("tensorboard/events.out.tfevents*"))) == 1


def test_tables_are_there_where_there_is_anything_to_tell_and_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, rows(8))
    assert (read_workers(tmp_path), read_incidents(tmp_path)) == ([], [])
    for last_step, steps in ((8, (16, 24)), (16, (24, 32))):
        with contextlib.closing(Records(tmp_path, last_step=last_step)) as records:
            records.add_incident(last_step, 'resumed, "as asked"')
            for step in steps:
                records.add_workers([WorkerRow(step, 0, 1 / step), WorkerRow(step, 1, 0.5)])
    assert [(row.step, row.worker) for row in read_workers(tmp_path)] == [(s, w) for s in (16, 24, 32) for w in (0, 1)]
    assert read_workers(tmp_path)[0] == (16, 0, 1 / 16)
    assert read_incidents(tmp_path) == [(8, 'resumed, "as asked"'), (16, 'resumed, "as asked"')]


@pytest.mark.parametrize("name", ["gs:x", "s3:x", "12:30"])
def test_scalars_go_to_a_folder_on_this_machine_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Events(Path(name), first_step=0).close()
    assert len(list((tmp_path / name).glob("events.out.tfevents*"))) == 1


def test_nothing_is_read_where_nothing_was_written(tmp_path: Path) -> None:
    assert (read_metrics(tmp_path), read_leaders(tmp_path)) == ([], [])
    write(tmp_path, [], [])
    assert (read_metrics(tmp_path), read_leaders(tmp_path)) == ([], [])
    assert (tmp_path / "leaders.csv").read_text() == ",".join(LEADER_COLUMNS) + "\n"


def test_rows_after_the_checkpoint_are_dropped_and_those_up_to_it_kept(tmp_path: Path) -> None:
    write(tmp_path, rows(8, 16, 24, 32))
    write(tmp_path, rows(24), [], last_step=16)
    assert read_metrics(tmp_path) == rows(8, 16, 24)
    assert read_leaders(tmp_path) == LEADERS[:2]
    write(tmp_path, [], [], last_step=0)
    assert (read_metrics(tmp_path), read_leaders(tmp_path)) == ([], [])


# Texts that a killed run may leave behind the last complete line; the first could be read as a whole row.
@pytest.mark.parametrize("rest", ["40,local,0,1,0.5", '{"step": 24, "tr', "24,loc", "2", "\0\0\0"])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: str) -> None:
    write(tmp_path, rows(8, 16))
    for name in ("metrics.jsonl", "leaders.csv"):
        with (tmp_path / name).open("a") as file:
            file.write(rest)
    assert read_metrics(tmp_path) == rows(8, 16)
    assert read_leaders(tmp_path) == LEADERS
    write(tmp_path, rows(64), [], last_step=32)
    assert read_metrics(tmp_path) == rows(8, 16, 64), "and does not spoil the next"
    assert read_leaders(tmp_path) == LEADERS
    assert capsys.readouterr().out == "", "it happens at every kill"


# What may become of a file of three lines that a run has written, and the lines of it that nobody can read then.
DAMAGE: dict[str, tuple[Any, list[int]]] = {
    "a byte-order mark": (lambda lines: [b"\xef\xbb\xbf" + lines[0], *lines[1:]], []),
    "a blank line": (lambda lines: [lines[0], b"\n", *lines[1:]], []),
    "line ends of Windows": (lambda lines: [line.replace(b"\n", b"\r\n") for line in lines], []),
    "zeros after a crash of the machine": (lambda lines: [*lines[:2], b"\0" * 9 + lines[2]], []),
    "a torn line": (lambda lines: [lines[0], lines[1][:4] + b"\n", *lines[1:]], [2]),
    "a line that the next one has grown into": (lambda lines: [lines[0], lines[1][:-3] + lines[0], *lines[1:]], [2]),
    "bytes that are no text": (lambda lines: [b"\xfe\x80,\n", *lines[:2], b"\xff" + lines[2], lines[2]], [1, 4]),
    "JSON that is no row": (
        lambda lines: [lines[0], b"[16]\n", b'{"loss": 1}\n', b'{"step": null}\n', *lines[1:]],
        [2, 3, 4],
    ),
    "brackets without end": (lambda lines: [lines[0], b"[" * 10**5 + b"\n", *lines[1:]], [2]),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "unreadable"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["metrics.jsonl", "leaders.csv", "rounds.csv"])
def test_what_is_damaged_is_told_and_kept_and_nothing_else_is_lost_at_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any, unreadable: list[int]
) -> None:
    records = Records(tmp_path, last_step=0)
    for row in rows(8, 16, 24):
        records.add_metrics(row)
    records.add_leaders(LEADERS[:2])
    records.add_rounds([RoundRow(16, 0, 16, 0.25), RoundRow(16, 1, 16, 0.5)])
    records.close()
    before = read_metrics(tmp_path), read_leaders(tmp_path), read_rounds(tmp_path)
    assert [len(found) for found in before] == [3, 2, 2]
    path = tmp_path / name
    path.write_bytes(damaged := b"".join(damage(path.read_bytes().splitlines(keepends=True))))

    def read() -> Any:
        return read_metrics(tmp_path), read_leaders(tmp_path), read_rounds(tmp_path)

    assert read() == before
    told = f"warning: {path}: line {', '.join(map(str, unreadable))} cannot be read" if unreadable else ""
    assert capsys.readouterr().out.strip() == told
    for _ in range(2):
        Records(tmp_path, last_step=24).close()
        assert read() == before
        kept = {each.name: each.read_bytes() for each in tmp_path.glob("*.damaged*")}
        assert kept == ({f"{name}.damaged": damaged} if unreadable else {})
    out = capsys.readouterr().out.splitlines()
    assert out == ([f"{told}; as it was it is kept in {name}.damaged"] if unreadable else [])


def test_a_row_whose_line_end_somebody_took_away_is_still_a_row(tmp_path: Path) -> None:
    """All up to a checkpoint was written whole before it was saved."""
    records = Records(tmp_path, last_step=0)
    for row in rows(8, 16):
        records.add_metrics(row)
    records.add_leaders(LEADERS[:2])
    records.add_rounds(rounds := [RoundRow(16, 0, 16, 0.25), RoundRow(16, 1, 16, 0.5)])
    records.close()
    for name in ("metrics.jsonl", "leaders.csv", "rounds.csv"):
        (tmp_path / name).write_text((tmp_path / name).read_text().rstrip())
    write(tmp_path, rows(24), LEADERS[2:], last_step=16)
    assert read_metrics(tmp_path) == rows(8, 16, 24)
    assert read_leaders(tmp_path) == LEADERS
    assert read_rounds(tmp_path) == rounds


def test_what_a_run_has_recorded_is_kept_where_it_has_lost_its_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, rows(8, 16))
    before = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "leaders.csv")}
    set_aside(tmp_path / "elsewhere")
    assert capsys.readouterr().out == "", "there is nothing to keep"
    for kept in ("metrics.jsonl.before, leaders.csv.before", "metrics.jsonl.before1, leaders.csv.before1"):
        set_aside(tmp_path)
        told = capsys.readouterr().out
        assert told.startswith(
            "warning: the run had come to step 32, but there is no checkpoint of it: it begins again"
        )
        assert told.endswith(f"kept in {kept}\n")
        assert [(tmp_path / name).read_bytes() for name in kept.split(", ")] == list(before.values())


# Rows that are JSON, but not what readers need.
NO_ROWS: dict[str, dict[str, Any]] = {
    "the step alone": {"step": 12},
    "without a figure": {"step": 12, "seconds": 1.0, "bytes_communicated": 0, "validation_error": 0.5},
    "text for a figure": METRIC | {"step": 12, "validation_error": "x"},
    "text for another number": METRIC | {"step": 12, "learning_rate": "x"},
    "a list for a figure": METRIC | {"step": 12, "test_error": [0.5]},
    "no seconds": METRIC | {"step": 12, "seconds": None},
    "a switch for a step": METRIC | {"step": True},
    "a fraction of a step": METRIC | {"step": 12.5},
    "no simulated seconds": METRIC | {"step": 12, "simulated_seconds": None},
}


@pytest.mark.parametrize("row", NO_ROWS.values(), ids=NO_ROWS)
def test_a_row_that_is_json_but_not_what_readers_need_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any]
) -> None:
    path, whole = tmp_path / "metrics.jsonl", [METRIC | {"step": 8, "test_loss": None}, METRIC | {"step": 16}]
    path.write_text("".join(json.dumps(each) + "\n" for each in (whole[0], row, whole[1])))
    assert read_metrics(tmp_path, ERROR.columns) == whole
    assert capsys.readouterr().out == f"warning: {path}: line 2 cannot be read\n"
    for _ in range(2):
        Records(tmp_path, last_step=16, columns=ERROR.columns).close()
        assert read_metrics(tmp_path, ERROR.columns) == whole
    assert capsys.readouterr().out.endswith("line 2 cannot be read; as it was it is kept in metrics.jsonl.damaged\n")


def test_a_file_that_the_system_does_not_let_us_read_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read \(Is a directory\): restore it"):
        Records(tmp_path, last_step=0)


def strict(line: str) -> dict[str, Any]:
    """JSON without the NaN and Infinity that Python would read, too."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write(
        tmp_path,
        [rows(3)[0] | {"train_loss": NAN, "validation_loss": math.inf, "test_loss": -math.inf, "test_error": 1.0}],
    )
    row = strict((tmp_path / "metrics.jsonl").read_text())
    nothing = {"train_loss": None, "validation_loss": None, "test_loss": None}
    assert row == rows(3)[0] | nothing | {"test_error": 1.0}
    write(tmp_path, rows(4), last_step=3)
    assert read_metrics(tmp_path) == [row, *rows(4)]


def test_flushed_rows_are_on_disk_before_the_records_are_closed(tmp_path: Path) -> None:
    records = Records(tmp_path, last_step=0)
    records.add_metrics(rows(8)[0])
    records.add_leaders(LEADERS)
    records.flush()
    assert (read_metrics(tmp_path), read_leaders(tmp_path)) == (rows(8), LEADERS)
    records.close()


ranks, steps = st.integers(0, 255), st.integers(1, 2**31)
scores = st.floats(allow_nan=False)
leader_rows = st.builds(LeaderRow, steps, st.just("local"), ranks, ranks, scores) | st.builds(
    LeaderRow, steps, st.just("global"), st.just(""), ranks, scores
)


@settings(deadline=None, max_examples=20)
@given(leaders=st.lists(leader_rows, max_size=5))
def test_leaders_survive_the_file_exactly(tmp_path_factory: pytest.TempPathFactory, leaders: list[LeaderRow]) -> None:
    workdir = tmp_path_factory.mktemp("run")
    write(workdir, [], leaders)
    assert read_leaders(workdir) == leaders
    write(workdir, [], [], last_step=2**31)
    assert read_leaders(workdir) == leaders


def config(**changes: Any) -> Config:
    return dataclasses.replace(Config(workdir="runs/test"), **changes)


MISTAKES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("groups", "workers", "steps", "leader_window"), (0, -1)),
    **dict.fromkeys(("local_period", "global_period"), (0, -16)),
    **dict.fromkeys(("batch_size", "eval_every", "checkpoint_every"), (0, -1)),
    **dict.fromkeys(("learning_rate", "weight_decay"), (-0.1, NAN, math.inf)),
    "seed": (-1,),
    "momentum": (-0.1, 1.0, NAN),
    "sampling": ("random", "Shard"),
    "wire_dtype": ("float32", "int16"),
    "init": ("equal",),
    "election": ("loss", "Random"),
    "temperature": (-0.1, NAN, math.inf),
    "score_samples": (-1,),
    **dict.fromkeys(("local_pull", "global_pull", "stale_local_pull", "stale_global_pull"), (-0.1, 1.1, NAN)),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in MISTAKES.items() for value in values])
def test_a_setting_that_cannot_be_is_refused_by_its_flag_and_value(name: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        check_config(config(**{name: value}))
    assert f"--{name}={value}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{}, {"groups": 1, "workers": 1}, {"momentum": 0.0, "learning_rate": 0.0}, {"steps": 1}]
)
def test_settings_that_can_be_are_accepted(changes: dict[str, Any]) -> None:
    check_config(config(**changes))
    check_config(config(local_pull=0.0, global_pull=1.0, stale_local_pull=1.0, stale_global_pull=0.0, **changes))


def test_in_one_group_nothing_local_is_checked() -> None:
    wrong = {"local_pull": 7.0, "stale_local_pull": NAN, "local_period": 0}
    check_config(config(groups=1, **wrong))
    with pytest.raises(InputError, match="--local_pull=7"):
        check_config(config(groups=2, **wrong))


def test_different_starts_are_refused_where_workers_must_stay_equal() -> None:
    check_config(config(init="different"))
    with pytest.raises(InputError, match=r"--init=different.*data_parallel"):
        check_config(config(init="different", algorithm="data_parallel"))


def test_periods_follow_the_number_of_steps_and_models_the_data_set() -> None:
    assert (config().evaluation_period, config().checkpoint_period) == (32, 128)
    assert (config(steps=3).evaluation_period, config(steps=3).checkpoint_period) == (1, 1)
    assert (config(steps=21).evaluation_period, config(steps=21).checkpoint_period) == (2, 5)
    assert (config(eval_every=7).evaluation_period, config(checkpoint_every=9).checkpoint_period) == (7, 9)
    assert (config().model_name, config(dataset="cifar10").model_name, config(model="mlp").model_name) == (
        "cnn3",
        "cnn7",
        "mlp",
    )


CHANGES = {
    "algorithm": "data_parallel", "dataset": "mnist", "model": "mlp", "data_dir": "/data", "download": True, "seed": 1,
    "groups": 3, "workers": 3, "sampling": "iid", "init": "different", "optimizer": "adamw", "learning_rate": 0.1,
    "momentum": 0.5, "weight_decay": 0.0, "batch_size": 7, "steps": 1000, "local_pull": 0.2, "global_pull": 0.2,
    "stale_local_pull": 0.2, "stale_global_pull": 0.2, "local_period": 8, "global_period": 32, "leader_window": 3,
    "warmup_steps": 3, "scale_learning_rate": True, "beta": 0.5, "outer_learning_rate": 0.5, "outer_momentum": 0.5,
    "text_file": "/a.txt", "model_width": 64, "model_layers": 3, "dropout": 0.3, "clip_norm": 1.0,
    "tokenizer": "tokenizer.json", "compress": 8, "compress_top_k": 0.1, "fragments": 2, "overlap": 4,
    "overlap_keep": 0.25, "sequence_length": 64, "push": 0.5, "wire_dtype": "bfloat16", "compute_dtype": "bfloat16",
    "workdir": "elsewhere", "eval_every": 3, "checkpoint_every": 5, "schedule": "cosine", "drop_at": "5",
    "plateau_patience": 2, "loader_processes": 1, "worker_speeds": "1,2", "asynchronous": True,
    "task": "mine.py:task", "method_args": "a=1", "election": "random", "temperature": 0.1, "score_samples": 64,
    "worker_axes": "fsdp=4", "remat": "full",
}  # fmt: skip
FREE = {"data_dir", "download", "loader_processes", "steps", "workdir", "eval_every", "checkpoint_every"}
FREE |= {"worker_axes", "remat"}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Config)])
def test_a_run_is_resumed_only_with_the_settings_that_make_its_model(field: str) -> None:
    saved = json.loads(json.dumps(dataclasses.asdict(config())))
    changed = config(**{field: CHANGES[field]})
    assert changed != config()
    if field in FREE:
        check_resumable(saved, changed)
    else:
        with pytest.raises(InputError, match=f"--{field} was {saved[field]}, is {CHANGES[field]}") as caught:
            check_resumable(saved, changed)
        assert all(f"--{other} " not in str(caught.value) for other in CHANGES if other != field)


def test_all_that_differs_is_named_at_once() -> None:
    with pytest.raises(InputError, match=r"(?=.*--groups was 2, is 3)(?=.*--seed was 0, is 9)"):
        check_resumable(dataclasses.asdict(config()), config(groups=3, seed=9))
    assert FREE_AT_RESUME == FREE


def test_an_elastic_run_may_change_its_workers_and_what_one_group_has_not_used() -> None:
    alone, several = dataclasses.asdict(config(groups=1)), dataclasses.asdict(config(groups=2))
    check_resumable(alone, config(groups=3, workers=2, local_period=8, stale_local_pull=0.1), elastic=True)
    check_resumable(several, config(groups=1, workers=7), elastic=True)
    for saved, changes in ((several, {"local_period": 8}), (alone, {"global_pull": 0.3})):
        with pytest.raises(InputError, match=next(iter(changes))):
            check_resumable(saved, config(groups=3, **changes), elastic=True)


def test_workers_of_given_speeds_stay_as_many_whatever_else_is_given() -> None:
    """Elastic or not, nobody is sent from one flag to the other and back."""
    paced = dataclasses.asdict(config(groups=1, workers=2, worker_speeds="1,2"))
    for groups, workers, speeds in ((2, 1, "1,2"), (1, 3, "1,2"), (1, 3, "1,1,0.5"), (1, 3, None)):
        now = config(groups=groups, workers=workers, worker_speeds=speeds)
        with pytest.raises(InputError, match=r"--elastic cannot .*=1,2: go on with --groups=1 --workers=2, or use a"):
            check_resumable(paced, now, elastic=True)
        with pytest.raises(InputError, match=r"cannot resume .*: leave them out, or use a new --workdir$"):
            check_resumable(paced, now)


NO_LOSSES = {"train_loss": None, "validation_loss": None, "test_loss": None}
DRAWINGS: dict[str, tuple[list[dict[str, Any]], list[LeaderRow], list[str]]] = {
    "usual": ([METRIC, METRIC | {"step": 64, "test_error": 0.01}], LEADERS, ["error.png", "leaders.png"]),
    "no leaders": ([METRIC], [], ["error.png"]),
    "an error of zero": ([METRIC, METRIC | {"leader_test_error": 0.0}], LEADERS[:2], ["error.png", "leaders.png"]),
    "losses that were not finite": ([METRIC | NO_LOSSES, METRIC], LEADERS[3:], ["error.png", "leaders.png"]),
    "no bytes": ([METRIC | {"bytes_communicated": 0}], [], ["error.png"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("metrics", "leaders", "names"), DRAWINGS.values(), ids=DRAWINGS)
def test_figures_are_drawn_with_errors_from_zero_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metrics: Any, leaders: Any, names: list[str]
) -> None:
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **b: drawn.append(f.axes[0]) or save(f, *a, **b))
    paths = draw_figures(tmp_path / "figures", metrics, leaders, workers=8, metric=ERROR)
    assert (drawn[0].get_yscale(), drawn[0].get_ylim()[0]) == ("linear", 0)
    assert [path.name for path in paths] == names
    assert sorted(tmp_path.glob("figures/*")) == sorted(paths)
    for path in paths:
        signature, _, width, height = struct.unpack(">8s8sII", path.read_bytes()[:24])
        assert signature == b"\x89PNG\r\n\x1a\n"
        assert 1000 <= width <= 3000
        assert 400 <= height <= 1500
        assert 10_000 < path.stat().st_size < 1_000_000
