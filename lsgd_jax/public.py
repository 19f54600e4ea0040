"""What `lsgd_jax` gives to those who use it, by the names in its `__all__`."""

# ruff: noqa: I001
# `a as a` is what strict type checkers take for public.
from lsgd_jax.collectives import (
    GROUP as GROUP,
    WORKER as WORKER,
    Leader as Leader,
    broadcast_from_leader as broadcast_from_leader,
    elect_leader as elect_leader,
)
from lsgd_jax.collectives.partition import gathered as gathered
from lsgd_jax.optimizers.compressed import compressed as compressed
from lsgd_jax.optimizers.data_parallel import data_parallel as data_parallel
from lsgd_jax.optimizers.diloco import diloco as diloco
from lsgd_jax.optimizers.distributed_optimizer import (
    Axes as Axes,
    Communication as Communication,
    DistributedOptimizer as DistributedOptimizer,
    Outcome as Outcome,
)
from lsgd_jax.optimizers.downpour import downpour as downpour
from lsgd_jax.optimizers.dppf import dppf as dppf
from lsgd_jax.optimizers.eamsgd import eamsgd as eamsgd
from lsgd_jax.optimizers.easgd import easgd as easgd
from lsgd_jax.optimizers.fragments import fragments as fragments
from lsgd_jax.optimizers.grawa import grawa as grawa
from lsgd_jax.optimizers.independent import independent as independent
from lsgd_jax.optimizers.leader_pull import leader_pull as leader_pull
from lsgd_jax.optimizers.local_sgd import local_sgd as local_sgd
from lsgd_jax.optimizers.lsgd import lsgd as lsgd
from lsgd_jax.optimizers.overlapped import overlapped as overlapped
from lsgd_jax.optimizers.periodic import periodic as periodic
from lsgd_jax.optimizers.sending import FromLeader as FromLeader, MeanOf as MeanOf
from lsgd_jax.accounting.ledger import Ledger as Ledger, ledger as ledger
from lsgd_jax.engine.local_steps import Batches as Batches
from lsgd_jax.engine.state import TrainState as TrainState, init_state as init_state
from lsgd_jax.engine.topology import Topology as Topology
from lsgd_jax.engine.train_step import make_train_step as make_train_step
