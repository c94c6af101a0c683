"""Matching: variants of equal size. One setting per variant changes until it matches the baseline.

Sizes are computed from the settings, without building a model. A size grows with the setting, and
bisection finds the multiple of `step` with the nearest size. The study records the remaining
mismatch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from attnlab.config import Config, ConfigError, Problem, override

C = TypeVar("C", bound=Config)

_LARGEST = 1 << 40  # value of the setting: no model has more of anything


@dataclass(frozen=True, kw_only=True)
class Match(Config):
    """The size that all variants share, and the setting that changes to match it."""

    what: Literal["params", "flops", "state_bytes"]  # of the whole model, see `Cost`
    knob: str = "model.feedforward.d_ff"  # a dotted setting of every variant; a whole number
    step: int = 8  # the setting is a multiple of it

    def problems(self) -> Iterator[Problem]:
        if self.step < 1:
            yield Problem("step", f"must be at least 1, got {self.step}")

    def solve(self, config: C, size: Callable[[C], int], target: int) -> C:
        """Return `config` with the multiple of `step` whose `size` is nearest to `target`.

        Raises:
            ConfigError: no value of the setting comes within one step of `target`.
        """
        self._require_whole_number(config)

        def at(k: int) -> int:
            return size(self._with_multiple(config, k))

        if at(1) == at(2):
            raise self._error(f"does not change {self.what}; choose a setting that does")
        if at(1) >= target:
            if at(1) - target >= at(2) - at(1):
                raise self._error(
                    f"leaves {self.what} at {at(1):,} even at {self.step}; "
                    f"the baseline has {target:,}"
                )
            return self._with_multiple(config, 1)
        low, high = 1, 2
        while at(high) < target:
            if at(high) == at(low) or high > _LARGEST:
                raise self._error(
                    f"leaves {self.what} at {at(high):,} however large it is; "
                    f"the baseline has {target:,}"
                )
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if at(middle) < target else (low, middle)
        nearest = low if target - at(low) <= at(high) - target else high
        return self._with_multiple(config, nearest)

    def _with_multiple(self, config: C, k: int) -> C:
        value = k * self.step
        try:
            return override(config, [f"{self.knob}={value}"])
        except ConfigError as error:
            raise self._error(f"cannot be {value}: {error.problems[0]}") from None

    def _require_whole_number(self, config: Config) -> None:
        node: Any = config.to_dict()
        for part in self.knob.split("."):
            try:
                node = node[int(part)] if isinstance(node, list) else node[part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise self._error(f"is not a setting: there is no {part!r}") from None
        if isinstance(node, bool) or not isinstance(node, int):
            raise self._error(f"is {node!r}, not a whole number")

    def _error(self, message: str) -> ConfigError:
        return ConfigError([Problem("match", f"{self.knob} {message}")])
