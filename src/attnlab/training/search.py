"""The search for each variant's recipe: peak learning rate, warm-up, and what a study declares.

    coarse      own rate x multiples, then further out by octaves while the best is at an edge
    refine      best x 2^(+-1/2), then further out while the best is at an edge
    warm-up     three times the warm-up half an octave above the best rate r; where that gains more
                than the margin, another half octave up, or else at r; where it gains three margins
                over the shorter one at its rate, at r; where a second run gains, too (at r, three
                margins), ALL variants take it and refine with it; and once more
    settings    the values of each declared setting, one setting after the other; refine again
    rate        best x 2^(t/2), t the lowest point of the curve fitted to the losses within two
                octaves of the best one (`vertex`); |t| <= 1
    allowance   what the shape of the curve can hide there, and any gain from a longer warm-up that
                was not taken; the noise of the search's runs is added by the comparison. Below the
                lowest rate, what the last two octaves gained (`below_lowest`)
    ends        where noise can be all by which the lowest or the highest rate is worse, a rate one
                and a half octaves further out, then one three octaves beyond that, and around a
                better one; still not shown: no bound

A recipe is judged by the validation loss at the end of one run of full length, with a seed that no
run of the verdict has. Everything here is a function of the losses alone. `decide` replays the
search with the losses that are known, so that an interrupted study makes the same decisions.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from attnlab.training.config import Recipe, Tuning
from attnlab.training.learning_rate import NEAR, below_lowest, noise_of, vertex

LONGER = 3  # ratio of the next warm-up that is tried
AT_ONE_RATE = 3  # margins that a longer warm-up must gain if it does not allow a higher rate
MOST_WARMUP = 0.5  # longest warm-up that is tried, as a part of all steps
SHOWN = 4  # times the margin, and the noise: rates at both ends are worse than the best by as much
FURTHER = (3, 6)  # half octaves beyond what an end is by then, as long as that is not shown
TYPICAL = 1.4  # times the median noise of all variants: the least that is reckoned with at an end

Losses = Mapping[Recipe, float | None]  # nats/token by recipe; None, or not finite: it diverged


class Start(NamedTuple):
    """The settings of a variant before the search."""

    recipe: Recipe
    longest_warmup: float  # steps; a longer one is not tried

    @property
    def longer_warmups(self) -> int:
        """The number of longer warm-ups that the search may try.

        >>> Start(Recipe(6e-4, 100), 500).longer_warmups
        1
        """
        level = 0
        while 0 < self.recipe.warmup_steps * LONGER ** (level + 1) <= self.longest_warmup:
            level += 1
        return level


class Shared(NamedTuple):
    """The results of a search that hold for all variants."""

    warmup_level: int  # the warm-up is 3^level times that of the start
    noise: float  # standard deviation of a typical variant's runs from their parabola, nats/token


NOTHING = Shared(0, 0.0)


@dataclass(kw_only=True)
class Search:
    """The state of the search for one variant."""

    tried: dict[Recipe, float] = field(default_factory=dict[Recipe, float])
    # ^ nats/token of the recipes that decided, in their order; infinite if a run diverged
    needs: tuple[Recipe, ...] = ()  # the search goes on when their losses are known
    may_need: tuple[Recipe, ...] = ()  # as `needs`, unless what others find changes what is shared
    ended: bool = False
    recipe: Recipe | None = None  # the chosen one; None if every rate diverged
    shared: Shared = NOTHING
    bracketed: bool = False  # True if a lower and a higher rate were tried and were no better
    allowance: float = math.inf  # nats/token that the search can have missed


def decide(
    tuning: Tuning,
    starts: Mapping[str, Start],
    losses: Mapping[str, Losses],
    *,
    margin: float,
    shared: Shared | None = None,
) -> dict[str, Search]:
    """Replay the search of all variants with the losses that are known.

    Args:
        tuning: the settings of the search.
        starts: each variant's recipe before the search.
        losses: the validation loss (nats/token) of the recipes that were tried, by variant.
        margin: nats/token; a longer warm-up is taken by all if any variant gains more.
        shared: what an earlier search has decided, since runs for the verdict have followed from
            it. None: it is searched.
    """
    replays = {name: _Replay(tuning, starts[name], losses[name], margin) for name in starts}
    level = 0
    while True:
        fits = tuning.warmup and all(level < start.longer_warmups for start in starts.values())
        for replay in replays.values():
            replay.go_on(replay.find_rate, level)
            if fits:
                replay.go_on(replay.probe, level + 1)
        gained = any(replay.gain > margin for replay in replays.values())
        if not fits or not (gained if shared is None else level < shared.warmup_level):
            break
        level += 1
        for replay in replays.values():
            replay.search.needs = ()
    waits_for = shared is None and any(replay.search.needs for replay in replays.values())
    noise = _typical_noise(replays.values(), level) if shared is None else shared.noise
    for replay in replays.values():
        search, asked = replay.search, bool(replay.search.needs)
        search.shared = Shared(level, noise)
        replay.go_on(replay.finish, level)
        if waits_for and not asked:
            search.needs, search.may_need, search.ended = (), search.needs, False
    return {name: replay.search for name, replay in replays.items()}


def _near(losses: Mapping[int, float]) -> dict[int, float]:
    return {place: loss for place, loss in losses.items() if abs(place) <= NEAR}


def _typical_noise(replays: Iterable["_Replay"], level: int) -> float:
    """Return the median noise of the variants whose search has come to its ends."""
    found = [replay.noise(level) for replay in replays if not replay.search.needs]
    return float(np.median(known)) if (known := [n for n in found if n is not None]) else 0.0


class _MissingLosses(Exception):  # noqa: N818  no error: the search goes on when they are known
    def __init__(self, recipes: tuple[Recipe, ...]) -> None:
        self.recipes = recipes


class _Replay:
    """The search of one variant. A position counts half octaves from the first rate of the grid."""

    def __init__(self, tuning: Tuning, start: Start, losses: Losses, margin: float) -> None:
        self.tuning, self.start, self.losses, self.margin = tuning, start, losses, margin
        self.search = Search()
        self.best = dict[int, tuple[int, bool] | None]()  # by warm-up level; None: all diverged
        # ^ position, and whether it is bracketed
        self.gain = 0.0  # nats/token, of the next longer warm-up

    def go_on(self, stage: Callable[[int], None], level: int) -> None:
        """Execute a stage, unless an earlier one misses losses."""
        if not self.search.needs:
            try:
                stage(level)
            except _MissingLosses as missing:
                self.search.needs = missing.recipes

    def find_rate(self, level: int) -> None:
        """Find the best rate with the warm-up of this level, in half octaves."""
        self.gain = 0.0
        if level in self.best:
            return
        if level > 0:
            self.find_rate(level - 1)
        tried = self._longer(level)[0] if level > 0 else {}
        position = min(tried, key=lambda each: tried[each]) if tried else self._coarse(level)
        own = self.start.recipe.settings
        self.best[level] = None if position is None else self._refine(position, level, own)

    def _coarse(self, level: int) -> int | None:
        """Return the best rate in steps of an octave, with a lower and a higher one no better."""
        positions = list(range(0, 2 * len(self.tuning.multiples), 2))
        while True:
            losses = self._ask([self._recipe(position, level) for position in positions])
            lowest = min(losses)
            best = [p for p, loss in zip(positions, losses, strict=True) if loss == lowest]
            inside = [position for position in best if positions[0] < position < positions[-1]]
            if math.isfinite(lowest) and inside:
                return inside[0]
            if len(positions) >= self.tuning.most:
                return best[0] if math.isfinite(lowest) else None
            outward = [positions[0] - 2] if best[0] == positions[0] else []
            if best[-1] == positions[-1] and math.isfinite(lowest):
                outward.append(positions[-1] + 2)
            positions = sorted([*positions, *outward[: self.tuning.most - len(positions)]])

    def probe(self, level: int) -> None:
        """Measure what the warm-up of this level gains over the level below."""
        self.gain = max(0.0, self._longer(level)[1])

    def _longer(self, level: int) -> tuple[dict[int, float], float]:
        """Return the losses with the warm-up of this level by position, and what they gain.

        The gain is the smaller one of two runs, since one may be better by chance.
        """
        if (below := self.best[level - 1]) is None:
            return {}, 0.0
        position, _ = below
        before = self.search.tried[self._recipe(position, level - 1)]
        shorter = self.search.tried.get(self._recipe(position + 1, level - 1), before)
        (loss,) = self._ask([self._recipe(position + 1, level)])
        tried, gain = {position + 1: loss}, before - loss
        seconds = tuple[int, ...]()
        if gain > self.margin:
            seconds = (position + 2, position)
        elif math.isfinite(loss) and shorter - loss > AT_ONE_RATE * self.margin:
            seconds, gain = (position,), shorter - loss
        confirmed = gain
        for second in seconds:
            (tried[second],) = self._ask([self._recipe(second, level)])
            confirmed = min(gain, before - tried[second])
            if second == position and confirmed <= AT_ONE_RATE * self.margin:
                confirmed = min(confirmed, self.margin)
            if confirmed > self.margin:
                break
        return tried, confirmed

    def finish(self, level: int) -> None:
        """Choose the declared settings, then the rate, and bound what the search can miss."""
        search, best = self.search, self.best[level]
        if best is not None:
            settings = self._settings(best[0], level)
            if settings != self.start.recipe.settings:
                best = self._refine(best[0], level, settings)
            (position, bracketed), shown = best, True
            if bracketed:
                position, bracketed, shown = self._ends(position, level, settings)
            losses = _near(self._around(position, level, settings))
            if bracketed:
                t, missed = vertex(losses)
                missed = missed if shown else math.inf
            else:
                noise = max(noise_of(losses), search.shared.noise)
                t, missed = 0.0, below_lowest(losses, noise)
            search.bracketed = bracketed and math.isfinite(missed)
            if math.isfinite(search.tried[self._recipe(position, level, settings)]):
                search.recipe = self._recipe(position + t, level, settings)
                search.allowance = missed + self.gain
        search.ended = True

    def _settings(self, position: int, level: int) -> tuple[tuple[str, float], ...]:
        """Return the best value of each declared setting, one after the other."""
        chosen = dict(self.start.recipe.settings)
        for path, values in self.tuning.settings.items():
            name = path.rpartition(".")[2]
            others = [value for value in values if value != chosen[name]]
            tried = [chosen | {name: value} for value in (chosen[name], *others)]
            recipes = [self._recipe(position, level, tuple(each.items())) for each in tried]
            losses = self._ask(recipes)
            chosen = tried[losses.index(min(losses))]  # of equal losses, the variant's own value
        return tuple(chosen.items())

    def _refine(
        self, position: int, level: int, settings: tuple[tuple[str, float], ...]
    ) -> tuple[int, bool]:
        """Return the best position, and whether those half an octave beside it are no better."""
        seen = dict[int, float]()
        while True:
            around = (position - 1, position, position + 1)
            losses = self._ask([self._recipe(each, level, settings) for each in around])
            seen |= zip(around, losses, strict=True)
            if losses[1] <= min(losses[0], losses[2]):
                return position, math.isfinite(losses[1])
            position = min(seen, key=lambda each: seen[each])
            if len(seen) >= self.tuning.most:
                return position, False

    def _ends(
        self, position: int, level: int, settings: tuple[tuple[str, float], ...]
    ) -> tuple[int, bool, bool]:
        """Return the best position, if it is bracketed, and if rates beyond are shown to be worse.

        All that was tried at the lowest and at the highest rate counts, whatever its warm-up.
        """
        bracketed, further = True, {side: list(FURTHER) for side in (-1, 1)}
        while bracketed:
            around, ends = self._around(position, level, settings), self._outermost()
            noise = max(noise_of(around), TYPICAL * self.search.shared.noise)
            worse = SHOWN * max(self.margin, noise)
            open_ends = [side for side, (_, loss) in ends.items() if loss - around[0] < worse]
            if not open_ends:
                return position, True, True
            if not all(further[side] for side in open_ends):
                break
            beyond = [ends[side][0] + side * further[side].pop(0) for side in open_ends]
            losses = self._ask([self._recipe(each, level, settings) for each in beyond])
            if (lowest := min(losses)) < around[0]:
                position, bracketed = self._refine(beyond[losses.index(lowest)], level, settings)
        return position, bracketed, False

    def _outermost(self) -> dict[int, tuple[int, float]]:
        """Return place and loss of the lowest rate that did not diverge, -1, and the highest, 1."""
        tried = self.search.tried
        lowest = min(recipe.learning_rate for recipe, y in tried.items() if math.isfinite(y))
        highest = max(recipe.learning_rate for recipe in tried)
        return {
            side: (self._place(rate), min(y for r, y in tried.items() if r.learning_rate == rate))
            for side, rate in ((-1, lowest), (1, highest))
        }

    def noise(self, level: int) -> float | None:
        """Return the noise of the runs with the warm-up of this level, or None if they are few."""
        if (best := self.best.get(level)) is None:
            return None
        losses = _near(self._around(best[0], level, self.start.recipe.settings))
        return noise_of(losses) if sum(map(math.isfinite, losses.values())) > 3 else None

    def _around(
        self, position: int, level: int, settings: tuple[tuple[str, float], ...]
    ) -> dict[int, float]:
        """Return the losses that were found so, by half octaves from a position."""
        _, *same = self._recipe(position, level, settings)
        found = {r: y for r, y in self.search.tried.items() if list(r[1:]) == same}
        return {self._place(r.learning_rate) - position: y for r, y in found.items()}

    def _place(self, rate: float) -> int:
        first = self.start.recipe.learning_rate * self.tuning.multiples[0]
        return round(2 * math.log2(rate / first))

    def _recipe(
        self, position: float, level: int, settings: tuple[tuple[str, float], ...] | None = None
    ) -> Recipe:
        own = self.start.recipe
        rate = own.learning_rate * self.tuning.multiples[0] * 2 ** (position / 2)
        settings = own.settings if settings is None else settings
        return Recipe(float(f"{rate:g}"), own.warmup_steps * LONGER**level, settings)

    def _ask(self, recipes: list[Recipe]) -> list[float]:
        """Return the losses. Raises _MissingLosses if some are not known."""
        missing = tuple(recipe for recipe in recipes if recipe not in self.losses)
        if missing:
            raise _MissingLosses(missing)
        losses = [self.losses[recipe] for recipe in recipes]
        found = [math.inf if y is None or not math.isfinite(y) else y for y in losses]
        self.search.tried |= zip(recipes, found, strict=True)
        return found
