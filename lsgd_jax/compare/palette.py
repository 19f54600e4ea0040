"""How each method is drawn: the same in all figures, told apart by colour-blind readers and in grey."""

from collections.abc import Collection, Iterable
from typing import Any

from lsgd_jax.config.methods import METHODS, Style
from lsgd_jax.trainer.colours import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

STYLES = {name: method.style for name, method in METHODS.items()}

# Of further lines of a method, whose markers are hollow.
FURTHER = ("--", ":", "-.")
# Of methods that are not in the palette: no two of the first 28 have both in common, nor a marker with one above.
SPARE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
SPARE_MARKERS = ("p", "d", "H", "8")


def in_order(methods: Iterable[str]) -> list[str]:
    """Each once: those of the palette in its order, then all others by name."""
    given = set(methods)
    return [*(name for name in STYLES if name in given), *sorted(given - STYLES.keys())]


def style_of(method: str, among: Collection[str] = ()) -> Style:
    """A method's style; of one that is not in the palette, told apart from those of the others in the figure.

    Args:
      method: its name.
      among: the names of all methods in the figure.
    """
    if method in STYLES:
        return STYLES[method]
    at = sorted({method, *among} - STYLES.keys()).index(method)
    colour, marker = SPARE_COLOURS[at % len(SPARE_COLOURS)], SPARE_MARKERS[at % len(SPARE_MARKERS)]
    return Style(colour, marker, ("-", *FURTHER)[at // (len(SPARE_COLOURS) * len(SPARE_MARKERS)) % 4])


def line_of(method: str, number: int = 0, among: Collection[str] = ()) -> dict[str, Any]:
    """The arguments of Matplotlib's `plot` for a method's line, or its further ones; LSGD's stand out."""
    colour, marker, line = style_of(method, among)
    width, zorder = (2.4, 3) if method == "lsgd" else (1.3, 2)
    hollow = {"markerfacecolor": "white", "linestyle": FURTHER[(number - 1) % len(FURTHER)]} if number else {}
    return {
        **{"color": colour, "marker": marker, "linestyle": line, "label": method},
        **{"linewidth": width, "markersize": 5.5, "zorder": zorder},
        **hollow,
    }
