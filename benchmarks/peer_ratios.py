"""Rates of alternatives, and what they are of PyTorch's best."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from measure import Timing, print_table

Row = dict[str, Any]


class Rate(NamedTuple):
    """Units a second over the repeats."""

    median: float
    slowest: float
    fastest: float


def rate(units: int, timing: Timing) -> Rate:
    """The rate of what handles so many units in a call."""
    return Rate(units / timing.median, units / timing.high, units / timing.low)


def rows(rates: Mapping[str, Rate], unit: str) -> list[Row]:
    """One row an alternative: its rates, and the ratios of medians to PyTorch's best.

    Args:
      rates: by names that say their dtype; those of PyTorch begin with "torch".
      unit: what the rates count.
    """

    def of_best(name: str, dtype: str) -> float | None:
        best = [rate.median for each, rate in rates.items() if each.startswith("torch ") and dtype in each]
        return rates[name].median / max(best) if best else None

    return [
        {
            "what": name,
            f"{unit}_per_second": rate.median,
            "slowest": rate.slowest,
            "fastest": rate.fastest,
            "of_best_torch": of_best(name, "bfloat16" if "bfloat16" in name else "float32"),
            "of_best_torch_float32": of_best(name, "float32"),
        }
        for name, rate in rates.items()
    ]


def of(rows: Sequence[Row], unit: str, name: str, other: str) -> float:
    """The ratio of the medians of two alternatives."""
    medians = {row["what"]: row[f"{unit}_per_second"] for row in rows}
    return medians[name] / medians[other]


def show(rows: Sequence[Row], title: str, unit: str) -> None:
    """Prints a table."""
    ratios = ("of_best_torch", "of_best_torch_float32")
    shown = [
        [
            row["what"],
            *(f"{row[key]:,.0f}" for key in (f"{unit}_per_second", "slowest", "fastest")),
            *("" if row[key] is None else f"{row[key]:.2f}" for key in ratios),
        ]
        for row in rows
    ]
    print_table((title, "median", "slowest", "fastest", "of PyTorch's best", "of its best in float32"), shown)
