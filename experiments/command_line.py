"""What the command lines of experiments have in common: help, and one clear line for a mistake."""

import importlib.metadata
import os
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from absl import flags


class Flag(NamedTuple):
    """A flag of a command line.

    Attributes:
      name: its name.
      kind: one of absl's: string, integer, float, boolean, list, multi_string; or path, paths (separated by
        commas): on this machine, with ~ expanded; or automatic: a boolean, or "auto".
      default: its value when it is not given. What None stands for is in the help.
      help: a short line.
    """

    name: str
    kind: str
    default: Any
    help: str


class _Path(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        if ":/" in argument:
            from lsgd_jax.training.paths import why_not_local  # only where needed: it waits for JAX

            if reason := why_not_local(argument):
                raise ValueError(reason)
        return os.path.expanduser(argument)


class _Paths(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [_Path().parse(path) for path in super().parse(argument)]


class _Automatic(flags.BooleanParser):
    def parse(self, argument: Any) -> Any:
        return argument if argument == "auto" else super().parse(argument)


# The parser of a kind that is not absl's, and more arguments of its flags.
OWN_KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "path": (_Path, {}),
    "paths": (_Paths, {}),
    "automatic": (_Automatic, {"boolean": True}),
}


def define(values: flags.FlagValues, table: Iterable[Flag]) -> None:
    """Defines flags."""
    for name, kind, default, text in table:
        if kind in OWN_KINDS:
            parser, options = OWN_KINDS[kind]
            flags.DEFINE(parser(), name, default, text, flag_values=values, **options)
        else:
            getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=values)


def describe(table: Iterable[Flag]) -> list[str]:
    """The lines of a help text about flags."""
    lines = []
    for name, kind, default, text in table:
        switch = kind in ("boolean", "automatic")
        shown = f"--[no]{name}" if switch else f"--{name}"
        told = "" if default is None or default == [] or switch else f" (default: {default})"
        lines.append(f"  {shown:<26} {text}{told}")
    return lines


def parse(values: flags.FlagValues, argv: list[str], usage: str) -> int | None:
    """Reads the flags; the exit code if there is nothing left to do, after help or a mistake."""
    _hush_old_jaxlib()
    if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:]):
        print(usage)
        return 0
    try:
        rest = values(argv)
    except flags.Error as error:
        return refuse(argv, str(error))
    if len(rest) > 1:
        return refuse(argv, f"unexpected argument {rest[1]!r}: every setting is a --flag=value")

    # Only now: a mistyped flag is told without waiting for JAX.
    from lsgd_jax.output import make_output_last

    make_output_last()
    return None


def _hush_old_jaxlib() -> None:
    """Before JAX starts: jaxlib 0.10.1 logs two errors of 2 kB for each program of its cache, though all is well."""
    if importlib.metadata.version("jaxlib") == "0.10.1":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what is fatal is still told


def refuse(argv: list[str], reason: str) -> int:
    """Tells a mistake in one line, after the name of the program; returns its exit code."""
    print(f"{argv[0].rsplit('/', 1)[-1]}: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2
