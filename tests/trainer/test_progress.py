"""What a person sees during a run: a bar on a terminal, plain lines elsewhere."""

import os
import pty
import subprocess
import sys

PROGRAM = """
from lsgd_jax.trainer.progress import Progress
import time
with Progress(0, 20, "images", 256) as progress:
    time.sleep(0.2)
    progress.update(10, 0.5, 3)
    time.sleep(0.2)
    progress.write("worker 1 starts again")
    with progress.paused():
        time.sleep(0.2)
    progress.update(20, 0.25, None)
"""


def test_on_a_terminal_there_is_a_bar_even_if_the_terminal_claims_to_have_no_size() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", PROGRAM], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    assert "images/s, loss 0.5000, leader 3" in shown
    assert "50%" in shown
    assert "worker 1 starts again" in shown
    assert "loss 0.2500" in shown


def test_elsewhere_there_are_plain_lines() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, check=True)
    first, told, last = done.stderr.splitlines()
    assert first.startswith("step 10/20, "), "at once: it trains"
    assert first.endswith("images/s, loss 0.5000, leader 3")
    assert told == "worker 1 starts again"
    assert last.startswith("step 20/20, ")
    assert last.endswith("images/s, loss 0.2500")
