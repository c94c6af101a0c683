"""A changed study, its results folder and its data, as a caller asks for them."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from attnlab.config import ConfigError, Problem
from attnlab.data import Corpus, DataConfig, Places
from attnlab.study.study import Study, load_study
from attnlab.training.config import EvalConfig


def changed(
    study: Study | str,
    *,
    length: str | None = None,
    only: Iterable[str] | str | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    overrides: Iterable[str] = (),
    tune: bool = True,
) -> Study:
    """A study, or one by its name or path, with other settings. Nothing is changed by default.

    Args:
        length: one of the study's named lengths.
        only: variants, as a list or separated by commas.
        seeds: seeds a variant.
        steps: training steps.
        overrides: dotted settings of every variant, such as `train.learning_rate=1e-3`.
        tune: False for the learning rates that the variants name.

    Raises ValueError for a study that is not there, and ConfigError with every wrong setting.
    """
    if isinstance(study, str):
        study = load_study(study)
    if length is not None:
        study = study.at_length(length)
    if only is not None:
        names = only.split(",") if isinstance(only, str) else only
        study = study.only(name.strip() for name in names)
    if seeds is not None:
        study = dataclasses.replace(study, seeds=seeds)
    if not tune:
        study = dataclasses.replace(study, learning_rates=None)
    changes = [*([] if steps is None else [f"train.steps={steps}"]), *overrides]
    return study.override(changes) if changes else study


def folder_of(study: Study, out: Path | str | None = None) -> Path:
    """Where its results are: `out`, or results/NAME. Raises ValueError where it has no name."""
    if out is None and not study.name:
        raise ValueError('this study has no name: say Study(name="..."), or its folder with out')
    return Path("results") / study.name if out is None else Path(out)


def corpora(study: Study, places: Places) -> dict[str, Corpus]:
    """Each variant's data, which is read, tokenized and cached here, before any worker asks.

    Raises ConfigError where a validation split does not fill one window of `eval.lengths`.
    """
    found = dict[DataConfig, Corpus]()
    for config in study.variants.values():
        if config.data not in found:
            found[config.data] = config.data.load(places)
    by_variant = {name: found[config.data] for name, config in study.variants.items()}
    problems = dict.fromkeys(
        problem
        for name, config in study.variants.items()
        for problem in _too_long(config.eval, len(by_variant[name].valid))
    )
    if problems:
        raise ConfigError(problems)
    return by_variant


def _too_long(measured: EvalConfig, n_tokens: int) -> Iterator[Problem]:
    for length in measured.lengths or ():
        if length >= n_tokens:
            yield Problem(
                "eval.lengths",
                f"a window of {length} needs {length + 1} tokens, and the validation split has "
                f"{n_tokens}: leave it out, or give more text",
            )
