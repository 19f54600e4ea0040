"""The command line: every mistake is told in one line, before anything is compiled or written."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from absl.testing import flagsaver
from commands import SCRIPT, refused, train

from lsgd_jax import launch, load_center
from lsgd_jax.config import train as training
from lsgd_jax.config.checks import check_settings
from lsgd_jax.config.config import Config
from lsgd_jax.config.kinds import find_source
from lsgd_jax.errors import ExitCode, InputError
from lsgd_jax.files.files import write_json
from lsgd_jax.files.lock import locked
from lsgd_jax.trainer.conditions import conditions_of, write_conditions

pytestmark = pytest.mark.usefixtures("fresh_flags")


@pytest.fixture(autouse=True)
def _nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which data would be read or anything be compiled."""

    def fail(*_: Any) -> None:
        raise AssertionError("the mistake was not seen before the run was built")

    monkeypatch.setattr(training, "trainer_of", fail)
    monkeypatch.setattr(train, "use_compilation_cache", lambda wanted: None)


SPEEDS = "--worker_speeds=1,1,1,1,1,1,1,0.25"
# The arguments, and what the message must contain.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown algorithm": (["--algorithm=lsdg"], ["--algorithm=lsdg", "lsgd", "data_parallel"]),
    "a name with a line break": (["--algorithm=ls\ngd"], ["--algorithm=ls gd"]),
    "unknown data set": (["--dataset=didgits"], ["'didgits'", "'digits'"]),
    "unknown model": (["--model=resnet"], ["'resnet'", "cnn3, cnn7, mlp"]),
    "unknown optimizer": (["--optimizer=lion"], ["--optimizer=lion", "adam, adamw, lars, sgd"]),
    "unknown compute dtype": (["--compute_dtype=float8"], ["--compute_dtype=float8", "float32, bfloat16"]),
    "a profile where no folder can be": (["--profile_dir=/dev/null/x"], ["--profile_dir=/dev/null/x", "choose"]),
    "unknown sampling": (["--sampling=random"], ["--sampling=random", "shard, iid"]),
    "unknown init": (["--init=equal"], ["--init=equal", "same, different"]),
    "unknown wire_dtype": (["--wire_dtype=float17"], ["wire_dtype", "float17"]),
    "integers on the wire": (["--wire_dtype=int16"], ["wire_dtype", "int16"]),
    "an unknown wire_dtype of another method": (["--algorithm=none", "--wire_dtype=float17"], ["--wire_dtype=float17"]),
    "a wire_dtype that is not used": (["--algorithm=easgd", "--wire_dtype=int8"], ["--wire_dtype=int8", "easgd"]),
    "no groups": (["--groups=0"], ["--groups=0"]),
    "negative groups": (["--groups=-2"], ["--groups=-2"]),
    "no workers": (["--workers=0"], ["--workers=0"]),
    "periods that do not fit": (["--local_period=16", "--global_period=40"], ["global_period=40", "local_period=16"]),
    "no local period": (["--local_period=0"], ["--local_period=0"]),
    "no global period": (["--groups=1", "--global_period=0"], ["--global_period=0"]),
    **{
        f"{name} outside [0, 1]": ([f"--{name}={value}"], [f"--{name}={float(value)}", "[0, 1]"])
        for name, value in (
            ("local_pull", "1.5"),
            ("global_pull", "-0.1"),
            ("stale_local_pull", "nan"),
            ("stale_global_pull", "2"),
        )
    },
    "beta outside [0, 1]": (["--algorithm=easgd", "--beta=1.5"], ["--beta=1.5", "[0, 1]"]),
    "an outer momentum of 1": (["--algorithm=diloco", "--outer_momentum=1"], ["--outer_momentum=1.0", "[0, 1)"]),
    "negative outer learning rate": (["--outer_learning_rate=-1"], ["--outer_learning_rate=-1"]),
    "negative push": (["--algorithm=dppf", "--push=-1"], ["--push=-1"]),
    "negative warm-up": (["--warmup_steps=-1"], ["--warmup_steps=-1"]),
    "sgd on many workers": (["--algorithm=sgd"], ["--algorithm=sgd", "--groups=1 --workers=1"]),
    "periods of local_sgd that do not fit": (["--algorithm=local_sgd", "--global_period=40"], ["global_period=40"]),
    "worker axes without sizes": (["--worker_axes=fsdp"], ["--worker_axes=fsdp", "as fsdp=4"]),
    "a worker of too many devices": (["--worker_axes=fsdp=999"], ["does not fit", "JAX_NUM_CPU_DEVICES"]),
    "images computed again": (["--remat=full"], ["--remat is for language models"]),
    "too few speeds": (["--worker_speeds=1,2"], ["--worker_speeds=1,2", "2 numbers for 2 × 4 workers"]),
    "a speed that is no number": (["--worker_speeds=1,1,1,1,1,1,1,fast"], ["fast", "separated by commas"]),
    "a worker that stands still": (["--worker_speeds=1,1,1,1,1,1,1,0"], ["--worker_speeds=1,1", "[1e-06, 1e+06]"]),
    "a speed of nan": (["--worker_speeds=1,1,1,1,1,1,1,nan"], ["[1e-06, 1e+06]"]),
    "speeds of workers who step together": (
        ["--algorithm=data_parallel", SPEEDS],
        ["--algorithm=data_parallel", "every step", "such as lsgd"],
    ),
    "speeds of workers who never meet": (["--algorithm=none", SPEEDS], ["--algorithm=none", "never meet"]),
    "one process at its own pace": (["--asynchronous"], ["only process", "--worker_speeds"]),
    "a simulated and a real pace": (["--asynchronous", SPEEDS], ["--worker_speeds simulates", "leave one out"]),
    "an own pace in every step": (["--asynchronous", "--algorithm=data_parallel"], ["--asynchronous", "every step"]),
    "a part of a round": ([SPEEDS, "--steps=650"], ["--steps=650", "use 640 or 656"]),
    "less than a round": ([SPEEDS, "--steps=10"], ["--steps=10", "use 16"]),
    "a soft leader by chance": (["--temperature=1", "--election=random"], ["--temperature=1.0", "--election=random"]),
    "scores of a method without leaders": (
        ["--algorithm=easgd", "--score_samples=64"], ["--score_samples=64", "easgd"]
    ),
    "scores of a leader by chance": (
        ["--election=random", "--score_samples=64"], ["--score_samples=64", "--election=random"]
    ),
    "more samples than are held out": (["--score_samples=1000"], ["--score_samples=1000", "has 144 images"]),
    "a soft leader in few bits": (["--temperature=1", "--wire_dtype=int8"], ["--temperature=1.0", "--wire_dtype=int8"]),
    "no window": (["--leader_window=0"], ["--leader_window=0"]),
    "a batch larger than a shard": (["--batch_size=162"], ["--batch_size=162", "shard of 161"]),
    "a batch larger than the set": (["--sampling=iid", "--batch_size=1295"], ["--batch_size=1295", "1294"]),
    "more workers than images": (["--groups=40", "--workers=40"], ["shard of 0", "fewer workers"]),
    "no batch": (["--batch_size=0"], ["--batch_size=0"]),
    "images too small for the model": (["--model=cnn7"], ["'cnn7'", "8×8", "cnn3, mlp"]),
    "a period of more than 31 bits": (["--groups=1", "--global_period=3000000000"], ["--global_period=3000000000"]),
    "negative learning rate": (["--learning_rate=-0.1"], ["--learning_rate=-0.1"]),
    "learning rate that is no number": (["--learning_rate=nan"], ["--learning_rate=nan"]),
    "infinite learning rate": (["--learning_rate=inf"], ["--learning_rate=inf"]),
    "negative weight decay": (["--weight_decay=-1"], ["--weight_decay=-1"]),
    "momentum of 1": (["--momentum=1"], ["--momentum=1"]),
    "negative seed": (["--seed=-1"], ["--seed=-1"]),
    "a seed of more than 64 bits": (["--seed=18446744073709551616"], ["--seed=18446744073709551616"]),
    "no steps": (["--steps=0"], ["--steps=0"]),
    "no evaluation period": (["--eval_every=0"], ["--eval_every=0"]),
    "no checkpoint period": (["--checkpoint_every=-5"], ["--checkpoint_every=-5"]),
    "different starts in data_parallel": (["--algorithm=data_parallel", "--init=different"], ["--init=different"]),
    "other workers of a run that begins": (["--elastic"], ["--elastic", "add --resume"]),
    "no time for heartbeats": (["--heartbeat_timeout=0"], ["--heartbeat_timeout=0", "more than 0"]),
    "resuming where nothing is": (["--resume"], ["--resume", "there is no run in"]),
    "a wait without end": (["--connect_timeout=inf"], ["--connect_timeout=inf", "at most 1,000,000"]),
    "no wait": (["--connect_timeout=0"], ["--connect_timeout=0.0"]),
    "heartbeats for ever": ([f"--heartbeat_timeout={10**12}"], ["--heartbeat_timeout=1000000000000"]),
    "a wait that is no number": (["--connect_timeout=nan"], ["--connect_timeout=nan"]),
    "a seed that is no number": (["--seed=nan"], ["--seed=nan"]),
    "a whole number that is none": (["--steps=many"], ["--steps=many"]),
    "a fraction of a step": (["--steps=1.5"], ["--steps=1.5"]),
    "a number that is none": (["--local_pull=weak"], ["--local_pull=weak"]),
    "a switch that is neither on nor off": (["--resume=maybe"], ["--resume=maybe"]),
    "unknown flag": (["--wrokers=4"], ["wrokers"]),
    "a flag without its value": (["--steps"], ["--steps"]),
    "stray argument": (["--steps=3", "lsgd"], ["'lsgd'"]),
    "missing flagfile": (["--flagfile=/nowhere/flags"], ["/nowhere/flags"]),
    "a bucket for a folder": (["--workdir=gs://bucket/run"], ["--workdir=gs://bucket/run", "not a URI", "mount"]),
    "a bucket without slashes": (["--workdir=gs:bucket"], ["--workdir=gs:bucket", "not a URI", "mount"]),
    "data in a bucket": (["--data_dir=s3://bucket/tfds"], ["--data_dir=s3://bucket/tfds", "not a URI"]),
    "a text of the web": (["--text_file=https://x.org/a.txt"], ["--text_file=https://x.org/a.txt", "copy it here"]),
    "a path written as a URI": (["--profile_dir=file:///tmp"], ["--profile_dir=file:///tmp", "leave out file://"]),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "culprits"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_and_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], culprits: list[str]
) -> None:
    workdir = tmp_path / "run"
    message = refused(capfd, f"--workdir={workdir}", *arguments)
    assert [culprit for culprit in culprits if culprit not in message] == [], message
    assert list(tmp_path.iterdir()) == []


