"""Leader Stochastic Gradient Descent, and its relatives, in JAX."""

from typing import Any

from lsgd_jax.collectives import GROUP, WORKER, Leader, broadcast_from_leader, elect_leader
from lsgd_jax.optimizers.data_parallel import data_parallel
from lsgd_jax.optimizers.distributed_optimizer import Axes, Communication, DistributedOptimizer, Outcome
from lsgd_jax.optimizers.leader_pull import leader_pull
from lsgd_jax.optimizers.lsgd import lsgd
from lsgd_jax.optimizers.periodic import periodic
from lsgd_jax.training.ledger import Ledger, ledger
from lsgd_jax.training.local_steps import Batches
from lsgd_jax.training.topology import Topology
from lsgd_jax.training.train_step import TrainState, init_state, make_train_step

__all__ = [
    "GROUP",
    "WORKER",
    "Axes",
    "Batches",
    "Communication",
    "DistributedOptimizer",
    "Leader",
    "Ledger",
    "Outcome",
    "Topology",
    "TrainState",
    "broadcast_from_leader",
    "data_parallel",
    "elect_leader",
    "init_state",
    "leader_pull",
    "ledger",
    "lsgd",
    "make_train_step",
    "periodic",
]


def __getattr__(name: str) -> Any:
    if name == "load_center":  # needs the extra `train`, which the rest does not
        try:
            from lsgd_jax.training.checkpoints import load_center
        except ImportError as error:
            raise ImportError("load_center needs the extra 'train': pip install 'lsgd_jax[train]'") from error

        return load_center
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
