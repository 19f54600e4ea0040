"""The launcher: what it starts, ends and starts again, and what becomes of its processes when it is gone."""

import contextlib
import io
import os
import pathlib
import signal
import sys
import unittest.mock

import pytest
from started_processes import PATIENCE, children, lines_until, started, wait_until

from lsgd_jax import launch
from lsgd_jax.cluster import members
from lsgd_jax.cluster.proxies import LOOPBACK
from lsgd_jax.errors import ExitCode, InputError
from lsgd_jax.trainer.checkpoints import DIGESTS
from lsgd_jax.trainer.records import read_metrics

pytestmark = pytest.mark.processes

PROCESSES = 4

# Scripts that the launcher starts; they need no JAX.
FAILS = """
import os, sys, time
number = int(sys.argv[-1].partition("=")[2])
print("number", number, flush=True)
if number == 1:
    print("out of luck", file=sys.stderr, flush=True)
    sys.exit(7)
time.sleep(600)
"""
DIES_ONCE = """
import os, pathlib, signal, sys
workdir, number = pathlib.Path(sys.argv[1].partition("=")[2]), int(sys.argv[-1].partition("=")[2])
if number == 0:
    print("resumed" if "--resume" in sys.argv else "new", flush=True)
    if not (workdir / "config.json").exists():
        (workdir / "config.json").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""
TELLS_AND_DIES_ONCE = DIES_ONCE.replace('"resumed" if "--resume" in sys.argv else "new"', "*sys.argv[2:-3]")
SHRINKS = """
import os, pathlib, signal, sys
workdir, number = pathlib.Path(sys.argv[1].partition("=")[2]), int(sys.argv[-1].partition("=")[2])
print(*sys.argv[2:-3], sys.argv[-2], number, flush=True)
if number == 1 and "--elastic" not in sys.argv:
    (workdir / "config.json").touch()
    os.kill(os.getpid(), signal.SIGKILL)
while "--elastic" not in sys.argv:
    signal.pause()
"""
STOPS = """
import os, signal, sys
number = int(sys.argv[-1].partition("=")[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
if number == 0:
    os.kill(os.getppid(), signal.SIGTERM)
signal.pause()
"""
FALLS = """
import os, signal, sys
os.kill(os.getppid(), signal.SIGTERM)
signal.pause()  # as a script does that has not come to hear signals yet
"""
STOPPED = """
import os, signal, sys, time
number = int(sys.argv[-1].partition("=")[2])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1.5 * number)  # longer than those of a failed run have
sys.exit(os.EX_TEMPFAIL)
"""
STOPS_ALONE = """
import os, signal, sys
number = int(sys.argv[-1].partition("=")[2])
if number == 0:
    sys.exit(os.EX_TEMPFAIL)
signal.signal(signal.SIGTERM, lambda *_: (print("asked", flush=True), sys.exit(os.EX_TEMPFAIL)))
signal.alarm(60)
signal.pause()
"""
GOES_ON = """
import os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: None)
for _ in range(2):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.3)
time.sleep(600)
"""
TALKS = """
import os
print("one of", os.environ["LSGD_JAX_ONE_OF"])
print("no proxy to", os.environ["no_proxy"], "nor", os.environ["NO_PROXY"])
print("." * 10**6)
"""
REFUSES = """
import sys
print("script: error: bad flag", file=sys.stderr)
sys.exit(2)
"""
WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1], sys.argv[-1][-1]).touch()
time.sleep(600)
"""


def write(folder: pathlib.Path, text: str) -> str:
    (folder / "script.py").write_text(text)
    return str(folder / "script.py")


