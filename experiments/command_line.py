"""What the command lines of experiments have in common: help, and one clear line for a mistake."""

import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from absl import flags

from lsgd_jax.training.paths import expanded, why_not_local

# Figures go to files, and look the same everywhere; what a user's file says may not work here.
FIGURES = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
# Checks that one may want of one's own programs: no other is written for them.
LENIENT = {
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": "allow",
}


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
        if ":/" in argument and (reason := why_not_local(argument)):
            raise ValueError(reason)
        if argument.startswith("~"):
            return str(expanded(argument))
        return argument


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


def described(docstring: str | None) -> str:
    """What a script says of itself; nothing under `python -OO`."""
    return (docstring or "").strip()


def describe(table: Iterable[Flag]) -> list[str]:
    """The lines of a help text about flags."""
    lines = []
    for name, kind, default, text in table:
        switch = kind in ("boolean", "automatic")
        shown = f"--[no]{name}" if switch else f"--{name}"
        told = "" if default is None or default == [] or switch else f" (default: {default})"
        lines.append(f"  {shown:<26} {text}{told}")
    return lines


def command(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Makes one line, and exit code 2, of bad input that a `main` raises, and of JAX having nothing to compute on."""

    @functools.wraps(main)
    def guarded(argv: list[str]) -> int:
        try:
            return main(argv)
        except Exception as error:
            reason = _reason(error)
            if reason is None:
                raise
            return refuse(argv, reason)

    return guarded


def _reason(error: Exception) -> str | None:
    """What is wrong with the input or the environment, or None if an error is of neither."""
    from lsgd_jax.training.errors import InputError
    from lsgd_jax.training.processes import devices

    if isinstance(error, InputError):
        return str(error)
    try:
        devices()  # without any, JAX fails wherever it is used first, and may say nothing
    except InputError as missing:
        return str(missing)
    return None


def parse(values: flags.FlagValues, argv: list[str], usage: str) -> int | None:
    """Reads the flags; the exit code if there is nothing left to do, after help or a mistake."""
    _hush_old_jaxlib()
    if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:]):
        from lsgd_jax.output import lasting_output

        with lasting_output():
            print(usage)
        return 0
    try:
        rest = values(argv)
    except flags.Error as error:
        return refuse(argv, str(error))
    if len(rest) > 1:
        return refuse(argv, f"unexpected argument {rest[1]!r}: every setting is a --flag=value")
    _set_for_this_program()
    return None


def _set_for_this_program() -> None:
    """Leaves out of the environment, and of JAX, what is meant for other programs; and lets output last."""
    for name in [name for name in os.environ if name.startswith("TQDM_") and name != "TQDM_DISABLE"]:
        del os.environ[name]
    os.environ.update(FIGURES)

    # Only now: a mistyped flag is told without waiting for JAX.
    import jax

    from lsgd_jax.output import make_output_last

    make_output_last()
    for name, value in LENIENT.items():
        jax.config.update(name, value)


def _hush_old_jaxlib() -> None:
    """Before JAX starts: jaxlib 0.10.1 logs two errors of 2 kB for each program of its cache, though all is well.

    A 1 is no choice of the user's: JAX leaves it to whatever a program starts that has imported it.
    """
    if importlib.metadata.version("jaxlib") == "0.10.1" and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what is fatal is still told


def refuse(argv: list[str], reason: str) -> int:
    """Tells a mistake in one line, after the name of the program; returns its exit code."""
    print(f"{argv[0].rsplit('/', 1)[-1]}: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2
