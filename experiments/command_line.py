"""What the command lines of experiments have in common: help, and one clear line for a mistake."""

import sys

from absl import flags


def parse(values: flags.FlagValues, argv: list[str], usage: str) -> int | None:
    """Reads the flags; the exit code if there is nothing left to do, after help or a mistake."""
    if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:]):
        print(usage)
        return 0
    try:
        rest = values(argv)
    except flags.Error as error:
        return refuse(argv, str(error))
    if len(rest) > 1:
        return refuse(argv, f"unexpected argument {rest[1]!r}: every setting is a --flag=value")
    return None


def refuse(argv: list[str], reason: str) -> int:
    """Tells a mistake in one line, after the name of the program; returns its exit code."""
    print(f"{argv[0].rsplit('/', 1)[-1]}: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2
