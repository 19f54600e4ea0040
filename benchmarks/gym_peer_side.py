"""EXO Gym's DiLoCo beside `peer_torch.py`: one process a node, on the network and batches of `torch_peer_side.py`.

Run by `peer_torch.py --gym=PATH`, with PATH, a checkout of https://github.com/exo-explore/gym, in PYTHONPATH.

What is measured: its `Trainer.fit` runs once and without end. After every round of H steps, which ends with the
communication, its rank 0 stops in the strategy until `peer_torch.py` asks for the next one; the other nodes wait at
the barrier that EXO Gym has after each step. The seconds of a round are those that rank 0 takes from one stop to the
next: drawing and collating batches, H steps with a barrier each, and one communication. Start-up is before the first
stop, and with it the round of H + 1 steps that EXO Gym's first one is. Evaluation and logging are switched off
(`val_size=0`, `disable_logging=True`). Cores are divided among the nodes, as it would not do itself.
"""

import json
import logging
import multiprocessing.connection as connection
import os
import pathlib
import sys
import tempfile
import threading
import time
from typing import Any, TextIO

import exogym.trainer
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from exogym.strategy import DiLoCoStrategy, OptimSpec
from torch import nn
from torch_nets import language_net, next_token_loss, parameter_count

WITHOUT_END = 2**40


def join(backend: str, rank: int, world_size: int, **ignored: Any) -> None:
    """Connects a node. EXO Gym's own names the loopback interface of macOS, lo0, which Linux has not."""
    del ignored
    dist.init_process_group(backend, rank=rank, world_size=world_size)


# Every node imports this file before it starts.
exogym.trainer.init_process_group_portsafe = join


class WithLoss(nn.Module):
    """A language model as EXO Gym wants it: from a batch to its loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return next_token_loss(self.net, windows)


class Windows(torch.utils.data.Dataset):
    """Windows of random bytes, int64[length + 1] each."""

    def __init__(self, count: int, vocabulary: int, length: int) -> None:
        self.text = torch.randint(0, vocabulary, (count + length,))
        self.count, self.length = count, length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.text[i : i + self.length + 1]


class InRounds(DiLoCoStrategy):
    """EXO Gym's DiLoCo, which stops after each round and tells how long it took."""

    def __init__(self, address: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.address = address
        self._started = 0.0

    def _init_node(self, model: nn.Module, rank: int, num_nodes: int) -> None:
        super()._init_node(model, rank, num_nodes)
        self._orders = connection.Client(self.address) if rank == 0 else None

    def step(self) -> None:
        """A step, and after one that has communicated a stop."""
        communicates = self.local_step > 0 and self.local_step % self.H == 0
        super().step()
        if communicates and self._orders is not None:
            first = self.local_step <= self.H + 1
            self._orders.send(0.0 if first else time.perf_counter() - self._started)
            try:
                self._orders.recv()
            except EOFError:  # nobody asks any more
                os._exit(0)
            self._started = time.perf_counter()


def train(workload: dict[str, Any], address: str) -> None:
    """Trains without end."""
    net = WithLoss(language_net(workload))
    windows = Windows(100_000, workload["vocabulary"], workload["length"])
    inner = OptimSpec(
        torch.optim.AdamW, lr=workload["learning_rate"], weight_decay=workload["weight_decay"], fused=True
    )
    exogym.trainer.Trainer(net, windows, windows, device="cpu").fit(
        num_epochs=1,
        max_steps=WITHOUT_END,
        strategy=InRounds(address, optim_spec=inner, H=workload["period"]),
        num_nodes=workload["workers"],
        batch_size=workload["batch_size"],
        minibatch_size=workload["batch_size"],
        val_size=0,
        val_interval=WITHOUT_END,
        disable_logging=True,
    )


def main() -> None:
    """Trains, while a thread of its own answers what there is, and then the seconds of each round that is asked for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what EXO Gym prints is no answer
    workload = json.loads(sys.argv[1])
    torch.manual_seed(0)
    logging.getLogger("torch.multiprocessing").setLevel(logging.ERROR)  # that the nodes end together is no news
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workload["workers"])))
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        address = str(pathlib.Path(folder) / "orders")
        with connection.Listener(address) as listener:
            threading.Thread(target=answer, args=(listener, answers, workload, ended), daemon=True).start()
            try:
                train(workload, address)
            except (mp.ProcessExitedException, mp.ProcessRaisedException):  # as rank 0 has left
                if not ended.is_set():
                    raise


def answer(listener: connection.Listener, answers: TextIO, workload: dict[str, Any], ended: threading.Event) -> None:
    """A line for each question, until there are none."""
    with listener.accept() as rank0:
        rank0.recv()
        first = {
            "version": torch.__version__,
            "parameters": parameter_count(language_net(workload)),
            "alternatives": ["EXO Gym diloco float32"],
        }
        print(json.dumps(first), file=answers, flush=True)
        for _ in sys.stdin:
            rank0.send("go on")
            print(rank0.recv(), file=answers, flush=True)
        ended.set()


if __name__ == "__main__":
    main()
