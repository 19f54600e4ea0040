"""Flags, help, and one line for whatever ends a command line early."""

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from absl import flags

from lsgd_jax.cluster.stopping import StopRequest, ended_by_signals
from lsgd_jax.commands.environment import set_for_this_program, why_jax_cannot_start
from lsgd_jax.errors import ExitCode, ReportedError
from lsgd_jax.files.output import lasting_output
from lsgd_jax.files.paths import expanded, why_not_local


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
        if reason := why_not_local(argument):
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
        flag = f"--[no]{name}" if switch else f"--{name}"
        usually = "" if default is None or default == [] or switch else f" (default: {default})"
        lines.append(f"  {flag:<26} {text}{usually}")
    return lines


def usage_of(script: str, about: str, table: Iterable[Flag], needed: str = "") -> str:
    """The text of --help.

    Args:
      script: its name, in experiments/.
      about: what it says of itself.
      table: its flags.
      needed: those that have to be given, as --run=FOLDER.
    """
    given = " ".join(["usage: python experiments/" + script, *needed.split(), "[--flag=value ...]"])
    return "\n".join([given, "", about, "", *describe(table)])


def command(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """A `main` of which a signal, bad input, or having nothing to compute on make one line and an exit code."""
    return stoppable(functools.wraps(main)(lambda argv, _: main(argv)))


def stoppable(main: Callable[[list[str], StopRequest], int]) -> Callable[[list[str]], int]:
    """`command`, for a `main` that stops by itself where signals ask for it."""

    @functools.wraps(main)
    def guarded(argv: list[str]) -> int:
        with ended_by_signals(program_name(argv)) as stop:
            try:
                return main(argv, stop)
            except ReportedError as error:
                return refuse(argv, str(error), error.exit_code)
            except ModuleNotFoundError as error:
                if importlib.util.find_spec("orbax") is None:  # of the extra `train`
                    return refuse(argv, f"{error.name} is not installed: pip install 'lsgd_jax[train]'")
                raise
            except Exception as error:
                if reason := why_jax_cannot_start(error):
                    return refuse(argv, reason)
                raise

    return guarded


def parse(values: flags.FlagValues, argv: list[str], usage: str) -> int | None:
    """Reads the flags; the exit code if there is nothing left to do, after help or a mistake."""
    if any(argument in ("-h", "-help", "--help", "--helpfull", "--helpshort") for argument in argv[1:]):
        with lasting_output():
            print(usage)
        return 0
    try:
        rest = values(argv)
    except flags.Error as error:
        return refuse(argv, str(error))
    if len(rest) > 1:
        return refuse(argv, f"unexpected argument {rest[1]!r}: every setting is a --flag=value")
    set_for_this_program()
    return None


def refuse(argv: list[str], reason: str, code: ExitCode = ExitCode.BAD_INPUT) -> int:
    """Tells in one line why a program ends, after its name; returns the exit code."""
    print(f"{program_name(argv)}: error: {' '.join(reason.split())}", file=sys.stderr)
    return code


def program_name(argv: list[str]) -> str:
    """What a program is called in what it says: train.py, or lsgd_jax.train."""
    return argv[0].rsplit("/", 1)[-1].removeprefix("-m ")
