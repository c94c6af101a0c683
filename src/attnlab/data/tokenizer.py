"""Settings of tokenizers, which are trained on the training split or read from files.

Byte-level byte-pair encoding: text is cut into words by GPT-2's pattern, a word is a sequence of
bytes, and the most frequent pair of neighbours becomes a new token, until there are `vocab_size`
tokens. All 256 bytes are tokens, so no text is unknown. Sennrich et al. 2016 (arXiv:1508.07909);
Radford et al. 2019 (GPT-2).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Thread

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from attnlab.config import Choice, Problem
from attnlab.data.byte_level_files import (
    byte_level,
    parse_tokenizer_json,
    read_utf8,
    read_vocab_and_merges,
)
from attnlab.data.codec import (
    ByteLevelCodec,
    BytesCodec,
    Codec,
    HuggingFaceCodec,
    IdsCodec,
    pieces,
)
from attnlab.data.documents import measure
from attnlab.data.places import DataError, Places, cached, searched

LEAST_FREQUENCY = 2  # a pair that occurs once does not become a token
_GPT2_REMEDY = (
    "Name their folder with data.tokenizer.path=DIR, or set ATTNLAB_DATA to one that holds them or "
    "has them in gpt2-tokenizer/. To download them: curl -L --remote-name-all "
    "https://huggingface.co/openai-community/gpt2/resolve/main/{vocab.json,merges.txt}"
)


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
    def restore(self, text: str, where: object = "tokenizer.json") -> Codec:
        """Return the codec whose `to_json` was `text`.

        Raises DataError, which names the file `where`, if the text is cut or was edited.
        """


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
        return self.restore(path.read_text(encoding="utf-8"), path)

    def restore(self, text: str, where: object = "tokenizer.json") -> ByteLevelCodec:
        return _restored(text, where, self.vocab_size)

    def _train(self, documents: Iterable[str]) -> tokenizers.Tokenizer:
        untrained = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=LEAST_FREQUENCY,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        parts = (piece for document in documents for piece in pieces(document))
        _interruptible(lambda: untrained.train_from_iterator(parts, trainer))
        return untrained


@dataclass(frozen=True, kw_only=True)
class GPT2(Tokenizer):
    """GPT-2's tokenizer, or another byte-level BPE, from its files.

    `path` is a folder with vocab.json and merges.txt, or with tokenizer.json. Without it, the files
    are searched in the data folder and in its `gpt2-tokenizer` and `gpt2`.
    """

    path: str | None = None
    vocab_size: int = 50_257

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size < 256:
            yield Problem("vocab_size", f"must be at least 256, got {self.vocab_size}")

    def fit(self, training: Iterable[str], places: Places) -> ByteLevelCodec:
        del training
        folders = searched(self.path, places, ("", "gpt2-tokenizer", "gpt2"))
        for folder in folders:
            vocab, merges = folder / "vocab.json", folder / "merges.txt"
            if vocab.is_file() and merges.is_file():
                return _codec(read_vocab_and_merges(vocab, merges), self.vocab_size, vocab)
            if (whole := folder / "tokenizer.json").is_file():
                return _restored(read_utf8(whole), whole, self.vocab_size)
        raise DataError.missing("GPT-2's vocab.json and merges.txt", folders, _GPT2_REMEDY)

    def restore(self, text: str, where: object = "tokenizer.json") -> ByteLevelCodec:
        return _restored(text, where, self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Tokenizer):
    """A tokenizer.json in the form of Hugging Face, of any kind, as the tokenizers library runs it.

    `path` is the file or its folder. Every document has the special tokens that the file adds.
    Bytes per token are not known, since such a tokenizer may normalise the text.
    """

    path: str

    def problems(self) -> Iterator[Problem]:
        if self.vocab_size < 1:
            yield Problem("vocab_size", f"must be at least 1, got {self.vocab_size}")

    def fit(self, training: Iterable[str], places: Places) -> HuggingFaceCodec:
        del training
        given = searched(self.path, places)
        tried = [path / "tokenizer.json" if path.is_dir() else path for path in given]
        file = next((path for path in tried if path.is_file()), None)
        if file is None:
            remedy = "Name it with data.tokenizer.path=FILE or DIR."
            raise DataError.missing("tokenizer.json", tried, remedy)
        return self.restore(read_utf8(file), file)

    def restore(self, text: str, where: object = "tokenizer.json") -> HuggingFaceCodec:
        try:
            trained = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"{where} is no tokenizer.json: {error}") from None
        _require_ids_below(self.vocab_size, trained, where)
        return HuggingFaceCodec(trained, self.vocab_size)


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

    def restore(self, text: str, where: object = "tokenizer.json") -> BytesCodec:
        _require_empty(text, where)
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

    def restore(self, text: str, where: object = "tokenizer.json") -> IdsCodec:
        _require_empty(text, where)
        return IdsCodec(self.vocab_size)


def _codec(tokenizer: tokenizers.Tokenizer, vocab_size: int, where: object) -> ByteLevelCodec:
    _require_ids_below(vocab_size, tokenizer, where)
    return ByteLevelCodec(tokenizer, vocab_size)


def _require_ids_below(vocab_size: int, tokenizer: tokenizers.Tokenizer, where: object) -> None:
    least = max(tokenizer.get_vocab().values(), default=-1) + 1
    if least > vocab_size:
        raise DataError(
            f"{where} has {tokenizer.get_vocab_size()} tokens, tokenizer.vocab_size is "
            f"{vocab_size}: set data.tokenizer.vocab_size={least}"
        )


def _restored(text: str, where: object, vocab_size: int) -> ByteLevelCodec:
    return _codec(parse_tokenizer_json(text, where), vocab_size, where)


def _require_empty(text: str, where: object) -> None:
    if text.strip() != "{}":
        raise DataError(f"{where} is cut or was edited: this tokenizer has no files, only {{}}")


def _interruptible(work: Callable[[], object]) -> None:
    """Call a function of a library that hears Ctrl-C only when it returns.

    It runs in a thread, so that KeyboardInterrupt is raised here at once; the thread then ends with
    the process.
    """
    raised = list[Exception]()

    def call() -> None:
        try:
            work()
        except Exception as error:  # raised below, in the caller's thread
            raised.append(error)

    thread = Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.1)
    if raised:
        raise raised[0]
