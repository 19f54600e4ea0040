"""The other side of `peer_torch.py`: one network on many workers, as a good PyTorch user would write it.

Run by `peer_torch.py`, which gives the workload as JSON; needs torch alone. First it answers a line of JSON:
its version, the parameters of a network and the names of its alternatives. Then it reads the name of one and a
number of steps a line, takes so many steps on every worker, and answers with the seconds it took. Batches lie
ready in the format that each alternative likes best: nothing is drawn, augmented or normalized. What is
compiled has been compiled before the first answer.
"""

import functools
import json
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch_nets import parameter_count
from torch_workers import FORMATS, ImageWorker, TextWorker, Worker

MakeWorker = Callable[[], Worker]
Run = Callable[[int], None]


def sequential(workers: int, make: MakeWorker) -> Run:
    """One after the other in this process, on all cores; averaged at the end."""
    all_workers = [make() for _ in range(workers)]
    for worker in all_workers:
        worker.step()  # compiles, where there is something to compile

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


def processes(workers: int, make: MakeWorker) -> Run:
    """One process a worker; averaged at the end over Gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = []
    for rank in range(workers):
        here, there = context.Pipe()
        context.Process(target=serve, args=(rank, workers, port, there, make), daemon=True).start()
        pipes.append(here)
    for pipe in pipes:
        pipe.recv()

    def run(steps: int) -> None:
        for pipe in pipes:
            pipe.send(steps)
        for pipe in pipes:
            pipe.recv()

    return run


def serve(rank: int, workers: int, port: int, pipe: Any, make: MakeWorker) -> None:
    """What each process does."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    worker = make()
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


def image_alternatives(workload: dict[str, Any]) -> dict[str, Run]:
    """Both ways to run workers in both memory formats."""
    make = functools.partial(ImageWorker, workload["batch_size"])
    return {
        f"torch {dtype} {way.__name__} {layout}": way(workload["workers"], functools.partial(make, layout, dtype))
        for dtype in workload["dtypes"]
        for way in (sequential, processes)
        for layout in FORMATS
    }


def text_alternatives(workload: dict[str, Any]) -> dict[str, Run]:
    """Both ways to run workers, and compiled where they share a process.

    `torch.compile` leaves `nn.LSTM` as it is, so that there is nothing to compile in an LSTM.
    """
    ways: list[tuple[Callable[[int, MakeWorker], Run], str]] = [(sequential, "eager"), (processes, "eager")]
    if workload["model"] != "lstm":
        ways.append((sequential, "compiled"))
    return {
        f"torch {dtype} {way.__name__} {mode}": way(
            workload["workers"], functools.partial(TextWorker, workload, mode, dtype)
        )
        for dtype in workload["dtypes"]
        for way, mode in ways
    }


def main() -> None:
    """Answers what there is, and then the seconds of each alternative that is asked for."""
    workload = json.loads(sys.argv[1])
    torch.manual_seed(0)
    if workload["model"] == "cnn7":
        net, alternatives = ImageWorker(1, "NCHW", "float32").net, image_alternatives(workload)
    else:
        net, alternatives = TextWorker(workload, "eager", "float32").net, text_alternatives(workload)
    answer = {"version": torch.__version__, "parameters": parameter_count(net), "alternatives": list(alternatives)}
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        name, steps = line.rstrip("\n").split("|")
        start = time.perf_counter()
        alternatives[name](int(steps))
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
