"""A function in two halves: up to what it hears last, and what it makes of that."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun


def up_to_last_collective(function: Callable[..., Any], *args: Any) -> tuple[list[jax.Array], Callable[..., Any]]:
    """Does what collectives in a function need, and these.

    What is computed from them alone, such as taking a message apart, is left for later. Compilers that begin it as soon
    as it can be would else wait for the message.

    Args:
      function: of pytrees of arrays.
      *args: its arguments.

    Returns:
      What is left to compute from, and `rest`: `rest(*them)` is `function(*args)`, and communicates nothing.
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    jaxpr, structure = closed.jaxpr, jax.tree.structure(shape)
    needed, now, later = set[Any](), list[JaxprEqn](), list[JaxprEqn]()
    for equation in reversed(jaxpr.eqns):
        if _communicates(equation) or needed.intersection(equation.outvars):
            needed.update(_variables(equation.invars))
            now.append(equation)
        else:
            later.append(equation)
    read = dict.fromkeys(_variables([*(var for equation in later for var in equation.invars), *jaxpr.outvars]))
    made = {var for equation in later for var in equation.outvars}
    kept = [var for var in read if var not in made]

    def part(inputs: Any, outputs: Any, equations: list[JaxprEqn], constants: Any = (), values: Any = ()) -> Any:
        names = jaxpr.debug_info.with_unknown_names()
        effects = frozenset().union(*(equation.effects for equation in equations))
        return jaxpr_as_fun(ClosedJaxpr(Jaxpr(constants, inputs, outputs, equations, effects, names), values))

    first = part(jaxpr.invars, kept, now[::-1], jaxpr.constvars, closed.consts)
    last = part(kept, jaxpr.outvars, later[::-1])
    return list(first(*jax.tree.leaves(args))), lambda *heard: jax.tree.unflatten(structure, last(*heard))


def _communicates(equation: JaxprEqn) -> bool:
    """By the names of axes that it is bound to: itself, or what it calls."""
    return bool(equation.effects) or "axis_name" in equation.params


def _variables(atoms: Any) -> list[Any]:
    return [atom for atom in atoms if isinstance(atom, Var)]
