"""Settings of tokenizers, which are trained on the training split or read from files.

Byte-level byte-pair encoding: text is cut into words by GPT-2's pattern, a word is a sequence of
bytes, and the most frequent pair of neighbours becomes a new token, until there are `vocab_size`
tokens. All 256 bytes are tokens, so no text is unknown. Sennrich et al. 2016 (arXiv:1508.07909);
Radford et al. 2019 (GPT-2).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from attnlab.config import Choice, Problem
from attnlab.data.codec import ByteLevelCodec, BytesCodec, Codec, IdsCodec, pieces
from attnlab.data.documents import measure
from attnlab.data.places import DataError, Places, cached

LEAST_FREQUENCY = 2  # a pair that occurs once does not become a token


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Choice, ABC):
    """Settings of a tokenizer. The vocabulary's size is known before any text is read."""

    vocab_size: int

    @abstractmethod
    def fit(self, training: Iterable[str], places: Places) -> Codec:
        """Return the codec, trained on the documents of the training split or read from files.

        Raises DataError if a file is missing or invalid.
        """

    @abstractmethod
    def restore(self, text: str) -> Codec:
        """Return the codec whose `to_json` was `text`."""


@dataclass(frozen=True, kw_only=True)
class BPE(Tokenizer):
    """Byte-pair encoding, trained on the training split and cached by its fingerprint.

    A small text may have fewer than `vocab_size` frequent pairs. The vocabulary then keeps its
    stated size, ids without a token never occur, and the description of the corpus has the number
    of tokens.
    """

    vocab_size: int = 32_000

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size < 257:
            message = f"must be at least 257 (256 bytes and one merge), got {self.vocab_size}"
            yield Problem("vocab_size", f"{message}; tokenizer=bytes has 256")

    def fit(self, training: Iterable[str], places: Places) -> ByteLevelCodec:
        documents = list(training)
        recipe = f"{self.vocab_size} {LEAST_FREQUENCY} {tokenizers.__version__}".encode()
        key = hashlib.sha256(recipe + bytes.fromhex(measure(documents).sha256)).hexdigest()
        path = cached(
            places.cache / "tokenizers" / f"{key}.json",
            lambda file: file.write(self._train(documents).to_str().encode()),
        )
        return self.restore(path.read_text(encoding="utf-8"))

    def restore(self, text: str) -> ByteLevelCodec:
        return ByteLevelCodec(tokenizers.Tokenizer.from_str(text), self.vocab_size)

    def _train(self, documents: Iterable[str]) -> tokenizers.Tokenizer:
        untrained = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=LEAST_FREQUENCY,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        untrained.train_from_iterator((p for d in documents for p in pieces(d)), trainer)
        return untrained


@dataclass(frozen=True, kw_only=True)
class GPT2(Tokenizer):
    """GPT-2's tokenizer, or another byte-level BPE, from vocab.json and merges.txt.

    Without `path`, the files are searched in the data folder and in its `gpt2-tokenizer`.
    """

    path: str | None = None
    vocab_size: int = 50_257

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size < 256:
            yield Problem("vocab_size", f"must be at least 256, got {self.vocab_size}")

    def fit(self, training: Iterable[str], places: Places) -> ByteLevelCodec:
        del training
        vocab, merges = self._files(places)
        try:
            codec = ByteLevelCodec(
                _byte_level(models.BPE.from_file(str(vocab), str(merges))), self.vocab_size
            )
        except Exception as error:  # the library raises no more specific class
            raise DataError(
                f"{vocab.parent}: vocab.json and merges.txt do not match: {error}"
            ) from None
        missing = set(pre_tokenizers.ByteLevel.alphabet()) - codec.trained.get_vocab().keys()
        if missing:
            raise DataError(f"{vocab} is not byte-level: it lacks {len(missing)} of the 256 bytes")
        if max(codec.trained.get_vocab().values()) >= self.vocab_size:
            raise DataError(
                f"{vocab} has {codec.n_tokens} tokens, tokenizer.vocab_size is {self.vocab_size}: "
                f"set tokenizer.vocab_size={max(codec.trained.get_vocab().values()) + 1}"
            )
        return codec

    def restore(self, text: str) -> ByteLevelCodec:
        return ByteLevelCodec(tokenizers.Tokenizer.from_str(text), self.vocab_size)

    def _files(self, places: Places) -> tuple[Path, Path]:
        if self.path is not None:
            folders = [Path(self.path).expanduser()]
        else:
            folders = [places.data, places.data / "gpt2-tokenizer"] if places.data else []
        for folder in folders:
            vocab, merges = folder / "vocab.json", folder / "merges.txt"
            if vocab.is_file() and merges.is_file():
                return vocab, merges
        raise DataError.missing(
            "GPT-2's vocab.json and merges.txt",
            folders,
            "Name their folder with tokenizer.path=DIR, or set ATTNLAB_DATA to one that holds them "
            "or has them in gpt2-tokenizer/.",
        )


@dataclass(frozen=True, kw_only=True)
class Bytes(Tokenizer):
    """One token per byte: 256 tokens, without training."""

    vocab_size: int = 256

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size != 256:
            yield Problem("vocab_size", f"must be 256, the number of bytes; got {self.vocab_size}")

    def fit(self, training: Iterable[str], places: Places) -> BytesCodec:
        del training, places
        return BytesCodec()

    def restore(self, text: str) -> BytesCodec:
        del text
        return BytesCodec()


@dataclass(frozen=True, kw_only=True)
class Ids(Tokenizer):
    """Saved tokens without known text: numbers below `vocab_size`."""

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size < 1:
            yield Problem("vocab_size", f"must be at least 1, got {self.vocab_size}")

    def fit(self, training: Iterable[str], places: Places) -> IdsCodec:
        del training, places
        return IdsCodec(self.vocab_size)

    def restore(self, text: str) -> IdsCodec:
        del text
        return IdsCodec(self.vocab_size)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
