"""A run that outlives its processes: they die, hang and come, and the others go on."""

import collections
import csv
import os
import pathlib
import re
import signal

import pytest
from started_processes import ROOT, started
from thorough import thorough

from lsgd_jax.cluster.generations import CANNOT_BE_INTERRUPTED
from lsgd_jax.trainer.live import GENERATIONS
from lsgd_jax.trainer.records import read_leaders, read_metrics

pytestmark = pytest.mark.processes

PROCESSES = 4
FLAGS = [
    "--model=mlp", "--batch_size=16", "--local_period=4", "--global_period=8",
    "--learning_rate=0.02", "--steps=240", "--eval_every=60", "--checkpoint_every=120", "--heartbeat_timeout=4",
]  # fmt: skip
# Who dies where: two at once in a call, and one hangs; before that, in an evaluation and writing a checkpoint.
IN_CALLS = ("call-140.1", "call-140.3", "stop-180.2")
EVERYWHERE = ("evaluate.2", "digests.0", *IN_CALLS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deaths", "missed"),
    [(IN_CALLS, ["1 3", "2"]), thorough(EVERYWHERE, ["2", "0", "1 3", "2"])],
    ids=["in calls", "everywhere"],
)
# One group is a shape of its own: all messages go the same way, and a survivor must not take one for another.
@pytest.mark.parametrize("groups", [2, thorough(1)])
def test_processes_die_hang_and_come_again_and_the_others_go_on(
    groups: int, deaths: tuple[str, ...], missed: list[str], tmp_path: pathlib.Path
) -> None:
    workdir, orders = tmp_path / "run", tmp_path / "orders"
    orders.mkdir()
    for death in deaths:
        (orders / death).touch()
    script = str(ROOT / "tests" / "cluster" / "dying.py")
    launcher = ["-m", "lsgd_jax.launch", f"--processes={PROCESSES}", "--live", f"--max_restarts={2 * len(deaths)}"]
    lines = []
    shape = [f"--groups={groups}", f"--workers={PROCESSES // groups}"]
    with started(*launcher, script, *FLAGS, *shape, f"--workdir={workdir}", DEATHS=str(orders)) as run:
        assert run.stdout is not None
        pids = {}
        for line in run.stdout:
            lines.append(line)
            if found := re.search(r"process (\d) is (\d+)", line):
                pids[found[1]] = int(found[2])
            if "lost: process 2:" in line and not (orders / "stop-180.2").exists():
                os.kill(pids["2"], signal.SIGCONT)  # it wakes up, and is no member any more
        assert run.wait() == 0, "".join(lines)
    said = "".join(lines)

    assert not list(orders.iterdir()), said
    starts = collections.Counter(re.findall(r"process (\d) is \d+", said))
    stuck = said.count(CANNOT_BE_INTERRUPTED)  # where Gloo has missed the end of a connection, which is seldom
    killed = [death[-1] for death in deaths if not death.startswith("stop")]  # who hung wakes up as it was
    assert starts >= collections.Counter(["0", "1", "2", "3", *killed]), said
    assert starts.total() == PROCESSES + len(killed) + stuck, f"nobody else has been started again: {said}"
    assert [row["step"] for row in read_metrics(workdir)] == [60, 120, 180, 240]
    leaders = read_leaders(workdir)
    elections = collections.Counter((row.step, row.level, row.group) for row in leaders)
    assert set(elections.values()) == {1}
    assert {row.step for row in leaders if row.level == "global"} == set(range(8, 241, 8))
    with (workdir / GENERATIONS).open(newline="") as file:
        generations = list(csv.DictReader(file))
    lost = [row["lost"] for row in generations if row["lost"]]
    assert collections.Counter(" ".join(lost).split()) >= collections.Counter(" ".join(missed).split()), said
    assert lost == missed or stuck
    assert generations[-1]["processes"] == "0 1 2 3"
    assert {(row["groups"], row["workers"]) for row in generations if len(row["processes"].split()) == 3} == {
        ("1", "3")
    }
    for noise in ("Traceback", "terminate called", "coordination_service"):
        assert noise not in said
