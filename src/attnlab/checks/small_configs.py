"""Settings, shapes and inputs that are small enough for a check to take seconds."""

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from math import prod
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

import attnlab.mechanisms  # noqa: F401  # pyright: ignore[reportUnusedImport]  registers the kinds
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.fla_layer import FlaLayer

REACH_WORDS = ("window", "top_k", "chunk", "block")  # in names of fields that bound the reach
CHEAP = 139  # tokens: a trial of at most so many is cheap
MOST_KEPT = 100_000  # numbers of a draw that is kept: at most 200 MB of them all
SMALL = 16  # tokens: window, top-k or chunk of a kind that is checked by its name
BATCHES = (2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 32, 64, 128)  # sizes that a mechanism might treat apart
FEW = 11  # tokens of a trial of many batch sizes, one of which is as large
PAST_64 = 75  # tokens: past one chunk of most kernels
PAST_256 = 330  # tokens, of which bfloat16 can count 256
PAST_512 = 530  # tokens of a trial that is made in float64, with gradients
LONG = 1_050  # tokens: past 1,024, which steps after a prompt cross, and no multiple of a chunk
PAST_LONG = 1_088  # tokens: 17 whole chunks of 64, past 1,024, too
FAR = 4_120  # tokens of one sequence, which few trials have: the same past 4,096
HUGE = 30.0  # scale of inputs that are far larger than those of training
MOST_TOKENS = 8_192  # of a batch that has the shape of a study's; a larger one takes minutes


def small(
    kind: type[MechanismConfig] | str, settings: Mapping[str, Any] | None = None
) -> MechanismConfig:
    """Return a kind with its default settings, but a window, top-k or chunk of at most 16.

    `settings` replace the defaults and stay as they are. Raises ValueError for an unknown kind,
    and ConfigError for impossible settings.

    >>> small("sliding_window").window, small("sliding_window", {"window": 40}).window
    (16, 40)
    """
    cls = MechanismConfig.of_kind(kind) if isinstance(kind, str) else kind
    missing = sorted(getattr(cls, "__abstractmethods__", ()))
    if missing:
        path, line = inspect.getsourcefile(cls), inspect.getsourcelines(cls)[1]
        raise ValueError(f"{path}:{line}: {cls.__name__} has no {', '.join(missing)}: define it")
    given = settings or {}
    return shortened(cls.from_dict({"kind": cls.kind(), **given}), SMALL, keep=given)


def shortened(config: MechanismConfig, limit: int, keep: Collection[str] = ()) -> MechanismConfig:
    """Return the settings with a window, top-k or chunk of at most `limit`, if they allow it.

    Fields in `keep` stay as they are.
    """
    long = {name for name, value in bounds(config).items() if value > limit}
    changes = dict.fromkeys(long.difference(keep), limit)
    try:
        return replace(config, **changes)
    except ConfigError:
        return config


def bounds(config: MechanismConfig) -> dict[str, int]:
    """Return the settings that bound how many tokens a token sees at once, by name.

    >>> from attnlab.mechanisms.sliding_window import SlidingWindow
    >>> bounds(SlidingWindow(window=64))
    {'window': 64}
    """
    of_kernels = {"chunk_size"} if isinstance(config, FlaLayer) else set[str]()
    named = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if any(word in field.name for word in REACH_WORDS) and field.name not in of_kernels
    }
    return {name: value for name, value in named.items() if type(value) is int}


