"""Power laws of the loss of several families along one quantity, and what follows from them.

    L(x) = E + A (x / x0)^-a          E >= 0, x0 the geometric mean of the points' x

fitted to mean losses by least squares. With fewer than five points E is 0: a line in logarithms.
The error without a size is the largest one at points that the fit did not see (without a training
length, where all points have one size).

Intervals come from draws of the mean losses, which all families share: a bootstrap.

A speedup needs no law: the points are joined by straight lines of log loss in log x.

**Effective speedup** of a family over another, the baseline: x_baseline(L) / x_family(L) at the
lowest loss L that both reach in their measured range. Its interval holds the error of tuning, too:
an allowance A for a loss is A / |dL / d log x| of log x.

**Extrapolation** goes to ten times the largest run; its interval is widened at both ends by the
error without a size.

Hoffmann et al. 2022 (arXiv:2203.15556). Shapes: I points, R draws (the first one is the estimate),
G exponents.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.05
FREE_OFFSET = 5  # fewest points with which E is fitted
FARTHEST = 10  # times the largest run
_EXPONENTS = np.geomspace(0.005, 3.0, 480)


class Point(NamedTuple):
    """The mean loss of one variant at one value of a quantity."""

    variant: str
    size: str
    budget: str
    x: float
    loss: float  # nats/token


@dataclass(frozen=True, kw_only=True)
class Laws:
    """Power laws of one family, one per draw; the first is the estimate."""

    x0: float
    offset_R: Array  # E, nats/token
    scale_R: Array  # A, nats/token
    exponent_R: Array  # a

    def loss(self, x: float | Array) -> Array:
        """Return the losses at x (shape of x, then R)."""
        ratio = np.asarray(x, float)[..., None] / self.x0
        return self.offset_R + self.scale_R * ratio**-self.exponent_R


def fit_laws(x_I: Array, loss_RI: Array, free_offset: bool) -> Laws:
    """Fit a law to each row of losses, at two or more values of x.

    >>> x = np.geomspace(1, 1e4, 6)
    >>> law = fit_laws(x, (2 + 3 * x**-0.2)[None], free_offset=True)
    >>> round(float(law.exponent_R[0]), 2), round(float(law.offset_R[0]), 1)
    (0.2, 2.0)
    """
    x0 = float(np.exp(np.log(x_I).mean()))
    log_I = np.log(x_I / x0)
    if not free_offset:
        log_RI = np.log(loss_RI)
        exponent_R = -(log_RI @ log_I) / (log_I @ log_I)
        scale_R = np.exp(log_RI.mean(1))
        return Laws(x0=x0, offset_R=np.zeros_like(scale_R), scale_R=scale_R, exponent_R=exponent_R)
    z_GI, n = np.exp(-_EXPONENTS[:, None] * log_I), len(x_I)
    z_G, zz_G, y_R1, zy_RG = (
        z_GI.sum(1),
        (z_GI**2).sum(1),
        loss_RI.sum(1)[:, None],
        loss_RI @ z_GI.T,
    )
    scale_RG = (n * zy_RG - z_G * y_R1) / (n * zz_G - z_G**2)
    offset_RG = (y_R1 - scale_RG * z_G) / n
    scale_RG = np.where(offset_RG < 0, zy_RG / zz_G, scale_RG)
    offset_RG = np.where(scale_RG < 0, y_R1 / n, np.maximum(offset_RG, 0.0))
    scale_RG = np.maximum(scale_RG, 1e-12)
    squares_RG = (
        n * offset_RG**2
        + scale_RG**2 * zz_G
        + 2 * (offset_RG * scale_RG * z_G - offset_RG * y_R1 - scale_RG * zy_RG)
    )
    best_R = squares_RG.argmin(1)
    rows = np.arange(len(best_R))
    return Laws(
        x0=x0,
        offset_R=offset_RG[rows, best_R],
        scale_R=scale_RG[rows, best_R],
        exponent_R=_EXPONENTS[best_R],
    )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The law of one family along one quantity."""

    family: str
    points: tuple[Point, ...]  # that were fitted, ascending in x
    others: tuple[Point, ...]  # off the frontier
    laws: Laws
    loss_RI: Array  # of `points`: the estimate, then draws
    exponent: Interval | None  # of a; None with one seed per variant
    offset: Interval | None  # of E; None, too, where E is 0 by the number of points
    error: float | None  # without a size, or without a length: nats/token; None: too few points

    @property
    def range(self) -> Interval:
        """The smallest and the largest x that were fitted."""
        return self.points[0].x, self.points[-1].x

    @property
    def extrapolated(self) -> tuple[float, float, Interval] | None:
        """x, loss and interval at ten times the largest run; None without one, or without error."""
        if self.exponent is None or self.error is None:
            return None
        x = FARTHEST * self.points[-1].x
        loss_R = self.laws.loss(x)
        low, high = interval_of(loss_R, LEVEL)
        return x, float(loss_R[0]), (low - self.error, high + self.error)

    def measured(self, log_X: Array) -> Array:
        """Return the losses (X, R) on the lines through the points, within their range."""
        each_XI = [np.interp(log_X, self._log_I, of_one) for of_one in np.eye(len(self.points))]
        return np.exp(np.stack(each_XI, 1) @ np.log(self.loss_RI).T)

    def reached(self, loss: float) -> tuple[Array, Array]:
        """Return log x at which the lines fall to a loss, and |dL / d log x| there (R).

        The last line goes on beyond the last point; x is infinite where it does not fall.
        """
        above_R = (np.minimum.accumulate(self.loss_RI, 1) > loss).sum(1)
        last_R = np.clip(above_R, 1, len(self.points) - 1)
        rows = np.arange(len(last_R))
        log_RI = np.log(self.loss_RI)
        start_R, end_R = log_RI[rows, last_R - 1], log_RI[rows, last_R]
        slope_R = (start_R - end_R) / (self._log_I[last_R] - self._log_I[last_R - 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            log_R = self._log_I[last_R - 1] + (start_R - math.log(loss)) / slope_R
        return np.where(slope_R > 0, log_R, np.inf), slope_R * loss

    @property
    def _log_I(self) -> Array:
        return np.log([point.x for point in self.points])

    def band(self, x_I: Array) -> tuple[Array, Array, Array]:
        """Return the law, and the ends of its intervals, at each x."""
        loss_IR = self.laws.loss(x_I)
        low_I, high_I = np.quantile(loss_IR, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
        return loss_IR[:, 0], low_I, high_I


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """The ratio of what the baseline takes to a loss to what a family takes to it."""

    family: str
    loss: float  # nats/token, the lowest that both reach
    x: float | None  # that the family takes; None: beyond the measured range
    baseline_x: float | None
    ratio: float | None  # of the baseline's x to the family's: above 1 is less than the baseline
    interval: Interval | None  # an infinite or zero end is open


def fit_of(
    family: str,
    points: Sequence[Point],
    drawn: Mapping[str, Array],
    *,
    others: Sequence[Point] = (),
    left_out: Literal["size", "budget"] = "size",
) -> Fit | None:
    """Fit the law of a family; None with fewer than two points.

    Args:
        family: its name.
        points: its points to fit, ascending in x.
        drawn: the mean losses of each variant: the estimate, then draws (R).
        others: its points that are shown beside them.
        left_out: what points have in common that the error leaves out together.
    """
    if len({point.x for point in points}) < 2:
        return None
    loss_RI = np.stack([drawn[point.variant] for point in points], 1)
    x_I = np.array([point.x for point in points])
    free = len(points) >= FREE_OFFSET
    laws, many = fit_laws(x_I, loss_RI, free), loss_RI.shape[0] > 1
    return Fit(
        family=family,
        points=tuple(points),
        others=tuple(others),
        laws=laws,
        loss_RI=loss_RI,
        exponent=interval_of(laws.exponent_R, LEVEL) if many else None,
        offset=interval_of(laws.offset_R, LEVEL) if many and free else None,
        error=_left_out(points, left_out),
    )


def _left_out(points: Sequence[Point], what: Literal["size", "budget"]) -> float | None:
    """Return the largest error at points whose size or budget the fit did not see."""
    errors = list[float]()
    for value in dict.fromkeys(getattr(point, what) for point in points):
        rest = [point for point in points if getattr(point, what) != value]
        if len({point.x for point in rest}) < 2:
            continue
        x_I, loss_I = (np.array([getattr(p, name) for p in rest]) for name in ("x", "loss"))
        laws = fit_laws(x_I, loss_I[None], free_offset=len(rest) >= FREE_OFFSET - 1)
        unseen = (point for point in points if getattr(point, what) == value)
        errors += [abs(float(laws.loss(point.x)[0]) - point.loss) for point in unseen]
    return max(errors, default=None)


def interval_of(value_R: Array, level: float) -> Interval:
    low, high = np.quantile(value_R, [level / 2, 1 - level / 2], method="nearest")
    return float(low), float(high)


def speedup(
    fit: Fit, baseline: Fit, missed: Mapping[str, float] | None = None, among: int = 1
) -> Speedup:
    """Return the effective speedup of a family over the baseline's.

    Args:
        fit, baseline: the laws of both, with the same draws.
        missed: what tuning may have missed of each family, nats/token.
        among: families whose intervals hold at once.
    """
    loss = max(float(of.loss_RI[0].min()) for of in (fit, baseline))
    if loss > min(float(of.loss_RI[0, 0]) for of in (fit, baseline)):
        return Speedup(
            family=fit.family, loss=loss, x=None, baseline_x=None, ratio=None, interval=None
        )
    own_R, own_slope_R = fit.reached(loss)
    base_R, base_slope_R = baseline.reached(loss)
    with np.errstate(invalid="ignore"):
        log_R = np.nan_to_num(base_R - own_R, nan=0.0, posinf=np.inf, neginf=-np.inf)
    interval = None
    if len(log_R) > 1:
        low, high = interval_of(log_R, LEVEL / among)
        allowed = missed or {}
        down = allowed.get(baseline.family, 0.0) / base_slope_R[0]
        up = allowed.get(fit.family, 0.0) / own_slope_R[0]
        at = float(log_R[0])
        low, high = at - math.hypot(at - low, down), at + math.hypot(high - at, up)
        interval = (
            math.exp(low) if low < 700 else math.inf,
            math.exp(high) if high < 700 else math.inf,
        )
    return Speedup(
        family=fit.family,
        loss=loss,
        x=math.exp(own_R[0]),
        baseline_x=math.exp(base_R[0]),
        ratio=math.exp(log_R[0]),
        interval=interval,
    )
