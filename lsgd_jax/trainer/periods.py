"""How often a run is evaluated and kept, unless it is said."""

import math


def usual_evaluation_period(steps: int) -> int:
    """A twentieth of a run."""
    return max(1, math.ceil(steps / 20))


def usual_checkpoint_period(steps: int) -> int:
    """A fifth of a run."""
    return max(1, math.ceil(steps / 5))
