"""The other side of `peer_torch.py`: cnn7 on many workers, as a good PyTorch user would write it.

Run by `peer_torch.py`; needs torch alone. Reads the name of an alternative and a number of steps a line,
takes so many steps on every worker, and answers with the seconds it took. Batches lie ready in the format
that each alternative likes best: nothing is drawn, augmented or normalized.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import nn


class Cnn7(nn.Module):
    """The paper's 7-layer CNN, as in `lsgd_jax.models`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 64, 5), nn.Conv2d(64, 128, 5), nn.Conv2d(128, 64, 3)
        self.dense, self.logits = nn.Linear(256, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.conv3(x)).flatten(1)
        return self.logits(F.dropout(F.relu(self.dense(x)), 0.5))


class Worker:
    """A model, its optimizer and its batch."""

    def __init__(self, batch_size: int, memory_format: torch.memory_format, dtype: torch.dtype) -> None:
        self.net = Cnn7().to(memory_format=memory_format)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=True
        )
        self.images = torch.randn(batch_size, 3, 28, 28).contiguous(memory_format=memory_format)
        self.labels = torch.randint(0, 10, (batch_size,))
        self.dtype = dtype

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = F.cross_entropy(self.net(self.images), self.labels)
        loss.backward()
        self.optimizer.step()


FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def sequential(workers: int, batch_size: int, memory_format: Any, dtype: Any) -> Callable[[int], None]:
    """One after the other in this process, on all cores; averaged at the end."""
    all_workers = [Worker(batch_size, memory_format, dtype) for _ in range(workers)]

    def run(steps: int) -> None:
        for worker in all_workers:
            for _ in range(steps):
                worker.step()
        with torch.no_grad():
            for parameters in zip(*(worker.net.parameters() for worker in all_workers), strict=True):
                mean = torch.stack(parameters).mean(0)
                for parameter in parameters:
                    parameter.copy_(mean)

    return run


def processes(workers: int, batch_size: int, memory_format: Any, dtype: Any) -> Callable[[int], None]:
    """One process a worker; averaged at the end over Gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(workers):
        here, there = context.Pipe()
        arguments = (rank, workers, port, there, batch_size, str(memory_format), str(dtype))
        context.Process(target=serve, args=arguments, daemon=True).start()
        pipes.append(here)
    for pipe in pipes:
        pipe.recv()

    def run(steps: int) -> None:
        for pipe in pipes:
            pipe.send(steps)
        for pipe in pipes:
            pipe.recv()

    return run


def serve(rank: int, workers: int, port: int, pipe: Any, batch_size: int, memory_format: str, dtype: str) -> None:
    """What each process does."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    worker = Worker(
        batch_size,
        next(value for value in FORMATS.values() if str(value) == memory_format),
        next(value for value in DTYPES.values() if str(value) == dtype),
    )
    pipe.send("ready")
    while True:
        try:
            steps = pipe.recv()
        except EOFError:  # the parent has ended
            return
        for _ in range(steps):
            worker.step()
        with torch.no_grad():
            parameters = list(worker.net.parameters())
            flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
            dist.all_reduce(flat)
            for parameter, mean in zip(
                parameters, (flat / workers).split([p.numel() for p in parameters]), strict=True
            ):
                parameter.copy_(mean.view(parameter.shape))
        pipe.send("done")


def main() -> None:
    """Answers the names of all alternatives, and then the seconds of each that is asked for."""
    workers, batch_size = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    alternatives = {
        f"torch {dtype} {way.__name__} {layout}": way(workers, batch_size, FORMATS[layout], DTYPES[dtype])
        for dtype in DTYPES
        for way in (sequential, processes)
        for layout in FORMATS
    }
    print(f"{torch.__version__}|{'|'.join(alternatives)}", flush=True)
    for line in sys.stdin:
        name, steps = line.rstrip("\n").split("|")
        start = time.perf_counter()
        alternatives[name](int(steps))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
