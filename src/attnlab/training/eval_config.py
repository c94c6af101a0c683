"""What is measured of a finished model beside its quality at the length of its training."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from attnlab.config import Config, Problem, TokenCount


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    lengths: tuple[TokenCount, ...] | None = None
    # ^ tokens a window, ascending: the whole validation split is scored again at each of them

    def problems(self) -> Iterator[Problem]:
        if self.lengths is None:
            return
        if not self.lengths:
            yield Problem("lengths", "name at least one length, or none")
        elif self.lengths[0] < 1:
            yield Problem("lengths", f"must be at least 1, got {self.lengths[0]}")
        for before, length in pairwise(self.lengths):
            if length <= before:
                advice = "each is to be longer than the one before"
                yield Problem("lengths", f"{length} after {before}: {advice}")
