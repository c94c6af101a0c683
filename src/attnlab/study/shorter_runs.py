"""Settings of a run replaced; fewer steps shorten the warm-up in proportion."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from attnlab.config import override
from attnlab.training.run import RunConfig


def override_run(config: RunConfig, changes: list[str]) -> RunConfig:
    """Return the run with settings replaced, and with a shorter warm-up if it is shorter."""
    paths = _paths(changes)
    if "train.steps" not in paths or "train.warmup_steps" in paths:
        return override(config, changes)
    changed, before = override(config, [*changes, "train.warmup_steps=0"]), config.train
    share = min(1.0, changed.train.steps / before.steps) if before.steps else 1.0
    warmup_steps = round(before.warmup_steps * share)
    train = dataclasses.replace(changed.train, warmup_steps=warmup_steps)
    return dataclasses.replace(changed, train=train)


def _paths(changes: Iterable[str]) -> list[str]:
    return [change.partition("=")[0].strip() for change in changes]


def warmup_notes(
    before: Mapping[str, RunConfig], after: Mapping[str, RunConfig], changes: Iterable[str]
) -> Iterator[str]:
    """Yield a sentence per warm-up that a shorter run has shortened."""
    if "train.warmup_steps" in _paths(changes):
        return
    for name, config in after.items():
        was, now = before[name].train, config.train
        if now.warmup_steps != was.warmup_steps:
            yield (
                f"warm-up shortened in proportion, from {was.warmup_steps} of {was.steps} steps to "
                f"{now.warmup_steps} of {now.steps}; train.warmup_steps=N sets it"
            )
