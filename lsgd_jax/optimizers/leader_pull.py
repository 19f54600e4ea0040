"""The pull toward leaders, as an optax transform (eq. 2 of the paper)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lsgd_jax.optimizers.arithmetic import leafwise
from lsgd_jax.optimizers.distributed_optimizer import check_fraction


class LeaderPullState(NamedTuple):
    """State of `leader_pull`: int32[], the number of updates so far, for schedules."""

    step: jax.Array


def leader_pull(
    local_pull: optax.ScalarOrSchedule, global_pull: optax.ScalarOrSchedule = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the pull of eq. 2 toward a local and a global leader to the updates.

    .. math::
      u \leftarrow u - \lambda (x - \tilde x^j) - \lambda_G (x - \tilde x)

    It goes after the learning rate, since the pull is not scaled by it::

      optax.chain(optax.sgd(0.1), leader_pull(0.01))

    Args:
      local_pull: λ in [0, 1], or an optax schedule of the number of updates.
      global_pull: λ_G in [0, 1], or such a schedule.

    Returns:
      A transform whose `update(updates, state, params, *, local_leader,
      global_leader=None)` takes the leaders' parameters, trees like `params`.

    Raises:
      ValueError: if a pull is outside [0, 1], or in `update` if `params` or the
        leader for a pull that is not 0 is missing.
    """
    for name, strength in (("local_pull", local_pull), ("global_pull", global_pull)):
        if not callable(strength):
            check_fraction(name, strength)

    def init(params: optax.Params) -> LeaderPullState:
        del params
        return LeaderPullState(step=jnp.zeros([], jnp.int32))

    def update(
        updates: optax.Updates,
        state: LeaderPullState,
        params: optax.Params | None = None,
        *,
        local_leader: Any,
        global_leader: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, LeaderPullState]:
        del extra
        if params is None:
            raise ValueError("leader_pull pulls parameters: call update(updates, state, params, ...)")
        pulls = (("local", local_pull, local_leader), ("global", global_pull, global_leader))
        for level, pull, leader in pulls:
            if not callable(pull) and pull == 0:
                continue
            if leader is None:
                raise ValueError(f"{level}_pull is {pull}: call update(..., {level}_leader=its parameters)")
            strength = pull(state.step) if callable(pull) else pull
            updates = _pulled(updates, params, leader, strength)
        return updates, LeaderPullState(step=optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init, update)


def _pulled(updates: Any, params: Any, leader: Any, strength: Any) -> Any:
    return leafwise(lambda u, x, target: u - jnp.asarray(strength, u.dtype) * (x - target), updates, params, leader)
