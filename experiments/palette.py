"""How each method is drawn: the same in all figures, told apart by colour-blind readers and in grey."""

from typing import Any, NamedTuple

# Okabe and Ito's colours; their yellow is too light for a line on white.
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
VERMILLION, PURPLE, SKY, GREY = "#D55E00", "#CC79A7", "#56B4E9", "#777777"


class Style(NamedTuple):
    """A colour (one for methods of a kind), a marker and a line style of Matplotlib."""

    colour: str
    marker: str
    line: Any


STYLES = {
    "lsgd": Style(BLACK, "o", "-"),
    "easgd": Style(BLUE, "s", "-"),
    "eamsgd": Style(BLUE, "D", "--"),
    "downpour": Style(VERMILLION, "^", "-"),
    "local_sgd": Style(GREEN, "v", "-"),
    "diloco": Style(GREEN, "P", "--"),
    "data_parallel": Style(ORANGE, "X", "-"),
    "grawa": Style(PURPLE, "<", "-"),
    "dppf": Style(SKY, ">", "--"),
    "sgd": Style(GREY, "*", "-."),
    "none": Style(GREY, "h", ":"),
}


# Of further lines of a method, whose markers are hollow.
FURTHER = ("--", ":", "-.")


def line_of(method: str, number: int = 0) -> dict[str, Any]:
    """The arguments of Matplotlib's `plot` for a method's line, or its further ones; LSGD's stand out."""
    colour, marker, line = STYLES[method]
    width, zorder = (2.4, 3) if method == "lsgd" else (1.3, 2)
    hollow = {"markerfacecolor": "white", "linestyle": FURTHER[(number - 1) % len(FURTHER)]} if number else {}
    return {
        **{"color": colour, "marker": marker, "linestyle": line, "label": method},
        **{"linewidth": width, "markersize": 5.5, "zorder": zorder},
        **hollow,
    }
