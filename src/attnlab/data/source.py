"""The interface of a source of data: settings that load a corpus, three splits of token ids.

    bits per byte = nats per token / ln 2 * tokens / bytes

makes models with different tokenizers comparable, since the bytes of the text are the same. Special
tokens and markers such as <|endoftext|> are predicted like other tokens, but are no bytes of text.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from attnlab.config import Choice
from attnlab.data.codec import Codec, TokenIds
from attnlab.data.documents import measure, text_bytes
from attnlab.data.hold_out import seen_in_training
from attnlab.data.places import DataError, Places, cached
from attnlab.data.tokenizer import Tokenizer

__all__ = ["Corpus", "DataConfig", "DataError", "Examples", "Places", "Texts"]


OVERLAP = 0.02  # fraction of a held-out split; natural text repeats less of another
OVERLAP_BYTES = 128  # of the passages that are compared, about


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The documents of each split, in order."""

    train: Sequence[str]
    valid: Sequence[str]
    test: Sequence[str] | None
    origin: str  # description of the source, without the folders of this machine
    notes: tuple[str, ...] = ()  # what the user should know of the text, a sentence each

    def splits(self) -> dict[str, Sequence[str]]:
        """Return the splits by name; test only if there is one."""
        splits: dict[str, Sequence[str]] = {"train": self.train, "valid": self.valid}
        return splits if self.test is None else {**splits, "test": self.test}


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Sequences of a task, one per window, and their answers: N sequences of T tokens."""

    tokens_NT: NDArray[np.int32]
    answers_NT: NDArray[np.int32]  # what to predict after each token; negative: nothing
    groups_NT: NDArray[np.int8]  # of each answer, the place of its group in `groups`
    groups: tuple[str, ...]  # names of groups of answers, whose accuracy is recorded separately
    choices: int | None = None  # None: each answer is read after its token, among all ids
    # ^ else all are read after the last token, each among its block of so many consecutive ids

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.tokens_NT.shape[1]

    def rows(self, chosen: Any) -> "Examples":
        """Return some of the sequences."""
        return replace(
            self,
            tokens_NT=self.tokens_NT[chosen],
            answers_NT=self.answers_NT[chosen],
            groups_NT=self.groups_NT[chosen],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Token ids of each split, with their codec. Arrays may be read-only memory maps."""

    train: TokenIds  # (tokens,), uint16 if every id of the vocabulary fits, else int32
    valid: TokenIds
    test: TokenIds | None
    bytes: Mapping[str, int | None]  # UTF-8 bytes of the text by split; None if unknown
    codec: Codec
    fingerprint: str  # hexadecimal; equal for equal text and tokenizer, in any folder
    description: Mapping[str, Any]  # JSON values for a record
    notes: tuple[str, ...] = ()  # what the user should know of the data, a sentence each
    duplicated: Mapping[str, float] = field(default_factory=dict)
    # ^ by held-out split, the fraction of its bytes in documents that are also for training
    examples: Mapping[str, Examples] | None = None
    # ^ of a task, by split: the ids then are those of its sequences, each with one more token
    at_length: Callable[[int], Examples] | None = None
    # ^ of a task: validation sequences of another length

    @property
    def vocab_size(self) -> int:
        return self.codec.vocab_size

    def splits(self) -> dict[str, TokenIds]:
        """Return the splits by name; test only if there is one."""
        splits: dict[str, TokenIds] = {"train": self.train, "valid": self.valid}
        return splits if self.test is None else {**splits, "test": self.test}

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids."""
        return self.codec.decode(ids)

    def overlaps(self) -> list[str]:
        """Return a sentence on each held-out split that is partly in another split."""
        if self.examples is not None:  # a task keeps its splits apart
            return []
        held_out = {split: ids for split, ids in self.splits().items() if split != "train"}
        n_bytes = self.bytes["train"] or 4 * len(self.train)
        window = OVERLAP_BYTES if n_bytes < 2 * len(self.train) else OVERLAP_BYTES // 4
        found = list[str]()
        for split, seen in seen_in_training(self.train, held_out, window).items():
            share = max(seen, self.duplicated.get(split, 0.0))
            if share >= OVERLAP:
                found.append(
                    f"{share:.0%} of the {split} split is also in the training split: its loss is "
                    "too low"
                )
        if self.test is not None and np.array_equal(self.valid, self.test):
            found.append("the test split is the validation split")
        return found

    def bits_per_byte(self, split: str, nats_per_token: float) -> float | None:
        """Return the mean loss of a split in bits per byte, or None without known bytes."""
        n_bytes = self.bytes[split]
        if not n_bytes:
            return None
        return nats_per_token / math.log(2) * len(self.splits()[split]) / n_bytes


@dataclass(frozen=True, kw_only=True)
class DataConfig(Choice, ABC):
    """Settings of one source of text. The vocabulary's size is known before any text is read."""

    tokenizer: Tokenizer

    def identity_fields(self) -> dict[str, Any]:
        """Return `to_dict` without paths, since the fingerprint identifies the data."""

        def without_places(tree: dict[str, Any]) -> dict[str, Any]:
            return {
                name: without_places(value) if isinstance(value, dict) else value
                for name, value in tree.items()
                if name not in ("path", "paths")
            }

        return without_places(self.to_dict())

    def in_folder(self, folder: Path) -> Self:
        """Return the same source; relative paths of files that `folder` has are absolute in it.

        Paths are the settings called `path` and `paths`, here and in the tokenizer.
        """

        def placed(name: str, value: Any) -> Any:
            if isinstance(value, Choice):
                own = {f.name: placed(f.name, getattr(value, f.name)) for f in fields(value)}
                return replace(value, **own)
            if name == "paths" and isinstance(value, tuple):
                return tuple(placed("path", one) for one in cast("tuple[Any, ...]", value))
            is_path = name == "path" and isinstance(value, str) and bool(value)
            return str(folder / value) if is_path and (folder / value).exists() else value

        return placed("data", self)

    @abstractmethod
    def texts(self, places: Places) -> Texts:
        """Return the documents of every split. Raises DataError if they are missing or unfit."""

    def load(self, places: Places) -> Corpus:
        """Return the corpus: the tokenizer is trained on the training split and encodes all splits.

        Tokenizer and ids are cached in `places.cache` by the fingerprint of text and settings, and
        the ids are memory-mapped from there. Raises DataError if the data is missing or unfit.
        """
        texts = self.texts(places)
        splits = texts.splits()
        measures = {split: measure(documents) for split, documents in splits.items()}
        for split, measured in measures.items():
            if not measured.n_bytes:
                raise DataError(
                    f"the {split} split of {self.kind()} ({texts.origin}) is empty: give more text"
                )
        codec = self.tokenizer.fit(texts.train, places)
        ids = {
            split: _encoded(codec, documents, measures[split].sha256, places)
            for split, documents in splits.items()
        }
        return self.corpus(
            codec,
            ids,
            n_bytes={
                split: text_bytes(measured, splits[split]) for split, measured in measures.items()
            },
            contents={split: measured.sha256 for split, measured in measures.items()},
            notes=texts.notes,
            duplicated={
                split: _duplicated(texts.train, documents)
                for split, documents in splits.items()
                if split != "train"
            },
            origin=texts.origin,
            documents={split: len(documents) for split, documents in splits.items()},
        )

    def corpus(
        self,
        codec: Codec,
        ids: Mapping[str, TokenIds],
        *,
        n_bytes: Mapping[str, int | None],
        contents: Mapping[str, str],
        notes: tuple[str, ...] = (),
        duplicated: Mapping[str, float] | None = None,
        **facts: Any,
    ) -> Corpus:
        """Return a corpus with its description and the fingerprint of `contents` and codec."""
        identity = json.dumps([codec.fingerprint, dict(contents)], sort_keys=True)
        return Corpus(
            train=ids["train"],
            valid=ids["valid"],
            test=ids.get("test"),
            bytes=n_bytes,
            codec=codec,
            fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
            notes=notes,
            duplicated=duplicated or {},
            description={
                "source": self.kind(),
                **facts,
                "tokens": {split: len(tokens) for split, tokens in ids.items()},
                "bytes": dict(n_bytes),
                "tokenizer": {
                    "kind": self.tokenizer.kind(),
                    "vocab_size": codec.vocab_size,
                    "n_tokens": codec.n_tokens,
                },
            },
        )


def _duplicated(training: Iterable[str], documents: Iterable[str]) -> float:
    """Return the fraction of documents, by characters, that are also for training."""
    known = set(training)
    sizes = [(len(text), text in known) for text in documents]
    return sum(size for size, twice in sizes if twice) / sum(size for size, _ in sizes)


def _encoded(codec: Codec, documents: Sequence[str], contents: str, places: Places) -> TokenIds:
    key = hashlib.sha256(f"{codec.fingerprint} {contents}".encode()).hexdigest()
    path = cached(
        places.cache / "tokens" / f"{key}.npy",
        # a file itself would be written by numpy's tofile, which hides why the disk refuses
        lambda file: np.save(cast(Any, SimpleNamespace(write=file.write)), codec.encode(documents)),
    )
    return np.load(path, mmap_mode="r")
