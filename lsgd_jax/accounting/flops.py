"""Floating-point operations of products and convolutions, read from a trace: what a step costs on any device."""

import math
from typing import Any

import numpy as np
from jax.extend.core import Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from lsgd_jax.accounting.traffic import functions_in


def flops(jaxpr: Jaxpr) -> int:
    """Those of all products and convolutions of a trace whose results are used.

    A multiplication and an addition count as two. What is looped over counts as often as that is known (in a scan),
    else once; of a `cond` the branch with most.
    """
    return _flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _flops(jaxpr: Jaxpr) -> int:
    found = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [_flops(part) for part in functions_in(equation.params)]
        if name == "dot_general":
            found += _of_product(equation)
        elif name == "conv_general_dilated":
            found += _of_convolution(equation)
        elif name == "scan":
            found += equation.params["length"] * sum(inner)
        else:
            found += max(inner, default=0) if name == "cond" else sum(inner)
    return found


def _of_product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, (out,) = equation.invars[0].aval, equation.outvars
    return 2 * out.aval.size * math.prod(lhs.shape[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
    """Without those with zeros, of padding and between dilated pixels."""
    params, (lhs, rhs) = equation.params, (each.aval for each in equation.invars)
    numbers, out = params["dimension_numbers"], equation.outvars[0].aval
    pairs = 1
    for axis in range(len(params["window_strides"])):
        pixels, taps = lhs.shape[numbers.lhs_spec[2 + axis]], rhs.shape[numbers.rhs_spec[2 + axis]]
        outputs = np.arange(out.shape[numbers.out_spec[2 + axis]])[:, None] * params["window_strides"][axis]
        dilation = params["lhs_dilation"][axis]
        places = outputs + np.arange(taps) * params["rhs_dilation"][axis] - params["padding"][axis][0]
        pairs *= int(((places >= 0) & (places <= (pixels - 1) * dilation) & (places % dilation == 0)).sum())
    of_outputs = out.shape[numbers.out_spec[0]] * out.shape[numbers.out_spec[1]]
    return 2 * pairs * of_outputs * rhs.shape[numbers.rhs_spec[1]]
