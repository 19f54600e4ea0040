"""What `lsgd_jax` gives to those who use it, by the names in its `__all__`."""

# ruff: noqa: F401
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
