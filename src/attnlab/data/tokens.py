"""Saved token ids: an .npz file with an array per split, or a folder with files of each split.

A folder holds .npy files, or the raw uint16 ids of nanoGPT's `train.bin` and `val.bin`, which are
memory-mapped; files of one split are joined in the order of their names. Splits are recognised by
words in names, as in `attnlab.data.places`. An optional `train_bytes` (`valid_bytes`,
`test_bytes`) is the number of UTF-8 bytes of the split's text; without it, the tokenizer computes
it if it can. Nothing is unpickled.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from attnlab.config import Problem
from attnlab.data.codec import TokenIds, id_dtype
from attnlab.data.documents import expands_too_much
from attnlab.data.places import (
    DataError,
    NamedFile,
    Places,
    by_split,
    files_in,
    find,
    require_file,
    split_word,
)
from attnlab.data.source import Corpus, DataConfig, Texts
from attnlab.data.tokenizer import BPE, Tokenizer

Array: TypeAlias = NDArray[Any]

ENDINGS = (".npy", ".npz", ".bin")
_BYTES = "_bytes"  # end of the name of a count
_LLM_C = 20_240_520  # first number of the 1,024 bytes before the ids in .bin files of llm.c
_NAMES = "name the splits train, valid and test"
_REMEDY = "Name it with data.path=FILE.npz or DIR, or set ATTNLAB_DATA to its folder."


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
        found = find(self.path, places, what="saved tokens", remedy=_REMEDY)
        arrays = _folder(found) if found.is_dir() else _archive(found)
        stated = {
            name: arrays.pop(name) for name in list(arrays) if name.path.stem.endswith(_BYTES)
        }
        groups = by_split(arrays, str(found), _NAMES)
        if lacking := [split for split in ("train", "valid") if split not in groups]:
            has = ", ".join(name.path.name for name in arrays)
            what = f"no {' and no '.join(lacking)} but {has}" if has else "no saved tokens"
            raise DataError(f"{found} holds {what}; {_NAMES}")
        for split, group in groups.items():
            # parts of a split differ in their numbers; ids beside a mask are no parts
            names = {re.sub(r"\d+", "0", str(name.path)): str(name.path) for name in group}
            if len(names) > 1:
                both = " and ".join(list(names.values())[:2])
                raise DataError(f"{found}: {both} are both named as the {split} split; keep one")
        codec = self.tokenizer.fit([], places)
        ids = {
            split: _joined([self._checked(f"{found}, {name.path}", arrays[name]) for name in group])
            for split, group in groups.items()
        }
        n_bytes: dict[str, int | None] = {
            split: codec.n_bytes(tokens) for split, tokens in ids.items()
        }
        for name, count in stated.items():
            if name.split in ids:
                n_bytes[name.split] = _count(f"{found}, {name.path}", count)
        contents = {split: _sha256(tokens) for split, tokens in ids.items()}
        return self.corpus(codec, ids, n_bytes=n_bytes, contents=contents, origin=found.name)

    def _checked(self, where: str, tokens: Array) -> TokenIds:
        vocab_size = self.tokenizer.vocab_size
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise DataError(
                f"{where}: expected a vector of whole numbers, got {tokens.dtype}{tokens.shape}; "
                "save ids.ravel().astype(numpy.uint16)"
            )
        if not tokens.size:
            raise DataError(f"{where}: empty")
        if where.endswith(".bin") and vocab_size > 1 << 16:
            raise DataError(
                f"{where}: .bin holds uint16, too small for a vocabulary of {vocab_size}; save .npy"
            )
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= vocab_size:
            wrong = least if least < 0 else most
            remedy = "" if least < 0 else f"; set data.tokenizer.vocab_size={most + 1} or more"
            raise DataError(
                f"{where}: id {wrong}, and the vocabulary is 0 to {vocab_size - 1}{remedy}"
            )
        return tokens.astype(id_dtype(vocab_size), copy=False)


def _archive(path: Path) -> dict[NamedFile, Array]:
    """Return the arrays of an .npz file, by their names."""
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"{path} is not an .npz file; data.path names an .npz file with train and valid, or a "
            "folder with train.npy and valid.npy, or with train.bin and val.bin"
        )
    return {NamedFile(Path(name), split_word(name)): ids for name, ids in _npz(path).items()}


def _folder(folder: Path) -> dict[NamedFile, Array]:
    """Return the arrays of a folder, by their files' paths in the folder."""
    arrays = dict[NamedFile, Array]()
    for path, word, _ in files_in([folder], lambda name: name.lower().endswith(ENDINGS)):
        name = NamedFile(path.relative_to(folder.absolute()), word)
        match path.suffix.lower():
            case ".npy":
                arrays[name] = _read(path, lambda path: np.load(path, mmap_mode="r"))
            case ".npz":
                held = _npz(path)
                if len(held) != 1:
                    raise DataError(
                        f"{path} holds {len(held)} arrays ({', '.join(held)}), and a split in a "
                        f"folder is one; name the file itself with data.path={path}"
                    )
                arrays[name] = next(iter(held.values()))
            case ".bin":
                arrays[name] = _read(path, _bin)
            case _:
                raise DataError(f"{path} is no file of token ids: {', '.join(ENDINGS)} are read")
    return arrays


def _read(path: Path, reader: Callable[[Path], Array]) -> Array:
    require_file(path)
    try:
        return reader(path)
    except DataError:
        raise
    except Exception as error:  # numpy raises whatever the damage leads to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{path} is damaged, or no file of token ids ({reason})") from None


def _npz(path: Path) -> dict[str, Array]:
    held = dict[str, Array]()

    def read(path: Path) -> Array:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                compressed = min(member.compress_size, path.stat().st_size)
                if expands_too_much(compressed, member.file_size):
                    raise DataError(f"{path}: {member.filename} expands more than token ids do")
        with np.load(path) as arrays:
            held.update({name: np.asarray(ids) for name, ids in arrays.items()})  # or bytes
        return np.empty(0)

    _read(path, read)
    return held


def _bin(path: Path) -> Array:
    """Map the uint16 ids of nanoGPT's or llm.c's file."""
    n_bytes = path.stat().st_size
    if not n_bytes or n_bytes % 2:
        raise DataError(f"{path} has {n_bytes} bytes; uint16 ids have two bytes each")
    ids = np.memmap(path, np.uint16, "r")
    first = ids[:6].view(np.int32) if len(ids) >= 512 else np.zeros(3)
    if first[0] == _LLM_C:
        ids = ids[512:]
        if len(ids) != first[2]:
            raise DataError(f"{path} has {len(ids)} ids, its header says {first[2]}: it is cut")
    if len(ids) > 1 and not ids[1::2].any():
        raise DataError(f"{path} is no file of uint16 ids but of wider ones; save them as .npy")
    return ids


def _joined(parts: Sequence[TokenIds]) -> TokenIds:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _count(where: str, count: Array) -> int:
    """Return a stated number of bytes. Raises DataError if it is not a positive whole number."""
    known = count.size == 1 and count.dtype.kind in "iuf" and np.isfinite(count).all()
    if not known or count.item() < 1 or count.item() != int(count.item()):
        shown = " ".join(str(count).split())[:40]
        raise DataError(
            f"{where}: expected a number of bytes, a positive whole number, got {shown}"
        )
    return int(count.item())


def _sha256(tokens: TokenIds) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()
