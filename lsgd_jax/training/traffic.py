"""How many bytes a run has sent, from the definition of its method.

A broadcast counts as the leader's tree sent once to each of the others, a sum over
workers as a ring: what the methods need, not what a compiler makes of it.
"""

from typing import Any

from lsgd_jax.optimizers.distributed_optimizer import DistributedOptimizer, schedule
from lsgd_jax.training.topology import Topology


def bytes_sent(method: DistributedOptimizer, topology: Topology, params: Any, step: int) -> int:
    """Bytes that all workers together have sent in the first `step` local steps.

    Args:
      method: the method.
      topology: the groups and workers.
      params: one worker's parameters, or their shapes.
      step: local steps of each worker.
    """
    total = step * method.gradient_bytes(params, topology.size)
    for communication in schedule(method, topology.groups):
        times = step // communication.period
        if communication.level == "global":
            total += times * communication.bytes_sent(params, topology.size)
        else:
            total += times * topology.groups * communication.bytes_sent(params, topology.workers)
    return total
