"""Several processes on this machine: what they agree on, the same run as in one, and processes that die.

Starting processes takes seconds of CPU each, so few starts check many things.
"""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from copies import copied
from started_processes import PATIENCE, children, lines_until, started, wait_until
from thorough import thorough

from lsgd_jax.cluster import joining, processes
from lsgd_jax.cluster.joining import HEARTBEAT_SECONDS, connect
from lsgd_jax.cluster.members import free_port
from lsgd_jax.config.config import Config
from lsgd_jax.config.reload import reload_run
from lsgd_jax.config.train import train
from lsgd_jax.errors import ExitCode, InputError, agreed_error
from lsgd_jax.trainer.checkpoints import DIGESTS
from lsgd_jax.trainer.records import read_leaders, read_metrics, read_rounds

pytestmark = pytest.mark.processes

PROCESSES = 4
SETTINGS: dict[str, Any] = {
    "model": "mlp",
    "groups": 2,
    "workers": 2,
    "batch_size": 8,
    "learning_rate": 0.02,
    "local_period": 4,
    "global_period": 8,
    "eval_every": 8,
    "checkpoint_every": 8,
}

# What processes find that a launcher, or a person, starts in a step of Slurm.
SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "1",
    "SLURM_LOCALID": "0",
    "SLURM_PROCID": "0",
}


@contextlib.contextmanager
def by_hand(*commands: list[str], **environment: str) -> Iterator[list[subprocess.Popen]]:
    """Processes that find each other, with no launcher to watch over them."""
    address, count = f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={len(commands)}"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(started(*command, address, count, f"--process_id={i}", **environment))
            for i, command in enumerate(commands)
        ]


