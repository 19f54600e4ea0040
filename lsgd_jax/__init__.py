"""Leader Stochastic Gradient Descent, and its relatives, in JAX."""

from typing import Any

from lsgd_jax.collectives import GROUP, WORKER, Leader, broadcast_from_leader, elect_leader
from lsgd_jax.optimizers.data_parallel import data_parallel
from lsgd_jax.optimizers.diloco import diloco
from lsgd_jax.optimizers.distributed_optimizer import Axes, Communication, DistributedOptimizer, Outcome
from lsgd_jax.optimizers.downpour import downpour
from lsgd_jax.optimizers.dppf import dppf
from lsgd_jax.optimizers.eamsgd import eamsgd
from lsgd_jax.optimizers.easgd import easgd
from lsgd_jax.optimizers.grawa import grawa
from lsgd_jax.optimizers.independent import independent
from lsgd_jax.optimizers.leader_pull import leader_pull
from lsgd_jax.optimizers.local_sgd import local_sgd
from lsgd_jax.optimizers.lsgd import lsgd
from lsgd_jax.optimizers.periodic import periodic
from lsgd_jax.training.ledger import Ledger, ledger
from lsgd_jax.training.local_steps import Batches
from lsgd_jax.training.state import TrainState, init_state
from lsgd_jax.training.topology import Topology
from lsgd_jax.training.train_step import make_train_step

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
    "diloco",
    "downpour",
    "dppf",
    "eamsgd",
    "easgd",
    "elect_leader",
    "grawa",
    "independent",
    "init_state",
    "leader_pull",
    "ledger",
    "local_sgd",
    "lsgd",
    "make_train_step",
    "periodic",
]


def __getattr__(name: str) -> Any:
    if name == "load_center":  # needs the extra `train`, which the rest does not
        try:
            from lsgd_jax.training.center import load_center
        except ImportError as error:
            raise ImportError("load_center needs the extra 'train': pip install 'lsgd_jax[train]'") from error

        return load_center
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
