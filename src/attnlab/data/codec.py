"""Convert text to token ids and back, exactly: `decode(encode([text])) == text` for every text.

Whole documents are encoded one after another, without separators. Special tokens, which no text is
encoded to, and markers such as <|endoftext|> are no bytes of the text.
"""

import hashlib
import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as TrainedTokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit

from attnlab.data.byte_level_files import byte_level
from attnlab.data.documents import MARKER
from attnlab.data.places import DataError

TokenIds: TypeAlias = NDArray[np.uint16 | np.int32]

LONGEST_MARKER = 48  # characters, and so tokens
LONGEST_WORD = 4096  # characters; the time of a word grows with more than its length
PIECE_CHARACTERS = 1 << 16  # about the length of the parts of a long document, for use of all cores
BATCH_PIECES = 32  # pieces per call, which limits its memory, and the time until Ctrl-C is heard


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
        """Return the number of UTF-8 bytes of the text of these ids, or None if it is unknown.

        Special tokens, and markers such as <|endoftext|> that are spelled out, count no bytes.
        """

    @abstractmethod
    def to_json(self) -> str:
        """Return the whole codec as JSON, the inverse of `Tokenizer.restore`."""

    def to_hugging_face(self) -> str:
        """Return tokenizer.json in the form of Hugging Face. Raises DataError without an equal."""
        raise DataError(f"{type(self).__name__} has no equal in the form of Hugging Face")