def lives(pid: int) -> bool:
    """Whether a process has not ended; it may have, and not be waited for."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_launcher_ends_all_when_one_fails_and_tells_which(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = children(os.getpid())
    assert launch.main([f"--processes={PROCESSES}", write(tmp_path, FAILS)]) == 7
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[1] number 1", "[2] number 2", "[3] number 3", "number 0"]
    assert "[1] out of luck\n" in err
    assert f"launch: process 1 of {PROCESSES} (pid " in err
    assert err.endswith(") ended with exit code 7\n")
    assert children(os.getpid()) == before


def test_the_launcher_starts_again_from_what_there_is(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = write(tmp_path, DIES_ONCE)
    assert launch.main(["--processes=2", "--max_restarts=3", script, f"--workdir={tmp_path}"]) == 0
    out, err = capfd.readouterr()
    assert out == "new\nresumed\n"
    assert "process 0 of 2 (pid " in err
    assert err.endswith("was killed by SIGKILL\nlaunch: restart 1 of 3\n")


def test_an_elastic_launcher_goes_on_without_the_process_that_was_killed(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = write(tmp_path, SHRINKS)
    assert launch.main(["--processes=3", "--max_restarts=1", "--elastic", script, f"--workdir={tmp_path}"]) == 0
    out, err = capfd.readouterr()
    first, second = ({line for line in out.splitlines() if ("--resume" in line) == again} for again in (False, True))
    assert (
        {"--num_processes=3 0", "[1] --num_processes=3 1", "[2] --num_processes=3 2"}
        >= first
        >= {"[1] --num_processes=3 1"}
    )
    assert second == {"--resume --elastic --num_processes=2 0", "[1] --resume --elastic --num_processes=2 1"}
    assert err.endswith("was killed by SIGKILL\nlaunch: restart 1 of 1, with 2 of 3 processes\n")


def test_a_run_that_is_resumed_if_it_is_there_needs_no_other_flag(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """So the same command, at another time, allows other workers as well, or does not."""
    launcher = ["--processes=2", "--max_restarts=1", "--elastic"]
    assert launch.main([*launcher, write(tmp_path, TELLS_AND_DIES_ONCE), f"--workdir={tmp_path}", "--resume=auto"]) == 0
    assert capfd.readouterr().out == "--resume=auto --elastic\n" * 2


def test_a_launcher_that_was_asked_to_stop_does_not_start_again(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--processes=2", "--max_restarts=3", write(tmp_path, STOPS), f"--workdir={tmp_path}"]
    assert launch.main(arguments) in (1, 128 + signal.SIGTERM)
    assert "restart" not in capfd.readouterr().err


@pytest.mark.parametrize("automatic", ["", "--resume=auto", "--flagfile"])
def test_processes_that_a_signal_ends_before_they_hear_it_were_stopped(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], automatic: str
) -> None:
    (tmp_path / "flags").write_text(f"# a run\n--workdir={tmp_path}\n--resume=auto\n")
    flags = [f"--flagfile={tmp_path / 'flags'}"] if automatic == "--flagfile" else [f"--workdir={tmp_path}", automatic]
    code = launch.main(["--processes=2", "--max_restarts=3", write(tmp_path, FALLS), *flags])
    assert code == (ExitCode.STOPPED if automatic else 128 + signal.SIGTERM)
    assert capfd.readouterr() == ("", "")


def test_a_first_ctrl_c_after_another_signal_is_no_second_one() -> None:
    with members.forwarding_signals() as (started, heard):
        started.append(mock := unittest.mock.Mock())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert mock.mock_calls == [unittest.mock.call.send_signal(signal.SIGTERM)]
        signal.raise_signal(signal.SIGINT)
        assert mock.mock_calls[1:] == [unittest.mock.call.kill()]
    assert heard == [signal.SIGTERM, signal.SIGINT, signal.SIGINT]


def test_what_is_not_there_yet_is_told_and_tried_again(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = write(tmp_path, REFUSES.replace("exit(2)", f"exit({ExitCode.NOT_YET:d})"))
    arguments = ["--processes=2", "--max_restarts=1", script, f"--workdir={tmp_path}"]
    assert launch.main(arguments) == ExitCode.NOT_YET
    told = "script: error: bad flag\n"
    err = capfd.readouterr().err.replace("[1] ", "")  # who comes first tells it
    assert err == f"{told}launch: restart 1 of 1\n{told}"


def test_a_run_that_was_stopped_may_end_slowly_and_its_exit_code_is_told_on(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--processes=2", "--max_restarts=3", write(tmp_path, STOPPED), f"--workdir={tmp_path}"]
    assert launch.main(arguments) == ExitCode.STOPPED
    assert capfd.readouterr() == ("", "")


def test_where_one_process_has_stopped_the_others_are_asked_to(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["--processes=2", write(tmp_path, STOPS_ALONE)]) == ExitCode.STOPPED
    out, err = capfd.readouterr()
    assert (out, err) in (("[1] asked\n", ""), ("", ""))  # it may not have come to listen yet


def test_a_second_ctrl_c_ends_all_at_once(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--processes=1", write(tmp_path, GOES_ON)]) == ExitCode.INTERRUPTED
    assert capfd.readouterr() == ("", "")


def test_output_that_nobody_reads_does_not_hold_processes_up_and_loopback_goes_past_proxies(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.org")
    script = write(tmp_path, TALKS)
    with (tmp_path / "told").open("w+") as told:
        monkeypatch.setattr(sys, "stdout", told)
        assert members.launch([sys.executable, script], 1, timeout=PATIENCE) is None
        told.seek(0)
        exceptions = f"example.org,{LOOPBACK}"
        assert told.readline() == "one of 1\n"
        assert told.readline() == f"no proxy to {exceptions} nor {exceptions}\n"
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True))
    assert members.launch([sys.executable, script], 2, timeout=PATIENCE) is None


def test_a_run_goes_on_without_a_reader_and_saves_and_ends_without_its_launcher(tmp_path: pathlib.Path) -> None:
    settings = {"model": "mlp", "groups": 1, "workers": 2, "batch_size": 8, "local_period": 8, "global_period": 8}
    settings |= {"steps": 10**6, "eval_every": 64, "checkpoint_every": 10**6}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    script = ["experiments/train.py", f"--workdir={tmp_path}", "--nocompilation_cache", *flags]
    started_by_it: list[int] = []
    with contextlib.ExitStack() as cleaned:
        cleaned.callback(lambda: [os.kill(member, signal.SIGKILL) for member in started_by_it if lives(member)])
        launcher = cleaned.enter_context(started("-m", "lsgd_jax.launch", "--processes=2", *script))
        lines_until(launcher, lambda line: line.startswith("compiling"))
        assert launcher.stdout is not None
        launcher.stdout.close()
        started_by_it += children(launcher.pid)
        wait_until(lambda: len(read_metrics(tmp_path)) > 1)
        launcher.kill()
        wait_until(lambda: not any(map(lives, started_by_it)))
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    assert int(checkpoint.name) % 8 == 0
    assert (checkpoint / DIGESTS).exists()
    assert not (tmp_path / "summary.json").exists()


def test_what_all_processes_refuse_is_told_once_and_not_tried_again(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = write(tmp_path, REFUSES)
    assert launch.main([f"--processes={PROCESSES}", "--max_restarts=3", script, f"--workdir={tmp_path}"]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("script: error: bad flag") == err.count("\n") == 1


def test_a_signal_to_the_launcher_reaches_all_processes(tmp_path: pathlib.Path) -> None:
    script = write(tmp_path, WAITS)
    with started("-m", "lsgd_jax.launch", "--processes=3", script, str(tmp_path)) as launcher:
        wait_until(lambda: len(list(tmp_path.glob("[0-2]"))) == 3)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):  # of a terminal they come twice
            launcher.send_signal(number)
        output, _ = launcher.communicate(timeout=PATIENCE)
    assert (launcher.returncode, output) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--processes=0", __file__], "--processes"),
        (["--processes=two", __file__], "--processes"),
        ([__file__], "--processes"),
        (["--processes=2"], "script"),
        (["--processes=2", "/nowhere/train.py"], "/nowhere/train.py"),
        (["--processes=2", "--max_restarts=1", __file__, "--steps=3"], "--workdir"),
        (["--processes=2", "--elastic", __file__, "--workdir=runs/one"], "--max_restarts"),
    ],
)
def test_a_mistake_in_the_launchers_flags_is_told_in_one_line(
    arguments: list[str], culprit: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        launch.main(arguments)
    out, err = capfd.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("launch: error: ")
    assert culprit in err


def test_gpus_are_dealt_to_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert launch._shares_of_gpus(3) == [{}] * 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,6,7,")
    assert launch._shares_of_gpus(2) == [{"CUDA_VISIBLE_DEVICES": "3,4"}, {"CUDA_VISIBLE_DEVICES": "6,7"}]
    with pytest.raises(InputError, match="4 GPUs cannot be dealt to --processes=3"):
        launch._shares_of_gpus(3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert launch._shares_of_gpus(3) == [{}] * 3


def test_a_module_is_started_as_a_script_is(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--processes=2", "-m", "lsgd_jax.train", "--help"]) == 0
    assert "usage: python -m lsgd_jax.train" in capfd.readouterr().out
    for absent in ("lsgd_jax.trian", "lsgd.train"):
        with pytest.raises(SystemExit) as ended:
            launch.main(["--processes=2", "-m", absent])
        assert (ended.value.code, f"there is no module {absent}" in capfd.readouterr().err) == (2, True)
