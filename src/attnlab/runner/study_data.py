"""The data of a study, read before any worker needs it, and what the user should know of it."""

from collections.abc import Mapping

from attnlab.config import ConfigError
from attnlab.data import Corpus, DataConfig, Places
from attnlab.data.batches import window_problems
from attnlab.study.study import Study


def read_data(study: Study, places: Places) -> dict[str, Corpus]:
    """Return each variant's data; it is read, tokenized and cached before any worker needs it.

    Raises:
        DataError: data is missing or unfit.
        ConfigError: the training split is shorter than one window, or the validation split than
            one of `eval.lengths`.
    """
    found = dict[DataConfig, Corpus]()
    for config in study.variants.values():
        if config.data not in found:
            found[config.data] = config.data.load(places)
    by_variant = {name: found[config.data] for name, config in study.variants.items()}
    problems = dict.fromkeys(
        problem
        for name, config in study.variants.items()
        for problem in window_problems(
            by_variant[name], config.train.seq_len, config.eval.lengths or ()
        )
    )
    if problems:
        raise ConfigError(problems)
    return by_variant


def notes_on_data(study: Study, read: Mapping[str, Corpus]) -> list[str]:
    """Return what the user should know of the data before training, a sentence each."""
    notes = list[str]()
    for corpus in {id(corpus): corpus for corpus in read.values()}.values():
        notes += [*corpus.notes, *corpus.overlaps()]
    for name, corpus in read.items():
        length = study.variants[name].train.seq_len
        notes += [
            f"the {split} split has {len(tokens)} tokens, less than one window of train.seq_len="
            f"{length}: its loss is that of one shorter window"
            for split, tokens in corpus.splits().items()
            if len(tokens) <= length
        ]
    return list(dict.fromkeys(notes))