def test_flags_that_are_right_reach_the_run(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="before the run was built"):
        train.main(["experiments/train.py", f"--workdir={tmp_path / 'run'}", "--groups=3", "--batch_size=5"])
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]


@pytest.mark.parametrize(
    ("script", "flag"),
    [
        *((path.stem, "workdir") for path in SCRIPT.parent.glob("*.py") if "main(sys.argv)" in path.read_text()),
        ("figures", "runs"),
        ("flatness", "runs"),
        ("landscape", "run"),
        ("batch_statistics", "run"),
    ],
)
def test_no_script_takes_a_bucket_for_a_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, script: str, flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert importlib.import_module(script).main([f"experiments/{script}.py", f"--{flag}=gs://bucket/x"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"--{flag}=gs://bucket/x: must be a path on this machine" in err
    assert list(tmp_path.iterdir()) == []


def test_the_library_takes_no_bucket_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="gs://bucket/x: must be a path on this machine"):
        training.train(Config("gs://bucket/x"))
    with pytest.raises(InputError, match="gs://bucket/x: must be a path on this machine"):
        load_center("gs://bucket/x")
    with pytest.raises(InputError, match="--profile_dir=gs:/bucket/x: must be a path on this machine"):
        training.train(Config(str(tmp_path / "run")), profile_dir="gs://bucket/x")
    assert list(tmp_path.iterdir()) == []


def test_a_flagfile_is_read_like_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flagfile = tmp_path / "flags"
    flagfile.write_text("--groups=0\n# a remark\n--workers=3\n")
    assert "--groups=0" in refused(capfd, f"--flagfile={flagfile}", f"--workdir={tmp_path / 'run'}")


def test_periods_need_not_fit_in_one_group(tmp_path: Path) -> None:
    periods = {"local_period": 16, "global_period": 40}
    source = check_settings(Config(str(tmp_path / "a"), groups=1, **periods), tmp_path / "a", resume=False)
    assert source.name == "digits"
    with pytest.raises(InputError, match="global_period=40"):
        check_settings(Config(str(tmp_path / "b"), groups=2, **periods), tmp_path / "b", resume=False)


@pytest.mark.parametrize("download", [False, True])
def test_a_data_set_that_is_not_there_is_told_with_how_to_get_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "tensorflow" else real(name, *a))
    data = tmp_path / "data"
    data.mkdir()
    arguments = ["--dataset=cifar10", f"--data_dir={data}", f"--workdir={tmp_path / 'run'}"]
    message = refused(capfd, *arguments, *["--download"] * download)
    assert "--download" in message
    assert "lsgd_jax[train,tensorflow]" in message
    assert ("TensorFlow" if download else str(data)) in message
    assert (list(tmp_path.iterdir()), list(data.iterdir())) == ([data], [])


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_workdir_that_cannot_be_written_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], inside: str
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    assert f"--workdir={in_the_way / inside}" in refused(capfd, f"--workdir={in_the_way / inside}")
    assert in_the_way.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [in_the_way]


