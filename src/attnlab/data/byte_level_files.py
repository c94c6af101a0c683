"""Read the files of a byte-level BPE: vocab.json and merges.txt, or tokenizer.json.

What the files say must agree: the 256 bytes are tokens, every merge joins two tokens that are bytes
or results of earlier merges, every result is a token, and every other token is special, such as
<|endoftext|>. Files that were cut or edited break one of these rules.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from attnlab.data.documents import read_bytes
from attnlab.data.places import DataError

Json = dict[str, Any]

_EDITED = 100  # of so many merges in a row, a single one whose id is out of order was edited
_DEFAULTS: Mapping[str, tuple[object, ...]] = {  # fields of `model` that change its tokens
    "type": ("BPE",),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Return a tokenizer with GPT-2's pre-tokenisation."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_vocab_and_merges(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer of two files. Raises DataError, with the file, if they do not agree."""
    lines = read_utf8(merges).replace("\r\n", "\n").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return _tokenizer(_object(read_utf8(vocab), vocab), pairs, (), vocab, merges)


def parse_tokenizer_json(text: str, where: object) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tokenizer.json's text.

    Raises DataError, which names the file `where`, if it is damaged, or is no byte-level BPE with
    GPT-2's pre-tokenisation.
    """
    whole = _object(text, where)
    model, cut = whole.get("model"), whole.get("pre_tokenizer")
    if not isinstance(model, dict) or not isinstance(cut, dict):
        raise DataError(f"{where} has no model and no pre_tokenizer: it is cut or was edited")
    model, cut = cast("Json", model), cast("Json", cut)
    odd = [name for name, known in _DEFAULTS.items() if model.get(name) not in known]
    odd += [] if whole.get("normalizer") is None else ["normalizer"]
    gpt2 = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) is True
    odd += [] if gpt2 and cut.get("add_prefix_space") is False else ["pre_tokenizer"]
    if odd:
        raise DataError(f"{where} is no byte-level BPE like GPT-2's: its {', '.join(odd)} differs")
    merges, added = model.get("merges"), whole.get("added_tokens") or []
    if not isinstance(merges, list) or not isinstance(added, list):
        raise DataError(f"{where} has no list of merges: it is cut or was edited")
    pairs = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in cast("list[Any]", merges)
    ]
    special = dict[str, object]()
    for token in cast("list[Any]", added):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise DataError(f"{where} has an added token without content: it was edited")
        special[token["content"]] = token.get("id")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise DataError(f"{where} has no vocabulary: it is cut or was edited")
    return _tokenizer({**special, **vocab}, pairs, special, where, where)


def read_utf8(path: Path) -> str:
    """Return the text of a file. Raises DataError if it cannot be read or is not UTF-8."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: not UTF-8 at byte {error.start}") from None


def _object(text: str, where: object) -> Json:
    def once(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{where}: {twice!r} occurs twice")
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is cut or damaged: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{where} holds no JSON object")
    return cast("Json", found)


def _tokenizer(
    vocab: Json,
    pairs: Sequence[Any],
    special: Iterable[str],
    vocab_file: object,
    merges_file: object,
) -> tokenizers.Tokenizer:
    ids = _ids(vocab, vocab_file)
    spelled, seen, in_order = set(pre_tokenizers.ByteLevel.alphabet()), set[tuple[str, str]](), []
    for n, pair in enumerate(pairs, 1):
        where = f"{merges_file}: merge {n}"
        if not isinstance(pair, list) or len(pair) != 2 or not all(_is_text(p) for p in pair):
            raise DataError(f"{where} is {pair!r}, not two tokens: it is cut or was edited")
        left, right = cast("list[str]", pair)
        if (left, right) in seen:
            raise DataError(f"{where}, {left!r} and {right!r}, occurs twice")
        unknown = next((part for part in (left, right) if part not in spelled), None)
        if unknown is not None:
            raise DataError(f"{where} joins {unknown!r}, which no earlier merge makes")
        if left + right not in ids:
            raise DataError(f"{where} makes {left + right!r}, which {vocab_file} does not have")
        if left + right not in spelled:
            in_order.append(ids[left + right])
        seen.add((left, right))
        spelled.add(left + right)
    for token in ids.keys() - spelled - set(special):
        if not (token[:1] + token[-1:] in ("<>", "[]") and len(token) > 2):
            raise DataError(f"{merges_file} has no merge that makes {token!r}: it is cut or edited")
    falls = sum(after < before for before, after in pairwise(in_order))
    if 0 < falls <= len(in_order) // _EDITED + 2 < len(in_order) // 10:
        raise DataError(f"{merges_file}: the order of merges differs from the ids of {vocab_file}")
    return byte_level(models.BPE(vocab=ids, merges=[(left, right) for left, right in pairs]))


def _is_text(part: object) -> bool:
    return isinstance(part, str) and part != ""


def _ids(vocab: Json, where: object) -> dict[str, int]:
    """Return the vocabulary. Raises DataError unless its ids are 0 to n - 1, each once."""
    token_of = dict[int, str]()
    for token, i in vocab.items():
        if type(i) is not int or i < 0:
            raise DataError(f"{where}: the id of {token!r} is {i!r}, not a whole number")
        if i in token_of:
            raise DataError(f"{where}: {token_of[i]!r} and {token!r} have the same id, {i}")
        token_of[i] = token
    missing = next((i for i in range(len(token_of)) if i not in token_of), None)
    if missing is not None:
        raise DataError(f"{where}: id {missing} is missing, and there are higher ones")
    lacking = set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys()
    if lacking:
        raise DataError(f"{where} is not byte-level: it lacks {len(lacking)} of the 256 bytes")
    return cast("dict[str, int]", vocab)
