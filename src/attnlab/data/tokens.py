"""Saved token ids: an .npz file with train, valid and optionally test, or a folder of .npy files.

The arrays of a folder are memory-mapped. An optional `train_bytes` (`valid_bytes`, `test_bytes`) is
the number of UTF-8 bytes of the split's text; without it, the tokenizer computes it if it can.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnlab.config import Problem
from attnlab.data.codec import TokenIds, id_dtype
from attnlab.data.named_files import SPLITS
from attnlab.data.places import DataError, Places
from attnlab.data.source import Corpus, DataConfig, Texts
from attnlab.data.tokenizer import BPE, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Tokens(DataConfig):
    """Saved tokens. A relative path is searched in the working directory, then in the data folder.

    `tokenizer` is the one that made the tokens: `gpt2`, `bytes`, or `ids`, which only has a
    `vocab_size`.
    """

    path: str
    tokenizer: Tokenizer

    def problems(self) -> Iterator[Problem]:
        if isinstance(self.tokenizer, BPE):
            yield Problem(
                "tokenizer", "bpe is trained on text, and saved tokens have none: use ids or gpt2"
            )

    def texts(self, places: Places) -> Texts:
        del places
        raise DataError(f"{self.path}: saved tokens have no text")

    def load(self, places: Places) -> Corpus:
        arrays, origin = self._arrays(places)
        codec = self.tokenizer.fit([], places)
        ids: dict[str, TokenIds] = {
            split: self._checked(split, arrays[split]) for split in SPLITS if split in arrays
        }
        if lacking := {"train", "valid"} - ids.keys():
            raise DataError(f"{origin} holds no {' and no '.join(sorted(lacking))}")
        n_bytes = {
            split: int(arrays[f"{split}_bytes"])
            if f"{split}_bytes" in arrays
            else codec.n_bytes(tokens)
            for split, tokens in ids.items()
        }
        contents = {split: _sha256(tokens) for split, tokens in ids.items()}
        return self.corpus(codec, ids, n_bytes=n_bytes, contents=contents, origin=origin)

    def _arrays(self, places: Places) -> tuple[Mapping[str, NDArray[Any]], str]:
        tried = [Path(self.path).expanduser()]
        if places.data and not tried[0].is_absolute():
            tried.append(places.data / self.path)
        found = next((place for place in tried if place.exists()), None)
        if found is None:
            remedy = "Name it with data.path=FILE.npz or DIR, or set ATTNLAB_DATA to its folder."
            raise DataError.missing("saved tokens", tried, remedy)
        try:
            if found.is_dir():
                files = sorted(found.glob("*.npy"))
                return {file.stem: np.load(file, mmap_mode="r") for file in files}, found.name
            with np.load(found) as archive:
                return dict(archive), found.name
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{found} is neither an .npz file nor a folder of .npy files: {error}"
            ) from None

    def _checked(self, split: str, tokens: NDArray[Any]) -> TokenIds:
        where, vocab_size = f"{self.path}, {split}", self.tokenizer.vocab_size
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DataError(
                f"{where}: expected a vector of whole numbers, got {tokens.dtype}{tokens.shape}"
            )
        if not tokens.size:
            raise DataError(f"{where}: empty")
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= vocab_size:
            wrong = least if least < 0 else most
            remedy = "" if least < 0 else f"; set data.tokenizer.vocab_size={most + 1} or more"
            raise DataError(
                f"{where}: id {wrong}, and the vocabulary is 0 to {vocab_size - 1}{remedy}"
            )
        return tokens.astype(id_dtype(vocab_size), copy=False)


def _sha256(tokens: TokenIds) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()
