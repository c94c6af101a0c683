"""Variants of one size: a knob of each is turned until it costs what the baseline costs.

The sizes are those that the settings state, so that nothing is built to find them. A size grows
with its knob, and the nearest multiple of `step` is found by bisection; the mismatch that is left
is the study's to record.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from attnlab.config import Config, ConfigError, Problem, override

C = TypeVar("C", bound=Config)

_LARGEST = 1 << 40  # of a knob: no model has more of anything


@dataclass(frozen=True, kw_only=True)
class Match(Config):
    """What all variants have alike, and by which of their settings."""

    what: Literal["params", "flops", "state_bytes"]  # of the whole model, as its `Cost` says
    knob: str = "model.feedforward.d_ff"  # dotted, of every variant; a whole number
    step: int = 8  # the knob takes multiples of it

    def problems(self) -> Iterator[Problem]:
        if self.step < 1:
            yield Problem("step", f"must be at least 1, got {self.step}")

    def solve(self, config: C, size: Callable[[C], int], target: int) -> C:
        """`config` with the knob where `size` is nearest to `target`.

        Raises `ConfigError` where no value of the knob comes within one step of it.
        """
        self._refuse_what_is_no_number(config)

        def at(k: int) -> int:
            return size(self._turned(config, k))

        if at(1) == at(2):
            raise self._error(f"does not change {self.what}; name a knob that does")
        if at(1) >= target:
            if at(1) - target >= at(2) - at(1):
                raise self._error(
                    f"leaves {self.what} at {at(1):,} even at {self.step}; "
                    f"the baseline has {target:,}"
                )
            return self._turned(config, 1)
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
        return self._turned(config, nearest)

    def _turned(self, config: C, k: int) -> C:
        value = k * self.step
        try:
            return override(config, [f"{self.knob}={value}"])
        except ConfigError as error:
            raise self._error(f"cannot be {value}: {error.problems[0]}") from None

    def _refuse_what_is_no_number(self, config: Config) -> None:
        node: Any = config.to_dict()
        for part in self.knob.split("."):
            try:
                node = node[int(part)] if isinstance(node, list) else node[part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise self._error(f"is no setting: there is no {part!r}") from None
        if isinstance(node, bool) or not isinstance(node, int):
            raise self._error(f"is {node!r}, not a whole number")

    def _error(self, message: str) -> ConfigError:
        return ConfigError([Problem("match", f"{self.knob} {message}")])
