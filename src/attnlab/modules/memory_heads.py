"""Settings of heads with a matrix memory each: how many, how wide a key, how wide a value.

Yang et al. 2024 (github.com/fla-org/flash-linear-attention), whose names they are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from attnlab.config import Config, Problem
from attnlab.kernels.forms import Kernel


@dataclass(frozen=True, kw_only=True)
class MemoryHeadsConfig(Config):
    """For a mechanism's config to inherit, before `MechanismConfig`."""

    n_heads: int = 4
    head_dim: int = 32  # of a query and key; n_heads * head_dim need not be d_model
    expand_v: float = 1.0  # a value head is this many times as wide
    kernel: Kernel = "auto"

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return round(self.head_dim * self.expand_v)

    @property
    def keys(self) -> int:
        """Width of the keys of all heads."""
        return self.n_heads * self.head_dim

    @property
    def values(self) -> int:
        """Width of the values of all heads."""
        return self.n_heads * self.value_dim

    def problems(self) -> Iterator[Problem]:
        yield from at_least_1(self, "n_heads", "head_dim")
        if self.expand_v <= 0:
            yield Problem("expand_v", f"must be positive, got {self.expand_v}")
        elif not math.isclose(self.value_dim, self.head_dim * self.expand_v, rel_tol=1e-6):
            width = self.head_dim * self.expand_v
            yield Problem("expand_v", f"makes a value head of {width:g}: choose a whole number")


def at_least_1(config: Config, *names: str) -> Iterator[Problem]:
    """A problem for each of these fields that is less."""
    for name in names:
        if getattr(config, name) < 1:
            yield Problem(name, f"must be at least 1, got {getattr(config, name)}")
