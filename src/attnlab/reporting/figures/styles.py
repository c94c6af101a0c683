"""What tells variants apart in every chart: a colour, a line and a marker.

A variant keeps its look everywhere, by its place in the study. Nothing depends on colour alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# Okabe and Ito 2008, told apart by the colour-blind; without yellow, too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "p", "X", "P", "h")
INK, GREY, GRID, PAPER, SHADE = "#000000", "#666666", "#E4E4E4", "#FFFFFF", "#F2F4F7"


class Look(NamedTuple):
    """Of one variant, in every panel."""

    colour: str
    line: Any
    marker: str
    group: str  # class of all that is drawn of it, by which a page shows and hides it


Looks = Mapping[str, Look]


def looks_of(variants: Iterable[str]) -> Looks:
    """By name, for variants in the study's order."""
    return {
        name: Look(
            COLOURS[i % len(COLOURS)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)], f"v{i}"
        )
        for i, name in enumerate(variants)
    }


def mark(artist: Any, *groups: str, tips: Sequence[str] = ()) -> None:
    """Say what an artist shows: the classes it belongs to, and a text for it or each of its points.

    `report.svg` makes classes and hover texts of it; in a PNG it has no effect.
    """
    artist.set_gid(json.dumps([list(groups), list(tips)]))
