"""Which differences between methods are none: the means over seeds that two standard errors do not tell apart."""

import math
from collections.abc import Mapping

from lsgd_jax.compare.evaluations import Spread

LEAST = 2.0  # standard errors of a difference


def standard_errors(one: Spread, other: Spread) -> float:
    """Welch's t: the difference of two means in standard errors of it; NaN where either has one seed.

    Welch: "The generalization of 'Student's' problem when several different population
    variances are involved", Biometrika 34, 1947. The seeds of the two need not be as many,
    and that both have the same ones is not made use of.
    """
    difference = abs(one.mean - other.mean)
    error = math.hypot(*(of.deviation / math.sqrt(of.seeds) for of in (one, other)))
    if error == 0:
        return math.inf if difference else 0.0
    return difference / error


def not_apart(spreads: Mapping[str, Spread]) -> dict[str, list[str]]:
    """For each method those that it differs from by less than `LEAST` standard errors, or by what one seed cannot tell.

    Args:
      spreads: of each method's figure over its seeds.
    """
    return {
        name: [
            other for other in spreads if other != name and not standard_errors(spreads[name], spreads[other]) >= LEAST
        ]
        for name in spreads
    }
