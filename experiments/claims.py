"""What the experiments on the paper's theory have in common: claims, their table, and the exit code."""

import json
import math
import pathlib
from collections.abc import Collection, Iterable, Sequence
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
