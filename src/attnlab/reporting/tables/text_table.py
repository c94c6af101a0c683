"""A table of texts: what a report shows that is not one row a variant."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grid:
    caption: str
    heading: Sequence[str]
    lines: Sequence[Sequence[str]]  # the first cell names the line
    words: int = 1  # so many first columns are words; the rest are numbers
    note: str = ""
