"""What the experiments on the paper's theory have in common: their command line, claims, and the exit code."""

import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from lsgd_jax.commands.command_line import Flag, command, define, parse, usage_of
from lsgd_jax.errors import InputError
from lsgd_jax.files.writable import make_writable


class Claim(NamedTuple):
    """A claim, and what became of it.

    Attributes:
      text: the claim, with where it is made.
      measured: what was measured.
      held: whether it held.
      expected: whether it should hold; False where the experiment shows where a claim ends.
    """

    text: str
    measured: str
    held: bool
    expected: bool = True


def experiment(
    file: str,
    about: str,
    table: Sequence[Flag],
    run: Callable[..., int],
    *,
    least: Mapping[str, int],
    check: Callable[..., None] = lambda **values: None,
) -> Callable[[list[str]], int]:
    """Makes the `main` of a script: flags in, files in --workdir and an exit code out.

    Args:
      file: of the script.
      about: what it says of itself, in its help.
      table: its flags, --workdir among them.
      run: `(workdir, **flags) -> exit code`.
      least: of whole numbers, the smallest value that each may have.
      check: `(**flags)`, raises InputError for what else cannot be.
    """
    values = flags.FlagValues()  # its own: those of other scripts have the same names
    define(values, table)

    @command
    def main(argv: list[str]) -> int:
        """Runs the command line and returns its exit code."""
        done = parse(values, argv, usage_of(pathlib.Path(file).name, about, table))
        if done is not None:
            return done
        given: dict[str, Any] = {flag.name: values[flag.name].value for flag in table if flag.name != "workdir"}
        for name, smallest in least.items():
            if given[name] < smallest:
                raise InputError(f"--{name}={given[name]}: must be at least {smallest}")
        check(**given)
        workdir = pathlib.Path(str(values["workdir"].value))
        make_writable(workdir)
        return run(workdir, **given)

    return main


def conclude(workdir: pathlib.Path, claims: Iterable[Claim]) -> int:
    """Prints the table of claims, writes claims.json, and returns the exit code: 1 if one that should hold does not."""
    claims = list(claims)
    print(table(claims))
    text = json.dumps([claim._asdict() | {"held": bool(claim.held)} for claim in claims], indent=2)
    (workdir / "claims.json").write_text(text + "\n")
    return int(any(claim.expected and not claim.held for claim in claims))


def table(claims: Sequence[Claim]) -> str:
    """The claims in Markdown."""
    lines = ["| claim | measured | held |", "| --- | --- | --- |"]
    for claim in claims:
        held = "yes" if claim.held else "**no**" if claim.expected else "no, as expected"
        lines.append(f"| {claim.text} | {claim.measured} | {held} |")
    return "\n".join(lines)


def share(held: Collection[Any]) -> str:
    """Of how many draws a claim holds, with the 95 % interval of the share."""
    count, of = sum(map(bool, held)), len(held)
    low, high = interval(count, of)
    return f"{count} of {of} draws (95 %: {low:.2f} to {high:.2f})"


def interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share: Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22, 1927."""
    z, observed = 1.96, count / of
    middle = (observed + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * math.sqrt(observed * (1 - observed) / of + z**2 / (4 * of**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def write_csv(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows as CSV, floats with 8 digits."""
    from lsgd_jax.files import files

    files.write_csv(path, columns, rows, digits=8)