@pytest.mark.parametrize("part", ["checkpoints", "center", "figures", "tensorboard", "metrics.jsonl", "leaders.csv"])
def test_a_part_of_a_run_that_cannot_be_written_is_told_at_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], part: str
) -> None:
    write_json(tmp_path / "config.json", {"workdir": str(tmp_path)})
    write_conditions(tmp_path, conditions_of(find_source(Config(""))))
    (tmp_path / part).symlink_to("/proc/self/fd")  # where not even root makes files
    message = refused(capfd, f"--workdir={tmp_path}", "--resume")
    assert f"cannot read and write {tmp_path / part} (" in message
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "conditions.json", part}


def test_where_nobody_has_a_home_a_path_from_there_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    for flag in ("workdir", "data_dir", "text_file", "profile_dir"):
        assert f"--{flag}=~/x: there is no home directory" in refused(capfd, f"--{flag}=~/x").replace(": ~/x", "", 1)
    with pytest.raises(SystemExit, match="2"):
        launch.main(["--processes=1", str(SCRIPT), "--workdir=~/x"])
    assert capfd.readouterr().err.startswith("launch: error: ~/x: there is no home directory")
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_whose_name_is_no_text_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = refused(capfd, "--workdir=" + os.fsdecode(bytes(tmp_path / "run") + b"\xff"))
    assert f"--workdir={tmp_path}/run" in message
    assert "must be UTF-8: give it another name" in message
    assert list(tmp_path.iterdir()) == []
    assert "must be UTF-8: give it another name" in refused(capfd, "--text_file=" + os.fsdecode(b"\xff.txt"))


