"""A point of a bench (variant, workload, context length, batch size), and its conditions."""

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from attnlab.analysis.numbers import tokens
from attnlab.benchmarking.targets import Setup
from attnlab.config import names_in, whole_number
from attnlab.config.values import MOST_DIGITS
from attnlab.device.flops import Ceilings
from attnlab.model.language_model import LanguageModel

Workload = Literal["train", "prefill", "decode"]
WORKLOADS: tuple[Workload, ...] = ("train", "prefill", "decode")
LONGEST = 65_536  # tokens; the longest context by default
GROWTH = 4  # ratio of consecutive contexts


class Point(NamedTuple):
    """One measurement to make."""

    variant: str
    what: Workload  # one training step, one prefill, or one decoded token
    context: int  # tokens per sequence; in decoding including the new one
    batch: int  # sequences

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Point":
        """Return the point of a result in bench.json."""
        return cls(*(result[name] for name in cls._fields))

    def covers(self, other: "Point") -> bool:
        """True if `other` differs at most in a larger context or batch."""
        same = (self.variant, self.what) == (other.variant, other.what)
        return same and self.context <= other.context and self.batch <= other.batch

    def __str__(self) -> str:
        return f"{self.variant} {self.what} {tokens(self.context)} x {self.batch}"


def points(
    variants: Iterable[tuple[str, int]],
    workloads: Iterable[Workload],
    contexts: Iterable[int] | None,
    batches: Iterable[int],
) -> Iterator[Point]:
    """Yield every combination, smaller points first.

    `variants` are names with their sequence lengths. Without `contexts` the contexts of a variant
    grow from its sequence length to 64K, each four times the one before.
    """
    listed, workloads, batches = sorted(contexts or ()), tuple(workloads), sorted(batches)
    for variant, seq_len in variants:
        for what in workloads:
            for context in listed or growing(seq_len):
                for batch in batches:
                    yield Point(variant, what, context, batch)


def growing(first: int) -> list[int]:
    """Return contexts from the first to 64K, each four times the one before.

    >>> growing(1024), growing(100_000)
    ([1024, 4096, 16384, 65536], [100000])
    """
    contexts = [first]
    while contexts[-1] * GROWTH <= LONGEST:
        contexts.append(contexts[-1] * GROWTH)
    return contexts


def numbers(given: Iterable[int] | str, name: str) -> list[int]:
    """Return whole numbers, or those in a text: `1k,4k` is 1,024 and 4,096.

    Raises ValueError, which mentions `name`, for anything else.

    >>> numbers("1k,4K,100", "contexts"), numbers([8], "batches")
    ([1024, 4096, 100], [8])
    """
    found = list[int]()
    for word in given.split(",") if isinstance(given, str) else map(str, given):
        value = whole_number(word)
        if value is None or not 1 <= value < 10**MOST_DIGITS:
            raise ValueError(f"{name}: {word!r} is not a positive whole number; examples: 1k,4k")
        found.append(value)
    return found


def workloads(given: Iterable[str] | str) -> list[Workload]:
    """Return the workloads in a list or a text. Raises ValueError for none or an unknown one."""
    found = names_in(given)
    if not found:
        raise ValueError(f"what: name at least one of {', '.join(WORKLOADS)}")
    for word in found:
        if word not in WORKLOADS:
            raise ValueError(f"what: {word!r} is not one of {', '.join(WORKLOADS)}")
    return cast("list[Workload]", found)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Device, its peak rates, and how long each point is timed."""

    device: torch.device
    ceilings: Ceilings
    compiled: bool = False
    seconds: float = 1.0  # approximate duration of the timed calls of a point

    @property
    def serving_dtype(self) -> torch.dtype:
        """Dtype of weights and states in prefill and decoding."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def bare_model(setup: Setup, device: torch.device) -> LanguageModel:
    """Return the model with its layers' own initial weights, allocated on the device itself.

    The initialization of a study draws each parameter on the CPU, which takes a second and does not
    change how fast the model is.
    """
    with torch.device(device):
        return LanguageModel(setup.model, setup.vocab_size)


def random_tokens(setup: Setup, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return int64 token ids of this shape, drawn uniformly from the vocabulary."""
    return torch.randint(setup.vocab_size, shape, device=device)


def release(under: Conditions) -> None:
    """Free the memory of the last point, and its compiled model."""
    gc.collect()  # a model and its optimizer refer to each other
    if under.device.type == "cuda":
        torch.cuda.empty_cache()
    if under.compiled:  # torch stops compiling silently after some number of models
        torch.compiler.reset()
