"""The style of all figures, whatever a user's own matplotlib settings are."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from attnlab.reporting.figures.styles import GREY, GRID

DOTS_PER_INCH = 150
STYLE: Any = {
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
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a variant's name is a dollar sign
    "svg.hashsalt": "attnlab",  # the same figure gives the same bytes
}
OF_A_PAGE: Any = {
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


@contextmanager
def style(*, page: bool = False) -> Generator[None, None, None]:
    """Within it, figures are made and saved."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | (OF_A_PAGE if page else {}))
        yield


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return file.getvalue()
