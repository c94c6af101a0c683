"""The two-way layout: every variant trained with every seed.

    y_sv = mean + seed_s + variant_v + e_sv        r_sv = y_sv - y_s. - y_.v + y_..

A seed shifts all variants alike (same batches, same initial values), so it is taken out, and what
is left, r, is the noise. Pooled, its variance has (S - 1)(V - 1) degrees of freedom. The noise of
one variant alone is estimated by Grubbs 1948, who takes from its share of r what the others put
there:

    pooled = sum(r^2) / ((S - 1)(V - 1))
    own_v  = max(0, V / (V - 2) (sum_s r_sv^2 / (S - 1) - pooled / V))

Shapes: S seeds, V variants; leading axes are studies of their own, so that a simulation of
thousands is one call.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Losses of at least two variants with at least two seeds each: `losses_SV`."""

    losses_SV: Array

    def __post_init__(self) -> None:
        assert self.seeds >= 2, "one seed has no spread"
        assert self.variants >= 2, "one variant has nothing to be compared with"

    @property
    def seeds(self) -> int:
        return self.losses_SV.shape[-2]

    @property
    def variants(self) -> int:
        return self.losses_SV.shape[-1]

    @property
    def difference_VV(self) -> Array:
        """Mean of one variant (row) minus mean of another (column)."""
        mean_V = self.losses_SV.mean(-2)
        return mean_V[..., :, None] - mean_V[..., None, :]

    @property
    def df(self) -> int:
        """Degrees of freedom of the pooled variance."""
        return (self.seeds - 1) * (self.variants - 1)

    @property
    def pooled(self) -> Array:
        """Variance of one run about the effects of its seed and its variant."""
        return self._squares_V.sum(-1) / self.df

    @property
    def own_V(self) -> Array:
        """The same for each variant alone. Two variants cannot be told apart by it."""
        V, pooled_1 = self.variants, self.pooled[..., None]
        if V == 2:
            return np.repeat(pooled_1, 2, axis=-1)
        shares_V = self._squares_V / (self.seeds - 1)
        return np.maximum(0, V / (V - 2) * (shares_V - pooled_1 / V))

    @property
    def paired_VV(self) -> Array:
        """Sample variance of the difference of two variants, seed by seed."""
        y_SV = self.losses_SV
        return (y_SV[..., :, None] - y_SV[..., None, :]).var(-3, ddof=1)

    @property
    def _squares_V(self) -> Array:
        y_SV = self.losses_SV
        centred_SV = y_SV - y_SV.mean(-1, keepdims=True)
        residual_SV = centred_SV - centred_SV.mean(-2, keepdims=True)
        return np.square(residual_SV).sum(-2)
