"""Text to token ids and back, exactly: `decode(encode([text])) == text` for every text.

Documents are encoded whole, one after the other, and nothing is put between them: a token stands
for bytes of the text and for nothing else, so that bits per byte can be computed from the tokens.

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

PIECE_CHARACTERS = 1 << 16  # a long document is cut to about this, so that all cores encode it
BATCH_PIECES = 128  # pieces in flight: bounds the memory of one call


class Codec(ABC):
    """A tokenizer ready for use: trained, or read from its files."""

    vocab_size: int  # rows of the model's embedding: every id is below
    n_tokens: int  # tokens that exist, at most `vocab_size`
    fingerprint: str  # the same for two codecs that encode every text to the same ids

    @abstractmethod
    def encode(self, documents: Iterable[str]) -> TokenIds:
        """Return the ids of all documents in order, shape (tokens,), as `id_dtype(vocab_size)`."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids. Bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def n_bytes(self, ids: TokenIds) -> int | None:
        """Return the number of UTF-8 bytes that these ids stand for, or None if it is unknown."""

    @abstractmethod
    def to_json(self) -> str:
        """Return the codec as JSON text, for a record; `Tokenizer.restore` reads it."""


class ByteLevelCodec(Codec):
    """Byte-level BPE with GPT-2's pre-tokenisation, run by the tokenizers library on all cores.

    The library warns on standard error, and falls back to one core, in a process forked after it
    encoded; start workers afresh (spawn), or set TOKENIZERS_PARALLELISM for them.
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
            widths[i] = len(token)  # the byte-level alphabet writes one character for one byte
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
    """Ids whose text is unknown; they are shown as numbers."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = self.n_tokens = vocab_size
        self.fingerprint = f"ids below {vocab_size}"

    def encode(self, documents: Iterable[str]) -> TokenIds:
        """Return the ids in text that `decode` wrote: numbers with white space between them."""
        try:
            ids = [int(word) for document in documents for word in document.split()]
            return np.array(ids, id_dtype(self.vocab_size))
        except (ValueError, OverflowError) as error:
            raise DataError(
                "tokenizer=ids knows numbers only, the text holds something else "
                f"({error}); for text say tokenizer=bpe"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def n_bytes(self, ids: TokenIds) -> None:
        del ids

    def to_json(self) -> str:
        return "{}"


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return the smaller of the two dtypes of token ids that holds every id of the vocabulary."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def pieces(document: str) -> Iterator[str]:
    """Yield a document in parts of about `PIECE_CHARACTERS`, cut where GPT-2's pattern cuts anyway.

    The pattern keeps the last white space before a word apart from what is before it: a space goes
    with the word, a newline stands alone. Cutting in front of it therefore changes no token. A
    document without such a place stays whole.
    """
    start = 0
    while found := _BEFORE_A_WORD.search(document, start + PIECE_CHARACTERS):
        yield document[start : found.start()]
        start = found.start()
    yield document[start:]


_BEFORE_A_WORD = re.compile(r"[ \n](?=\w)")


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch, room = list[str](), BATCH_PIECES * PIECE_CHARACTERS
    for document in documents:
        for piece in pieces(document):
            batch.append(piece)
            room -= len(piece)
            if room <= 0:
                yield batch
                batch, room = [], BATCH_PIECES * PIECE_CHARACTERS
    if batch:
        yield batch
