"""Leader Stochastic Gradient Descent, and its relatives, in JAX."""

# ruff: noqa: F403, F405
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsgd_jax.public import *
    from lsgd_jax.public_trainer import *

__all__ = [
    "GROUP",
    "WORKER",
    "Axes",
    "Batches",
    "Communication",
    "DistributedOptimizer",
    "FromLeader",
    "Leader",
    "Ledger",
    "MeanOf",
    "Outcome",
    "Topology",
    "TrainState",
    "broadcast_from_leader",
    "compressed",
    "data_parallel",
    "diloco",
    "downpour",
    "dppf",
    "eamsgd",
    "easgd",
    "elect_leader",
    "fragments",
    "gathered",
    "grawa",
    "independent",
    "init_state",
    "leader_pull",
    "ledger",
    "local_sgd",
    "lsgd",
    "make_train_step",
    "overlapped",
    "periodic",
]


OF_TRAINER = (
    "Result",
    "Schedule",
    "Task",
    "Trainer",
    "export_center",
    "follow_factor",
    "from_arrays",
    "from_function",
    "from_grain",
    "import_center",
    "load_center",
    "load_model",
    "nnx_task",
)

if importlib.util.find_spec("orbax") is not None:  # of the extra `train`: `import *` takes what can be imported
    __all__ += OF_TRAINER


def __getattr__(name: str) -> Any:
    """Imports them when the first is used: the launcher, and what hears signals, cannot wait for JAX."""
    if name in OF_TRAINER:  # which need the extra `train`, as the rest does not
        try:
            import lsgd_jax.public_trainer as of_trainer
        except ImportError as error:
            raise ImportError(f"{name} needs the extra 'train': pip install 'lsgd_jax[train]'") from error
        return getattr(of_trainer, name)
    if name in __all__ or name in ("collectives", "optimizers", "engine", "accounting"):
        import lsgd_jax.public as public

        return getattr(public, name) if name in __all__ else sys.modules[f"{__name__}.{name}"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*{*globals(), *__all__, *OF_TRAINER}]
