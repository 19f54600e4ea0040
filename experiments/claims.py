"""What the experiments on the paper's theory have in common: claims, their table, and the exit code."""

import csv
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


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


def write_csv(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows as CSV, floats with 8 digits."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(columns)
        lines.writerows([f"{value:.8g}" if isinstance(value, float) else value for value in row] for row in rows)
