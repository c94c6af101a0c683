"""One place to measure: a variant, what it does, how many tokens it sees, how many sequences."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, cast

from attnlab.config import token_count

What = Literal["train", "prefill", "decode"]
ACTIVITIES: tuple[What, ...] = ("train", "prefill", "decode")
LONGEST = 65_536  # tokens, where no contexts are named
GROWTH = 4  # from one context to the next


class Point(NamedTuple):
    variant: str
    what: What  # one training step, one prefill, or one decoded token
    context: int  # tokens of a sequence; in decoding the new one included
    batch: int  # sequences

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Point":
        """The point that a line of bench.json is about."""
        return cls(*(result[name] for name in cls._fields))

    def covers(self, other: "Point") -> bool:
        """Whether `other` is at least as large, in context and batch, and the same otherwise."""
        same = (self.variant, self.what) == (other.variant, other.what)
        return same and self.context <= other.context and self.batch <= other.batch

    def __str__(self) -> str:
        return f"{self.variant} {self.what} {tokens(self.context)} x {self.batch}"


def points(
    variants: Iterable[tuple[str, int]],
    activities: Iterable[What],
    contexts: Iterable[int] | None,
    batches: Iterable[int],
) -> Iterator[Point]:
    """All of them, each variant with its own sequence length, smaller ones first.

    Without `contexts` they grow from the sequence length by fours to 64K.
    """
    listed, activities, batches = sorted(contexts or ()), tuple(activities), sorted(batches)
    for variant, seq_len in variants:
        for what in activities:
            for context in listed or growing(seq_len):
                for batch in batches:
                    yield Point(variant, what, context, batch)


def growing(first: int) -> list[int]:
    """
    >>> growing(1024), growing(100_000)
    ([1024, 4096, 16384, 65536], [100000])
    """
    contexts = [first]
    while contexts[-1] * GROWTH <= LONGEST:
        contexts.append(contexts[-1] * GROWTH)
    return contexts


def numbers(text: str, option: str) -> list[int]:
    """Whole numbers from a command line: `1k,4k` is 1,024 and 4,096.

    Raises ValueError for anything else.

    >>> numbers("1k,4K,100", "--contexts")
    [1024, 4096, 100]
    """
    found = list[int]()
    for word in text.split(","):
        value = token_count(word)
        if not value:
            raise ValueError(f"{option} {text}: {word!r} is no whole number; say 1k,4k or 1,8")
        found.append(value)
    return found


def activities(text: str) -> list[What]:
    """What to measure, from a command line. Raises ValueError for a word that is none of them."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in ACTIVITIES:
            raise ValueError(f"--what {text}: {word!r} is none of {', '.join(ACTIVITIES)}")
    return cast("list[What]", words)


def tokens(count: int) -> str:
    """A context as people write it.

    >>> tokens(16_384), tokens(1000)
    ('16K', '1000')
    """
    return f"{count // 1024}K" if count % 1024 == 0 else str(count)
