"""When a budget of bytes or predicted seconds is met."""

# Methods that communicate as often send the same but for a score or a count: a budget may be exceeded by so much of it.
SLACK = 0.01


def most(budget: float) -> float:
    """What may be spent, so that the few bytes of an election do not cost a method an evaluation."""
    return (1 + SLACK) * budget
