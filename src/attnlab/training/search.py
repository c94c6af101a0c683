"""The search for each variant's recipe: peak learning rate, warm-up, and what a study declares.

    coarse      own rate x multiples, then further out by octaves while the best is at an edge
    warm-up     three times the warm-up at the best rate r and at 2 r; where a variant gains more
                than the margin, ALL variants take it, from the better of the two; and once more
    settings    the values of each declared setting, one setting after the other
    refine      best x 2^(+-1/2), then further out while the best is at an edge
    rate        best x 2^(t/2), the vertex of the parabola through the best and its neighbours:
                c = l - 2 m + r,   t = clip((l - r) / (2 c), -1/2, 1/2)
    allowance   what the search can miss: c / 4, twice the rise of that parabola a quarter of an
                octave from its vertex, and any gain from a longer warm-up that was not taken

A recipe is judged by the validation loss at the end of one run of full length, with a seed that no
run of the verdict has. Everything here is a function of the losses alone. `decide` replays the
search with the losses that are known, so that an interrupted study makes the same decisions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from attnlab.training.config import Tuning

LONGER = 3  # ratio of the next warm-up that is tried
MOST_WARMUP = 0.5  # longest warm-up that is tried, as a part of all steps


class Recipe(NamedTuple):
    """The tuned settings of a run."""

    learning_rate: float  # peak, to six digits
    warmup_steps: int
    settings: tuple[tuple[str, float], ...] = ()  # declared ones, by the last part of their path

    @property
    def name(self) -> str:
        """The name of its folder.

        >>> Recipe(6e-4, 300, (("weight_decay", 0.1),)).name
        'lr-0.0006,warmup_steps-300,weight_decay-0.1'
        """
        others = [("warmup_steps", self.warmup_steps), *self.settings]
        return ",".join([f"lr-{self.learning_rate:g}", *(f"{name}-{x:g}" for name, x in others)])

    @classmethod
    def parse(cls, name: str) -> "Recipe | None":
        """Return the recipe with this name; None for other names, as of searches of a rate alone.

        >>> Recipe.parse("lr-0.0006,warmup_steps-300")
        Recipe(learning_rate=0.0006, warmup_steps=300, settings=())
        """
        parts = (part.partition("-") for part in name.split(","))
        try:
            values = {key: float(value) for key, _, value in parts}
            rate, warmup_steps = values.pop("lr"), values.pop("warmup_steps")
        except (KeyError, ValueError):
            return None
        return cls(rate, int(warmup_steps), tuple(values.items()))


Losses = Mapping[Recipe, float | None]  # nats/token by recipe; None, or not finite: it diverged


class Start(NamedTuple):
    """The settings of a variant before the search."""

    recipe: Recipe
    longest_warmup: float  # steps; a longer one is not tried


@dataclass(kw_only=True)
class Search:
    """The state of the search for one variant."""

    tried: dict[Recipe, float] = field(default_factory=dict[Recipe, float])
    # ^ nats/token of the recipes that decided, in their order; infinite if a run diverged
    needs: tuple[Recipe, ...] = ()  # the search goes on when their losses are known
    may_need: tuple[Recipe, ...] = ()  # as `needs`, unless all variants take a longer warm-up
    ended: bool = False
    recipe: Recipe | None = None  # the chosen one; None if every rate diverged
    warmup_level: int = 0  # its warm-up is 3^level times that of the start
    bracketed: bool = False  # True if a lower and a higher rate were tried and were no better
    allowance: float = math.inf  # nats/token that the search can have missed


def decide(
    tuning: Tuning,
    starts: Mapping[str, Start],
    losses: Mapping[str, Losses],
    *,
    margin: float,
    warmup_level: int | None = None,
) -> dict[str, Search]:
    """Replay the search of all variants with the losses that are known.

    Args:
        tuning: the settings of the search.
        starts: each variant's recipe before the search.
        losses: the validation loss (nats/token) of the recipes that were tried, by variant.
        margin: nats/token; a longer warm-up is taken by all if any variant gains more.
        warmup_level: the warm-up is 3^level times that of `starts`, because runs for the verdict
            have it already. None: it is searched.
    """
    replays = {name: _Replay(tuning, starts[name], losses[name]) for name in starts}
    level = 0
    while True:
        fits = tuning.warmup and all(replay.fits(level + 1) for replay in replays.values())
        for replay in replays.values():
            replay.go_on(replay.coarse, level)
            if fits:
                replay.go_on(replay.probe, level + 1)
        gained = any(replay.gain > margin for replay in replays.values())
        if not fits or not (gained if warmup_level is None else level < warmup_level):
            break
        level += 1
        for replay in replays.values():
            replay.search.needs = ()
    waits_for = warmup_level is None and any(replay.search.needs for replay in replays.values())
    for replay in replays.values():
        search, asked = replay.search, bool(replay.search.needs)
        replay.go_on(replay.finish, level)
        if fits and waits_for and not asked:
            search.needs, search.may_need, search.ended = (), search.needs, False
    return {name: replay.search for name, replay in replays.items()}


class _MissingLosses(Exception):  # noqa: N818  no error: the search goes on when they are known
    def __init__(self, recipes: tuple[Recipe, ...]) -> None:
        self.recipes = recipes


class _Replay:
    """The search of one variant. A position counts half octaves from the first rate of the grid."""

    def __init__(self, tuning: Tuning, start: Start, losses: Losses) -> None:
        self.tuning, self.start, self.losses = tuning, start, losses
        self.search = Search()
        self.best = dict[int, int | None]()  # position by warm-up level; None if all diverged
        self.gain = 0.0  # nats/token, of the next longer warm-up

    def go_on(self, stage: Callable[[int], None], level: int) -> None:
        """Execute a stage, unless an earlier one misses losses."""
        if not self.search.needs:
            try:
                stage(level)
            except _MissingLosses as missing:
                self.search.needs = missing.recipes

    def fits(self, level: int) -> bool:
        """Return True if the warm-up of this level is longer than the one before, and allowed."""
        return 0 < self._warmup_steps(level) <= self.start.longest_warmup

    def coarse(self, level: int) -> None:
        """Find the best rate in steps of an octave, with a lower and a higher one no better.

        With a longer warm-up, the better of the two rates that were tried with it is enough.
        """
        self.gain = 0.0
        if level in self.best:
            return
        if level > 0:
            self.coarse(level - 1)
        before = self.best.get(level - 1)
        grid = range(0, 2 * len(self.tuning.multiples), 2)
        positions = list(grid) if before is None else [before, before + 2]
        while True:
            losses = self._ask([self._recipe(position, level) for position in positions])
            lowest = min(losses)
            best = [p for p, loss in zip(positions, losses, strict=True) if loss == lowest]
            inside = [position for position in best if positions[0] < position < positions[-1]]
            if math.isfinite(lowest) and (inside or before is not None):
                self.best[level] = [*inside, *best][0]
                return
            if len(positions) >= self.tuning.most:
                self.best[level] = best[0] if math.isfinite(lowest) else None
                return
            outward = [positions[0] - 2] if best[0] == positions[0] else []
            if best[-1] == positions[-1] and math.isfinite(lowest):
                outward.append(positions[-1] + 2)
            positions = sorted([*positions, *outward[: self.tuning.most - len(positions)]])

    def probe(self, level: int) -> None:
        """Measure what the warm-up of this level gains over the level below."""
        position = self.best[level - 1]
        if position is None:
            return
        longer = self._ask([self._recipe(position + up, level) for up in (0, 2)])
        self.gain = max(0.0, self.search.tried[self._recipe(position, level - 1)] - min(longer))

    def finish(self, level: int) -> None:
        """Choose the declared settings, then the rate, and bound what the search can miss."""
        search, position = self.search, self.best[level]
        search.warmup_level = level
        if position is not None:
            settings = self._settings(position, level)
            position, losses = self._refine(position, level, settings)
            t, missed = vertex(*losses)
            search.recipe = self._recipe(position + t, level, settings)
            search.bracketed = math.isfinite(missed)
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
    ) -> tuple[int, tuple[float, float, float]]:
        """Return the best position, and the losses half an octave below it, there, and above."""
        seen = dict[int, float]()
        while True:
            around = (position - 1, position, position + 1)
            losses = self._ask([self._recipe(each, level, settings) for each in around])
            seen |= zip(around, losses, strict=True)
            lower, here, higher = losses
            if here <= min(lower, higher):
                return position, (lower, here, higher)
            position = min(seen, key=lambda each: seen[each])
            if len(seen) >= self.tuning.most:
                return position, (math.inf, seen[position], math.inf)  # not bracketed

    def _recipe(
        self, position: float, level: int, settings: tuple[tuple[str, float], ...] | None = None
    ) -> Recipe:
        own = self.start.recipe
        rate = own.learning_rate * self.tuning.multiples[0] * 2 ** (position / 2)
        settings = own.settings if settings is None else settings
        return Recipe(float(f"{rate:g}"), self._warmup_steps(level), settings)

    def _warmup_steps(self, level: int) -> int:
        return self.start.recipe.warmup_steps * LONGER**level

    def _ask(self, recipes: list[Recipe]) -> list[float]:
        """Return the losses. Raises _MissingLosses if some are not known."""
        missing = tuple(recipe for recipe in recipes if recipe not in self.losses)
        if missing:
            raise _MissingLosses(missing)
        for recipe in recipes:
            loss = self.losses[recipe]
            if loss is None or not math.isfinite(loss):
                loss = math.inf
            self.search.tried[recipe] = loss
        return [self.search.tried[recipe] for recipe in recipes]


def vertex(lower: float, here: float, higher: float) -> tuple[float, float]:
    """Return the vertex of the parabola through the best rate and its neighbours, and a bound.

    Args:
        lower, here, higher: losses (nats/token) half an octave below the best rate, there, and half
            an octave above. Infinite: it diverged.

    Returns:
        The vertex in half octaves from the best rate, in [-1/2, 1/2]; and the loss (nats/token)
        that the search can miss: as much as a curve with a kink in place of a vertex, through the
        same losses, rises a quarter of an octave away. Where one neighbour diverged, the best rate
        itself, and the other neighbour's loss above it, since a curve that bends upwards falls no
        faster beyond the best rate than before it.

    >>> vertex(5.75, 5.0, 5.25)
    (0.25, 0.25)
    """
    low, high = lower - here, higher - here
    if math.isinf(low) or math.isinf(high):
        return 0.0, min(low, high)
    curvature = low + high
    if curvature <= 0:  # all equal
        return 0.0, 0.0
    return min(0.5, max(-0.5, (low - high) / (2 * curvature))), curvature / 4
