"""What a study asks, one kind of question each, so that the analysis can answer it from the data.

A study lists its questions; its record holds them as JSON; `answers` answers them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from attnlab.config import Choice, Problem

Cost = Literal[
    "parameters",
    "flops_per_token",
    "step_time",
    "peak_memory_bytes",
    "state_bytes",
    "decode_seconds",
]


@dataclass(frozen=True, kw_only=True)
class Question(Choice):
    """`text` is the question as a person asks it."""

    text: str

    def problems(self) -> Iterator[Problem]:
        if not self.text.strip():
            yield Problem("text", "say the question as a person asks it")


@dataclass(frozen=True, kw_only=True)
class BestQuality(Question):
    """Is the baseline still the best, or do others close the gap?"""


@dataclass(frozen=True, kw_only=True)
class BestForCost(Question):
    """Which variants does no other beat in quality and cost at once?"""

    cost: Cost = "flops_per_token"


@dataclass(frozen=True, kw_only=True)
class GivesUp(Question):
    """How much worse than `than` is each of `variants`?"""

    variants: tuple[str, ...]
    than: str = "mha"


@dataclass(frozen=True, kw_only=True)
class Needed(Question):
    """Is attention needed at all: is the variant `without` it worse than `than`?"""

    without: str = "identity"
    than: str = "mha"


@dataclass(frozen=True, kw_only=True)
class EveryLayer(Question):
    """Is attention needed in every layer: which layers can do without?

    Answered from a study beside this one, `../<study>`, that takes it out of one layer at a time.
    Its baseline is the model with attention in every layer.
    """

    study: str = "attention_needed"


@dataclass(frozen=True, kw_only=True)
class Pick(Question):
    """What to take when quality, memory, speed, long context or size comes first."""