class ByteLevelCodec(Codec):
    """Byte-level BPE with GPT-2's pre-tokenisation, run by the tokenizers library on all cores.

    Words of more than `LONGEST_WORD` letters, digits, spaces or other characters in a row are cut;
    all other text has the ids that GPT-2's own code gives it.

    In a process that was forked after encoding, the library writes a warning and uses one core:
    spawn workers instead, or set TOKENIZERS_PARALLELISM.
    """

    def __init__(self, trained: TrainedTokenizer, vocab_size: int) -> None:
        self.trained, self.vocab_size = trained, vocab_size
        self.n_tokens = trained.get_vocab_size()
        model = json.loads(trained.to_str())["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        self._spelled = {*ByteLevel.alphabet(), *(merge.replace(" ", "") for merge in merges)}
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
        return int(self._width_of_token[ids].sum()) - self._spelled_marker_bytes(ids)

    def to_json(self) -> str:
        return self.trained.to_str()

    def to_hugging_face(self) -> str:
        return self.to_json()

    @cached_property
    def _texts(self) -> list[str]:
        """The text of each token, one character per byte; "" for special tokens."""
        texts = [""] * self.vocab_size
        for token, i in self.trained.get_vocab().items():
            texts[i] = token if token in self._spelled else ""
        return texts

    @cached_property
    def _width_of_token(self) -> NDArray[np.int64]:
        return np.array([len(text) for text in self._texts])

    def _spelled_marker_bytes(self, ids: TokenIds) -> int:
        """Return the bytes of markers that are spelled out: <, |, end, of, text, |, >."""
        inside = np.array(["<|" in text for text in self._texts])
        begins = np.array([text.startswith("|") for text in self._texts])
        ends = np.array([text.endswith("<") for text in self._texts])
        split = begins[ids] & np.concatenate([[False], ends[ids[:-1]]])[: len(ids)]
        n_bytes = 0
        for i in np.flatnonzero(inside[ids] | split):
            before = "<" if split[i] else ""
            text = before + self.decode(ids[i : i + LONGEST_MARKER])
            last = len(before + self._texts[ids[i]]) - 1  # before it, a marker begins here
            found = (match[0] for match in MARKER.finditer(text) if match.start() < last)
            n_bytes += sum(len(marker.encode()) for marker in found)
        return n_bytes


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
        markers = MARKER.findall(self.decode(ids))
        return len(ids) - sum(len(marker.encode()) for marker in markers)

    def to_json(self) -> str:
        return "{}"

    def to_hugging_face(self) -> str:
        """Return a byte-level BPE without merges: its tokens are the 256 bytes."""
        alphabet = sorted(ByteLevel.alphabet())  # GPT-2's: of printable bytes, then of the others
        printable = [ord(character) for character in alphabet if ord(character) < 256]
        vocab = dict(zip(alphabet, printable + sorted({*range(256)} - {*printable}), strict=True))
        return byte_level(BPE(vocab=vocab, merges=[])).to_str()


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

    def to_hugging_face(self) -> str:
        """Return a tokenizer of words that are the numbers below the vocabulary's size."""
        vocab = {str(i): i for i in range(self.vocab_size)}
        tokenizer = TrainedTokenizer(WordLevel(vocab=vocab, unk_token=""))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        return tokenizer.to_str()


class HuggingFaceCodec(Codec):
    """Any tokenizer of the tokenizers library, with the special tokens that it adds to a text."""

    def __init__(self, trained: TrainedTokenizer, vocab_size: int) -> None:
        self.trained, self.vocab_size = trained, vocab_size
        self.n_tokens = trained.get_vocab_size()
        self.fingerprint = hashlib.sha256(f"{vocab_size} {trained.to_str()}".encode()).hexdigest()

    def encode(self, documents: Iterable[str]) -> TokenIds:
        ids = [i for document in documents for i in self.trained.encode(document).ids]
        return np.array(ids, id_dtype(self.vocab_size))

    def decode(self, ids: Iterable[int]) -> str:
        return self.trained.decode([int(i) for i in ids])

    def n_bytes(self, ids: TokenIds) -> None:
        del ids

    def to_json(self) -> str:
        return self.trained.to_str()

    def to_hugging_face(self) -> str:
        return self.to_json()


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """Return uint16 if it holds every id of the vocabulary, else int32."""
    return np.uint16 if vocab_size <= 1 << 16 else np.int32


def pieces(document: str) -> Iterator[str]:
    """Yield a document in parts of about `PIECE_CHARACTERS`, without a change of any token.

    A cut is made where GPT-2's pattern always cuts: before the last white space in front of a word
    (a space belongs to the word, and a newline stands alone), else after a word. Words longer than
    `LONGEST_WORD` are cut, too.
    """
    begin = 0
    for stop in (*_cuts_in_long_words(document), len(document)):
        least = begin + PIECE_CHARACTERS
        while least < stop:
            most = min(stop, least + PIECE_CHARACTERS)
            before = _BEFORE_A_WORD.search(document, least, most)
            if found := before or _AFTER_A_WORD.search(document, least, most):
                yield document[begin : found.start()]
                begin = found.start()
            least = (begin if found else least) + PIECE_CHARACTERS
        yield document[begin:stop]
        begin = stop


_BEFORE_A_WORD = re.compile(r"[ \n](?=\w)")
_LETTER, _MARK = (
    r"A-Za-z\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3",
    r"!-/:-@\[-`{-~、。，！？",
)
_AFTER_A_WORD = re.compile(
    rf"(?<=\S)(?=[ \n])|(?<=[{_LETTER}])(?=[0-9{_MARK}])|(?<=[0-9])(?=[{_LETTER}{_MARK}])"
)


def _cuts_in_long_words(document: str) -> Iterator[int]:
    """Yield the places that cut every run of characters of one class after `LONGEST_WORD`."""
    if len(document) <= LONGEST_WORD:
        return
    run, last = 0, -1  # where the run at the end of a block began, and its class
    for begin in range(0, len(document), _BLOCK):
        classes = _classes(document[begin : begin + _BLOCK])
        edges = begin + np.flatnonzero(np.diff(classes, prepend=np.int8(last)))
        starts, stops = np.append(run, edges), np.append(edges, begin + len(classes))
        for i in np.flatnonzero(stops - starts > LONGEST_WORD):
            cuts = range(int(starts[i]) + LONGEST_WORD, int(stops[i]), LONGEST_WORD)
            yield from (cut for cut in cuts if cut >= begin)
        run, last = int(starts[-1]), int(classes[-1])


def _classes(text: str) -> NDArray[np.int8]:
    """Return the class of each character in GPT-2's pattern: letter, number, space or other."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    for page in np.flatnonzero(np.bincount(codes >> 8)).tolist():
        if _CLASS_OF[page << 8] < 0:
            characters = map(chr, range(page << 8, (page + 1) << 8))
            _CLASS_OF[page << 8 : (page + 1) << 8] = [_class(c) for c in characters]
    return _CLASS_OF[codes]


def _class(character: str) -> int:
    if character.isspace() and not "\x1c" <= character <= "\x1f":
        return 2
    return {"L": 0, "N": 1}.get(unicodedata.category(character)[0], 3)


_BLOCK = 1 << 20  # characters
_CLASS_OF = np.full(0x110000, -1, np.int8)  # filled by pages of 256 when they first occur


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
