"""What a user of the command line can get wrong, told in one line."""


class InputError(ValueError):
    """Bad input. Its message is one line: what is wrong, and what to do."""


class AgreedInputError(InputError):
    """Bad input that all processes of a run have heard of; the main process tells it."""


class AllWorkersLostError(RuntimeError):
    """No worker has finite parameters left, and nothing will start one again. Its message is one line."""


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
