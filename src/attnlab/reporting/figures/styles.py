"""The style of every figure: a colour, a line and a marker per variant, and matplotlib's settings.

A variant keeps its style in every chart. Nothing depends on colour alone.
"""

import io
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito 2008, distinguishable by the colour-blind (without yellow, too light for lines on
# white), then darker and paler hues after Tol 2021 for studies with more variants
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    *("#882255", "#999933", "#332288", "#8C564B", "#44AA99", "#AA4499", "#7F7F7F"),
)
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "p", "X", "P", "h")
INK, GREY, GRID, PAPER, SHADE = "#000000", "#666666", "#E4E4E4", "#FFFFFF", "#F2F4F7"

DOTS_PER_INCH = 150
SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,  # every tick shows its whole value
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a variant's name is a dollar sign
    "svg.hashsalt": "attnlab",  # the same figure gives the same bytes
}
PAGE_SETTINGS: Any = {
    "svg.fonttype": "none",  # letters stay letters: to find, to copy, to read aloud
    "axes.titlesize": 11,
    "axes.titleweight": "normal",
    "axes.titlecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class Style(NamedTuple):
    """The style of one variant in every panel."""

    colour: str
    line: Any
    marker: str
    group: str  # class of all that is drawn of it, by which a page shows and hides it


Styles = Mapping[str, Style]


def styles_of(variants: Iterable[str]) -> Styles:
    """Return the style of each variant, by its place in the study's order."""
    return {
        name: Style(
            COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)], f"v{i}"
        )
        for i, name in enumerate(variants)
    }


def mark(artist: Any, *groups: str, tips: Sequence[str] = ()) -> None:
    """Attach to an artist the classes it belongs to, and a text for it or each of its points.

    `figures.svg` makes classes and hover texts of them; in a PNG they have no effect.
    """
    artist.set_gid(json.dumps([list(groups), list(tips)]))


@contextmanager
def matplotlib_style(*, page: bool = False) -> Generator[None, None, None]:
    """Set matplotlib's settings, whatever the user's own are; make and save figures within it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS | (PAGE_SETTINGS if page else {}))
        yield


def png(figure: Figure) -> bytes:
    """Return the bytes of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()