@pytest.mark.parametrize(("name", "hint"), [("config.json", "--resume"), ("notes.txt", "empty folder")])
def test_a_workdir_that_is_used_is_told_and_not_touched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    (tmp_path / name).write_text("{}")
    message = refused(capfd, f"--workdir={tmp_path}")
    assert f"--workdir={tmp_path}" in message
    assert hint in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "{}")]


def test_a_workdir_in_which_another_process_trains_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path):
        told = refused(capfd, f"--workdir={tmp_path}", code=ExitCode.NOT_YET)
        assert "another process trains in" in told
    with pytest.raises(AssertionError, match="before the run was built"):
        train.main(["experiments/train.py", f"--workdir={tmp_path}"])
    with pytest.raises(InputError, match=f"cannot read --workdir={tmp_path / 'gone'}"), locked(tmp_path / "gone"):
        pass


def test_resuming_needs_the_workdir(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--workdir" in refused(capfd, "--resume")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "resume"), [([], False), (["--resume"], True), (["--resume=auto"], None), (["--noresume"], False)]
)
def test_auto_resumes_a_run_if_there_is_one_and_else_begins_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], resume: bool | None
) -> None:
    """A run that was stopped is then told from a finished one by the exit code."""
    calls = []

    def stopped(config: Config, **options: Any) -> None:
        calls.append((options["resume"], options["elastic"], config.groups))

    monkeypatch.setattr(training, "train", stopped)
    arguments = ["experiments/train.py", f"--workdir={tmp_path}", *flags]
    if resume is not True:
        with flagsaver.flagsaver():
            assert train.main([*arguments, "--groups=3"]) == (0 if resume is False else ExitCode.STOPPED)
        assert calls.pop() == (False, False, 3)
    if resume is not False:
        (tmp_path / "config.json").write_text('{"workdir": "elsewhere", "groups": 5}')
        assert train.main([*arguments, "--elastic"]) == (0 if resume else ExitCode.STOPPED)
        assert calls.pop() == (True, True, 5)


def test_resuming_with_other_settings_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved = '{"workdir": "elsewhere", "groups": 2, "seed": 3}'
    (tmp_path / "config.json").write_text(saved)
    message = refused(capfd, "--resume", f"--workdir={tmp_path}", "--groups=4")
    assert "--groups was 2, is 4" in message
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("config.json", saved)]


def test_each_run_has_a_default_workdir_of_its_own_with_a_name_that_file_systems_take(tmp_path: Path) -> None:
    text = tmp_path / ("é" * 110 + ".txt")
    train.FLAGS(["train.py"])
    names = {train._default_workdir() for _ in range(20)}
    train.FLAGS(["train.py", f"--text_file={text}"])
    names |= {train._default_workdir() for _ in range(20)}
    train.FLAGS(["train.py", "--dataset=wiki40b/en"])
    names.add(train._default_workdir())
    assert len(names) == 41
    assert all(name.startswith("runs/") and name.count("/") == 1 for name in names)
    assert max(len(Path(name).name.encode()) for name in names) <= 255