def listening(pids: list[int]) -> set[str]:
    """The addresses, in hexadecimal, on which processes listen."""
    inodes = set()
    for pid in pids:
        for file in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(os.readlink(file))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].rpartition(":")[0])
    return found


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def saved_state(workdir: pathlib.Path) -> list[np.ndarray]:
    """The arrays of the newest checkpoint, with the keys as numbers."""
    state = reload_run(workdir).state
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state._replace(keys=jax.random.key_data(state.keys)))]


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
    """The same but for seconds, and the rounding of sums in another order."""
    for ours, theirs in zip(saved_state(one), saved_state(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    for ours, theirs in zip(read_metrics(one), read_metrics(other), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name
    assert_same_leaders(one, other)


def assert_same_leaders(one: pathlib.Path, other: pathlib.Path) -> None:
    leaders, others = (
        [(row.step, row.level, row.group, row.leader) for row in read_leaders(run)] for run in (one, other)
    )
    assert leaders == others


@pytest.mark.parametrize(
    "more", [{}, thorough({"fragments": 2, "overlap": 3})], ids=["at once", "while half of the parameters are sent"]
)
def test_a_run_goes_on_in_two_processes_of_which_one_is_killed_and_then_in_one_again(
    more: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """Like a run of a single process throughout; and nothing listens beyond loopback."""
    settings = SETTINGS | {"groups": 1, "workers": 4, "checkpoint_every": 16} | more
    one, many = tmp_path / "one", tmp_path / "many"
    assert train(Config(str(one), **settings, steps=32), figures=False)
    copied(one, many, step=16)

    script = ["experiments/train.py", f"--workdir={many}", "--steps=24", "--resume", "--nocompilation_cache"]
    command = ["-m", "lsgd_jax.launch", "--processes=2", "--max_restarts=1", *script]
    with started(*command) as launcher:
        wait_until(lambda: len(children(launcher.pid)) == 2 and listening(children(launcher.pid)))
        victim = children(launcher.pid)[1]
        os.kill(victim, signal.SIGKILL)
        output = "".join(lines_until(launcher, lambda line: line.startswith("compiling")))
        found = listening(children(launcher.pid))
        rest, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, output + rest
    assert f"launch: process 1 of 2 (pid {victim}) was killed by SIGKILL\nlaunch: restart 1 of 1\n" in output
    assert f"resuming {many} at step 16 of 24\n" in output
    assert found
    assert found <= LOOPBACK
    assert rest.count("results in") == 1
    summary = json.loads((many / "summary.json").read_text())
    assert (summary["step"], summary["processes"]) == (24, 2)
    assert summary["figures"]
    assert summary["worker_test_error"][summary["leader"]] == pytest.approx(summary["leader_test_error"], abs=1e-6)

    assert train(Config(str(many), **settings, steps=32), resume=True, figures=False)
    assert_same_run(one, many)


@pytest.mark.thorough
def test_a_run_in_few_bits_goes_on_in_two_processes(tmp_path: pathlib.Path) -> None:
    """Like a run of one process, but for numbers that are rounded to another code, and what follows from them."""
    settings = SETTINGS | {"groups": 1, "workers": 4, "overlap": 3, "compress": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(Config(str(one), **settings, steps=16), figures=False)
    copied(one, two, step=8)
    command = ["-m", "lsgd_jax.launch", "--processes=2", "-m", "lsgd_jax.train", f"--workdir={two}"]
    with started(*command, "--steps=16", "--resume", "--nocompilation_cache") as launcher:
        output, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, output
    assert_same_leaders(one, two)
    pairs = list(zip(saved_state(one), saved_state(two), strict=True))
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2)
    away = [np.ravel(~np.isclose(ours, theirs, rtol=0, atol=1e-6)) for ours, theirs in pairs]
    assert np.concatenate(away).mean() <= 1e-3


@pytest.mark.thorough
def test_an_asynchronous_run_of_three_processes_goes_on_with_two_when_one_is_killed(tmp_path: pathlib.Path) -> None:
    """Each round has exactly as many steps as its length times the workers, also where three become two."""
    workdir = tmp_path / "run"
    settings = SETTINGS | {"local_period": 8, "global_period": 16, "eval_every": 200, "checkpoint_every": 40}
    settings |= {"groups": 3, "workers": 1}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    script = ["experiments/train.py", "--asynchronous", "--steps=216", "--nocompilation_cache", f"--workdir={workdir}"]
    command = ["-m", "lsgd_jax.launch", "--processes=3", "--max_restarts=1", "--elastic", *script, *flags]
    with started(*command) as launcher:
        wait_until(lambda: (workdir / "checkpoints" / "40" / DIGESTS).exists())
        victim = children(launcher.pid)[1]
        os.kill(victim, signal.SIGKILL)
        output, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, output
    assert f"process 1 of 3 (pid {victim}) was killed by SIGKILL\n" in output
    assert "launch: restart 1 of 1, with 2 of 3 processes\n" in output
    assert "3 × 1 workers cannot be shared by 2 processes: going on with 2 × 1\n" in output
    assert re.search(r"^left out: worker \d of 3 × 1$", output, re.MULTILINE), output
    begun = re.search(r"^resuming \S+ at step (\d+) of 216$", output, re.MULTILINE)
    assert begun, output
    last = int(begun[1])
    assert last
    assert last % 40 == 0

    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["step"], summary["processes"], summary["groups"], summary["workers"]) == (216, 2, 2, 1)
    assert json.loads((workdir / "config.json").read_text())["groups"] == 2
    assert [row["groups"] * row["workers"] for row in read_metrics(workdir)][-1] == 2
    steps: dict[int, list[int]] = {}
    for row in read_rounds(workdir):
        steps.setdefault(row.step, []).append(row.steps)
        assert row.waiting >= 0
    ends = [*range(8, 217, 8)]
    assert sorted(steps) == ends
    for begin, end in itertools.pairwise([0, *ends]):
        workers = 3 if end <= last else 2
        assert len(steps[end]) == workers
        assert sum(steps[end]) == workers * (end - begin)
    elections = {(row.step, row.level) for row in read_leaders(workdir)}
    assert elections == {(step, "local") for step in ends} | {(step, "global") for step in ends if step % 16 == 0}


MEMBER = """
import argparse, contextlib, os, sys, time
import jax, numpy as np
from jax._src import xla_bridge
from lsgd_jax import Topology
from lsgd_jax.cluster import joining
from lsgd_jax.cluster import processes
from lsgd_jax.errors import ExitCode, InputError
from lsgd_jax.cluster.stopping import stop_on_signals

parser = argparse.ArgumentParser()
for name in ("num_processes", "process_id"):
    parser.add_argument("--" + name, type=int)
parser.add_argument("--coordinator_address")
options = parser.parse_args()
joining.connect(options.coordinator_address, options.num_processes, options.process_id, 60)

def refused(call):
    try:
        call()
    except InputError as error:
        return str(error)

def bad(who):
    if processes.number() == who:
        raise InputError("bad luck")
    return processes.number()

def body():
    me, main = processes.number(), processes.is_main()
    assert xla_bridge.CUDA_VISIBLE_DEVICES.value == "all"
    topology = Topology(2, 2, processes.devices())
    processes.warm_up(topology)
    assert len(set(processes.hosts())) == 1
    assert processes.default_shape({}) == {"groups": 1, "workers": 4}
    assert processes.default_shape({"groups": 2}) == {"groups": 2, "workers": 2}
    assert processes.exchange("numbers", [me]) == [[0], [1], [2], [3]]
    assert processes.exchange("numbers", -me) == [0, -1, -2, -3]
    assert processes.from_main(lambda: {"said by": me}) == {"said by": 0}
    assert refused(lambda: processes.from_main(lambda: bad(0))) == "bad luck"
    assert processes.together(lambda: me) == me
    assert "process 3 on " in refused(lambda: processes.together(lambda: bad(3)))
    settings = {"beta": float("nan"), "steps": 1}
    processes.check_same(settings)
    different = settings | {"steps": 1 + (me == 1)}
    assert "--steps=2, but 1 in process 0" in refused(lambda: processes.check_same(different))
    assert "leave process 1 without" in refused(lambda: processes.check_all_work(Topology(1, 1, processes.devices())))
    numbers = np.arange(8).reshape(2, 2, 2)
    spread = processes.put(numbers, topology.per_worker)
    assert not spread.is_fully_addressable
    np.testing.assert_array_equal(jax.device_get(processes.whole(spread, topology)), numbers)
    with stop_on_signals() as stop:
        asked = processes.agreed((stop, []), topology)
        rounds = 0
        print("ready", flush=True)
        while asked() == [False, False]:
            rounds += 1
            time.sleep(0.02 * me)
    print("stopped after", rounds, flush=True)
    assert processes.exchange("rounds", rounds) == [rounds] * 4
    while True:
        jax.block_until_ready(processes.whole(spread, topology))
        time.sleep(0.1)

sys.exit(joining.guard(body))
"""


def test_four_processes_agree_and_end_when_one_is_killed_with_nobody_watching(tmp_path: pathlib.Path) -> None:
    """In a step of Slurm, of which they are no tasks; and with a proxy, to which they do not speak."""
    (tmp_path / "member.py").write_text(MEMBER)
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        environment = SLURM | {"https_proxy": f"http://127.0.0.1:{proxy.getsockname()[1]}", "no_grpc_proxy": ".org"}
        members = stack.enter_context(by_hand(*[[str(tmp_path / "member.py")]] * PROCESSES, **environment))
        for member in members:
            lines_until(member, lambda line: line == "ready\n")
        members[1].terminate()
        stopped = {lines_until(member, lambda line: line.startswith("stopped"))[-1] for member in members}
        assert len(stopped) == 1  # all after the same round
        members[3].kill()
        outputs = [member.communicate(timeout=PATIENCE)[0] for member in members]
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            proxy.accept()
    assert all(member.returncode for member in members)
    for output in outputs[:3]:
        assert "stopped sending heartbeats" in output, output
        assert "\n3\n" in output  # its number
    assert HEARTBEAT_SECONDS < 30


def test_processes_with_different_flags_are_refused_with_the_flag(tmp_path: pathlib.Path) -> None:
    command = ["experiments/train.py", f"--workdir={tmp_path / 'run'}", "--nocompilation_cache"]
    with by_hand([*command, "--steps=16"], [*command, "--steps=17"]) as members:
        outputs = [member.communicate(timeout=PATIENCE)[0] for member in members]
    assert [member.returncode for member in members] == [2, 2], outputs
    errors = [line for line in outputs[0].splitlines() if not line.startswith("[Gloo]")]
    assert len(errors) == 1
    assert errors[0].startswith("train.py: error: process 1 on ")
    assert "--steps=17, but 16 in process 0" in errors[0]
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_does_not_answer_is_told_after_the_timeout() -> None:
    address = f"127.0.0.1:{free_port()}"
    flags = (f"--coordinator_address={address}", "--num_processes=2", "--process_id=1", "--connect_timeout=1")
    with started("experiments/train.py", *flags) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == ExitCode.NOT_YET
    assert f"train.py: error: no coordinator answers at {address}" in output
    assert output.count("\n") == 1


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"--coordinator_address={address} \(Address already in use\)"):
            connect(address, 2, 0, 1.0)


@pytest.mark.parametrize("address", ["somewhere", ":80", "127.0.0.1:http", "127.0.0.1:"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(InputError, match="must be host:port"):
        connect(address, 2, 1, 1.0)


def test_time_outs_are_handed_on_and_what_is_told_is_not_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def initialize(*_: Any, **options: Any) -> None:
        given.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="cannot join the other processes"):
        connect("192.0.2.1:1234", 2, 1, 100.0, heartbeat_timeout=40)
    assert given["heartbeat_timeout_seconds"] == 40
    assert given["initialization_timeout"] > 100
    assert given["cluster_detection_method"] == "deactivate"


def test_one_process_needs_no_coordinator() -> None:
    connect(None, 1, None, 1.0)
    connect(None, None, None, 1.0)
    assert jax.process_count() == 1


def test_what_ends_one_of_several_processes_makes_it_leave_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without leaving it would wait for the others, and they for it."""
    left: list[int] = []
    monkeypatch.setattr(processes, "alone", lambda: False)
    monkeypatch.setattr(joining, "_leave", left.append)
    for error in (KeyboardInterrupt(), InputError("bad luck"), agreed_error(ExitCode.FAILED, "the disk is full")):
        monkeypatch.setattr(processes, "is_main", lambda: False)

        def body(error: BaseException = error) -> int:
            raise error

        joining.guard(body)
    assert left == [ExitCode.INTERRUPTED, ExitCode.BAD_INPUT, ExitCode.FAILED]
    told = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["interrupted", "error: bad luck"]  # the main process tells what all have heard of


def test_a_full_disk_of_one_process_is_heard_of_by_all() -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/file")

    _, (code, told) = processes._attempt(write)
    assert code == ExitCode.FAILED
    assert told.startswith("the disk of /disk/file is full: make room")
