"""Settings of a run replaced, and what follows from them.

Fewer steps shorten the warm-up in proportion. `model.size=8x256` and `model.scale=2` are no
settings of a run: they give a model another size, from which the settings follow (`model.scale`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

from attnlab.config import ConfigError, Problem, override
from attnlab.model.scale import size_of
from attnlab.training.run import RunConfig

SIZES = {"model.size", "model.scale"}
FOLLOWING = {"train.warmup_steps", "train.learning_rate"}  # of other settings, if not given
OF_A_RUNG = {*SIZES, "model.n_layers", "model.d_model"}  # what a variant of a ladder is named after


def override_run(config: RunConfig, changes: list[str]) -> RunConfig:
    """Return the run with settings replaced, and with a shorter warm-up if it is shorter.

    A size comes first, so that settings beside it replace those that follow from it.
    """
    sizes = [change for change in changes if change.partition("=")[0].strip() in SIZES]
    if len(sizes) > 1:
        raise ConfigError([Problem("model.size", f"give one size; got {' and '.join(sizes)}")])
    if sizes:
        path, _, text = sizes[0].partition("=")
        name = path.strip().rpartition(".")[2]
        try:
            config = config.with_size(*size_of(config.model, name, text.strip()), name)
        except ConfigError as error:
            raise ConfigError(problem.under("model") for problem in error.problems) from None
        changes = [change for change in changes if change not in sizes]
    paths = paths_of(changes)
    if "train.steps" not in paths or "train.warmup_steps" in paths:
        return override(config, changes)
    changed, before = override(config, [*changes, "train.warmup_steps=0"]), config.train
    share = min(1.0, changed.train.steps / before.steps) if before.steps else 1.0
    warmup_steps = round(before.warmup_steps * share)
    train = dataclasses.replace(changed.train, warmup_steps=warmup_steps)
    return dataclasses.replace(changed, train=train)


def changed_runs(
    variants: Mapping[str, RunConfig], change: Callable[[RunConfig], RunConfig]
) -> dict[str, RunConfig]:
    """Return all variants changed. Raises ConfigError with the problems of all of them."""
    changed, found = dict[str, RunConfig](), dict[Problem, list[str]]()
    for name, config in variants.items():
        try:
            changed[name] = change(config)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(name)
    if found:
        raise ConfigError(
            problem
            if len(names) == len(variants)
            else problem._replace(message=f"{problem.message} (in {', '.join(names)})")
            for problem, names in found.items()
        )
    return changed


def in_proportion(
    changes: list[str], ladder: Mapping[str, RunConfig]
) -> Callable[[RunConfig], list[str]]:
    """Return the changes of each run: on a ladder, `train.steps` are those of its longest budget.

    Args:
        changes: the assignments; the last one of a setting counts.
        ladder: the variants of a ladder; empty for a study that is none.

    Raises:
        ConfigError: the size of a ladder's variants is changed, after which they are named.
    """
    if ladder and (named := [path for path in paths_of(changes) if path in OF_A_RUNG]):
        why = "the variants of a ladder have sizes of their own; choose some with --only"
        raise ConfigError(Problem(path, why) for path in dict.fromkeys(named))
    longest = max((config.train.steps for config in ladder.values()), default=0)

    def of_run(config: RunConfig) -> list[str]:
        if not longest or "train.steps" not in paths_of(changes):
            return changes
        (*_, steps) = [change for change in changes if paths_of([change]) == ["train.steps"]]
        given = override(config, [steps, "train.warmup_steps=0"]).train.steps
        return [*changes, f"train.steps={max(1, round(given * config.train.steps / longest))}"]

    return of_run


def paths_of(changes: Iterable[str]) -> list[str]:
    """Return the paths of assignments `path=value`."""
    return [change.partition("=")[0].strip() for change in changes]


def notes_of(
    before: Mapping[str, RunConfig], after: Mapping[str, RunConfig], changes: Iterable[str]
) -> Iterator[str]:
    """Yield a sentence per warm-up and per learning rate that followed from other settings."""
    changes = paths_of(changes)
    if "train.learning_rate" not in changes and SIZES & set(changes):
        for name, config in after.items():
            was, now = before[name], config
            if was.train.learning_rate != now.train.learning_rate:
                yield (
                    f"peak learning rate changed as 1 / width, from {was.train.learning_rate:.3g} "
                    f"at {was.model.d_model} to {now.train.learning_rate:.3g} at "
                    f"{now.model.d_model}; train.learning_rate=RATE sets it"
                )
    if "train.warmup_steps" in changes:
        return
    for name, config in after.items():
        was, now = before[name].train, config.train
        if now.warmup_steps != was.warmup_steps:
            yield (
                f"warm-up shortened in proportion, from {was.warmup_steps} of {was.steps} steps to "
                f"{now.warmup_steps} of {now.steps}; train.warmup_steps=N sets it"
            )


def names_of_lengths(study: str, lengths: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return the studies of all lengths by name, each with the value of `--length`.

    That of the study itself is empty, unless one of its lengths changes no setting. There are none
    where no length changes any.

    >>> names_of_lengths("mine", {"short": ("train.steps=10",), "full": ()})
    {'mine': 'full', 'mine_short': 'short'}
    """
    found = {f"{study}_{length}": length for length, changes in lengths.items() if changes}
    own = next((length for length, changes in lengths.items() if not changes), "")
    return {study: own, **found} if found else {}