def test_without_a_workdir_a_mistake_leaves_no_runs_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capfd, "--model=cnn7")
    assert list(tmp_path.iterdir()) == []


# The table of the design, section 5, with the defaults it names there or in section 5's signatures.
FLAGS: dict[str, dict[str, str]] = {
    "what to train:": {
        "algorithm": "(default: lsgd)",
        "method_args": "",
        "dataset": "(default: digits)",
        "text_file": "",
        "tokenizer": "",
        "task": "",
        "model": "(default: ",
        "model_width": "(default: lstm 650, transformer 256)",
        "model_layers": "(default: lstm 2, transformer 4)",
        "dropout": "(default: lstm 0.5, transformer 0.1)",
        "data_dir": "(default: ",
        "[no]download": "",
        "seed": "(default: 0)",
    },
    "workers:": {
        "groups": "(default: 2)",
        "workers": "(default: 4)",
        "sampling": "(default: shard)",
        "init": "(default: same)",
        "worker_speeds": "",
        "worker_axes": "(default: one)",
        "[no]asynchronous": "",
    },
    "local steps:": {
        "optimizer": "(default: sgd)",
        "learning_rate": "(default: 0.05)",
        "momentum": "(default: 0.9)",
        "weight_decay": "(default: 0.0001)",
        "schedule": "(default: constant)",
        "drop_at": "",
        "plateau_patience": "(default: 5)",
        "warmup_steps": "(default: 0)",
        "[no]scale_learning_rate": "",
        "clip_norm": "(default: none is)",
        "batch_size": "(default: 128, or the shard if it is smaller)",
        "sequence_length": "(default: 128)",
        "steps": "(default: 640)",
        "remat": "",
        "compute_dtype": "(default: float32)",
    },
    "communication:": {
        "local_pull": "(default: 0.1)",
        "global_pull": "(default: 0.1)",
        "stale_local_pull": "(default: 0",
        "stale_global_pull": "(default: 0",
        "local_period": "(default: 16)",
        "global_period": "(default: 64)",
        "leader_window": "(default: 10)",
        "election": "(default: score)",
        "temperature": "(default: 0",
        "wire_dtype": "(default: ",
        "beta": "(default: 0.9)",
        "outer_learning_rate": "(default: 0.7)",
        "outer_momentum": "(default: 0.9)",
        "push": "(default: 0.1)",
        "score_samples": "(default: 0)",
        "compress": "(default: as many as it has)",
        "compress_top_k": "(default: all)",
        "fragments": "(default: 1)",
        "overlap": "(default: at once)",
        "overlap_keep": "(default: 0.5)",
    },
    "several processes:": {
        "coordinator_address": "(default: what JAX detects)",
        "num_processes": "(default: what JAX detects)",
        "process_id": "(default: what JAX detects)",
        "connect_timeout": "(default: 120.0)",
        "heartbeat_timeout": "(default: 15)",
        "[no]live": "",
    },
    "run:": {
        "loader_processes": "(default: ",
        "workdir": "(default: ",
        "eval_every": "(default: ",
        "checkpoint_every": "(default: ",
        "[no]resume": "--resume=auto",
        "[no]elastic": "",
        "profile_dir": "(default: none)",
        "[no]live_report": "",
        "[no]wandb": "",
        "[no]compilation_cache": "",
        "flagfile": "",
    },
}  # fmt: skip


@pytest.mark.parametrize("asked", ["--help", "-h", "-help", "--helpfull"])
def test_help_shows_every_flag_in_its_group_with_its_default(capfd: pytest.CaptureFixture[str], asked: str) -> None:
    assert train.main(["experiments/train.py", asked]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    group, shown = "", {}
    for line in out.splitlines():
        group = line if line in FLAGS else group
        if line.startswith("  --"):
            shown[line.split("=")[0].split()[0].removeprefix("--")] = (group, line)
    for name, flags in FLAGS.items():
        for flag, default in flags.items():
            assert shown[flag][0] == name
            assert default in shown[flag][1]
    assert set(shown) == {flag for flags in FLAGS.values() for flag in flags}
    assert max(map(len, out.splitlines())) <= 120


def test_the_script_itself_refuses_an_unknown_flag_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--wrokers=4"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("train.py: error: Unknown command line flag 'wrokers'")
    assert done.stderr.count("\n") == 1
