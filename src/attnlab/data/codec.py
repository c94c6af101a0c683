"""Convert text to token ids and back, exactly: `decode(encode([text])) == text` for every text.

Whole documents are encoded one after another, without separators. Every token represents bytes of
the text, so bits per byte follow from the tokens:

    bits per byte = nats per token / ln 2 * tokens / bytes
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as TrainedTokenizer

from attnlab.data.places import DataError

TokenIds: TypeAlias = NDArray[np.uint16 | np.int32]

PIECE_CHARACTERS = 1 << 16  # about the length of the parts of a long document, for use of all cores
BATCH_PIECES = 128  # pieces per call, which limits its memory


class Codec(ABC):
    """A tokenizer that is ready for use: trained, or read from its files."""

    vocab_size: int  # rows of the model's embedding; every id is lower
    n_tokens: int  # tokens that exist, at most `vocab_size`
    fingerprint: str  # equal for codecs that encode every text to equal ids

    @abstractmethod
    def encode(self, documents: Iterable[str]) -> TokenIds:
        """Return the ids of all documents in order, shape (tokens,), in `id_dtype(vocab_size)`."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids. Bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def n_bytes(self, ids: TokenIds) -> int | None:
        """Return the number of UTF-8 bytes of the text of these ids, or None if it is unknown."""

    @abstractmethod
    def to_json(self) -> str:
        """Return the whole codec as JSON, the inverse of `Tokenizer.restore`."""


class ByteLevelCodec(Codec):
    """Byte-level BPE with GPT-2's pre-tokenisation, run by the tokenizers library on all cores.

    In a process that was forked after encoding, the library writes a warning and uses one core:
    spawn workers instead, or set TOKENIZERS_PARALLELISM.
    """

    def __init__(self, trained: TrainedTokenizer, vocab_size: int) -> None:
        self.trained, self.vocab_size = trained, vocab_size
        self.n_tokens = trained.get_vocab_size()
        model = json.loads(trained.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        canonical = json.dumps([vocab_size, model["vocab"], merges], sort_keys=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, documents: Iterable[str]) -> TokenIds:
        dtype, parts = id_dtype(self.vocab_size), list[TokenIds]()
        for batch in _batches(documents):
            for encoding in self.trained.encode_batch_fast(batch, add_special_tokens=False):
                parts.append(np.array(encoding.ids, dtype))
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return self.trained.decode([int(i) for i in ids], skip_special_tokens=False)

    def n_bytes(self, ids: TokenIds) -> int:
        return int(self._width_of_token[ids].sum())

    def to_json(self) -> str:
        return self.trained.to_str()

    @cached_property
    def _width_of_token(self) -> NDArray[np.int64]:
        widths = np.zeros(self.vocab_size, np.int64)
        for token, i in self.trained.get_vocab().items():
            widths[i] = len(token)  # the byte-level alphabet has one character per byte
        return widths


class BytesCodec(Codec):
    """One token per byte of UTF-8."""

    vocab_size = n_tokens = 256
    fingerprint = "bytes"

    def encode(self, documents: Iterable[str]) -> TokenIds:
        text = b"".join(document.encode() for document in documents)
        return np.frombuffer(text, np.uint8).astype(np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode(errors="replace")

    def n_bytes(self, ids: TokenIds) -> int:
        return len(ids)

    def to_json(self) -> str:
        return "{}"


class IdsCodec(Codec):
    """Token ids without known text, shown as numbers."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = self.n_tokens = vocab_size
        self.fingerprint = f"ids below {vocab_size}"

    def encode(self, documents: Iterable[str]) -> TokenIds:
        """Read numbers that are separated by white space, as `decode` writes them."""
        try:
            ids = [int(word) for document in documents for word in document.split()]
            return np.array(ids, id_dtype(self.vocab_size))
        except (ValueError, OverflowError) as error:
            raise DataError(
                "tokenizer=ids reads numbers only, and the text holds something else "
                f"({error}); use tokenizer=bpe for text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def n_bytes(self, ids: TokenIds) -> None:
        del ids

    def to_json(self) -> str:
        return "{}"


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return uint16 if it holds every id of the vocabulary, else int32."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def pieces(document: str) -> Iterator[str]:
    """Yield a document in parts of about `PIECE_CHARACTERS`, without a change of any token.

    A cut is made before the last white space in front of a word, where GPT-2's pattern always cuts:
    a space belongs to the word, and a newline stands alone. A document without such a place stays
    whole.
    """
    start = 0
    while found := _BEFORE_A_WORD.search(document, start + PIECE_CHARACTERS):
        yield document[start : found.start()]
        start = found.start()
    yield document[start:]


_BEFORE_A_WORD = re.compile(r"[ \n](?=\w)")


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, left = list[str](), BATCH_PIECES * PIECE_CHARACTERS
    for document in documents:
        for piece in pieces(document):
            batch.append(piece)
            left -= len(piece)
            if left <= 0:
                yield batch
                batch, left = [], BATCH_PIECES * PIECE_CHARACTERS
    if batch:
        yield batch