def other_values(config: MechanismConfig) -> tuple[list[dict[str, Any]], ...]:
    """Return three groups of changes of settings, each of which is tried with those before it.

    First: six heads in two groups, or three heads; every switch the other way round; and every
    second one of the other numbers is halved, so that numbers that were equal are not. Then one
    head, all other numbers halved, and `others_stated`. Then windows of 7.
    """
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    heads = [name for name in values if name.endswith("heads")]
    grouped = len({values[name] for name in heads}) == 1 and any("kv" in name for name in heads)
    threes = {name: (2 if "kv" in name else 6) if grouped else 3 for name in heads}
    others = {n: v for n, v in values.items() if n not in heads and n not in bounds(config)}
    switched = [{n: not v} for n, v in others.items() if type(v) is bool and "causal" not in n]
    amounts = [(n, v) for n, v in others.items() if type(v) in (int, float) and v > 0]
    halved = [{n: v / 2 if type(v) is float else v // 2 or 2} for n, v in amounts]
    return (
        [threes, *switched, *halved[1::2]],
        [dict.fromkeys(heads, 1), *halved, *others_stated(config)],
        [dict.fromkeys(bounds(config), 7)],
    )


def others_stated(config: MechanismConfig) -> list[dict[str, Any]]:
    """Return another value of each setting that is a choice, and of each number that may be none.

    Some of them may not run here, or only with short sequences.

    >>> others_stated(small("mla"))[1:]
    [{'output_gate': 'element'}, {'logit_softcap': 0.5}]
    """
    hints, found = get_type_hints(type(config)), list[dict[str, Any]]()
    for field in fields(config):
        name, value, hint = field.name, getattr(config, field.name), hints[field.name]
        for option in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
            if get_origin(option) is Literal and name != "kernel":
                found += [{name: each} for each in get_args(option) if each != value][-1:]
            elif value is None and option in _GIVEN:
                found.append({name: _GIVEN[option]})
    return found


_GIVEN: dict[Any, Any] = {int: 8, float: 0.5}  # in place of none


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return standard normal numbers in float64; most checks ask for the same ones again."""
    return (_drawn if prod(shape) <= MOST_KEPT else _drawn.__wrapped__)(shape, seed)


@lru_cache(maxsize=256)
def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The batch sizes and sequence lengths in which a mechanism is tried."""

    config: MechanismConfig
    quick: bool = False  # fewer shapes and modes, as before every study
    batch_size: int | None = None  # sequences per batch of the study; None: there is no study
    seq_len: int | None = None  # tokens per sequence of the study

    @cached_property
    def reach(self) -> int:
        """The longest window, top-k, chunk or block in the settings; 0 if there is none."""
        return max(bounds(self.config).values(), default=0)

    @property
    def past(self) -> int:
        """An odd sequence length beyond the reach: about twice as long where that is cheap."""
        if not self.reach:
            return 37
        return max(37, 2 * self.reach + 3) if self.reach <= 32 else (self.reach + 3) | 1

    @property
    def short(self) -> int:
        """The length of trials that are made in many modes: past the reach where that is cheap."""
        return self.past if self.past <= CHEAP else 37

    @property
    def lengths(self) -> list[int]:
        """Sequence lengths to check, ascending; blocks of 64 and 128 tokens end inside."""
        return [1, 7, self.past] if self.quick else sorted({1, 2, 7, 75, 139, self.past})

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(batch size, length): every length, with batch sizes 3 and 1 alternately."""
        return [(1 if i % 2 else 3, tokens) for i, tokens in enumerate(self.lengths)]

    @property
    def of_study(self) -> tuple[int, int] | None:
        """(batch size, length) of the study, the batch smaller if that is too large to check."""
        if self.batch_size is None or self.seq_len is None:
            return None
        tokens = min(self.seq_len, MOST_TOKENS // 2)
        return max(1, min(self.batch_size, MOST_TOKENS // tokens)), tokens

    @property
    def whole_batch(self) -> tuple[int, int]:
        """(batch size, length) of a batch as large as the study's, sequences shorter if need be.

        It has 4 sequences without a study, and as many as can be checked in place of more.
        """
        batch = min(max(self.batch_size or 4, 3), MOST_TOKENS // 2)
        return batch, min(self.short, MOST_TOKENS // batch)

    def cuts(self, tokens: int) -> list[int]:
        """Return positions that split a sequence: at both ends, inside, and around boundaries."""
        edges = {1, 2, tokens // 3, tokens // 2, tokens - 1}
        boundaries = (self.reach,) if self.quick else (self.reach, 16, 32, 64, 128)
        edges |= {b + offset for b in boundaries for offset in (-1, 0, 1)}
        if tokens <= 12:
            edges |= set(range(tokens))
        return sorted(edge for edge in edges if 0 < edge < tokens)
