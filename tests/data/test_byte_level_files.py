"""Files of a byte-level BPE that were cut or edited are refused in one line with their name."""

import json

import numpy as np
import pytest

from attnlab.data.places import DataError, Places
from attnlab.data.tokenizer import BPE, GPT2, Bytes, Ids
from attnlab.data.tokens import Tokens

TRAINING = "The quick brown fox, they'll say, jumped over 123 lazy dogs and more.\n" * 4
SPECIAL = "<|endoftext|>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the text of a tokenizer.json, its vocabulary with one special token, its merges."""
    codec = BPE(vocab_size=340).fit([TRAINING], Places(None, tmp_path_factory.mktemp("cache")))
    whole = json.loads(codec.to_json())
    vocab = {**whole["model"]["vocab"], SPECIAL: codec.n_tokens}
    return whole, vocab, [" ".join(pair) for pair in whole["model"]["merges"]]


@pytest.fixture
def folder(tmp_path, trained):
    _, vocab, merges = trained
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{m}\n" for m in merges))
    return tmp_path


def fit(folder, vocab_size=341):
    return GPT2(path=str(folder), vocab_size=vocab_size).fit([], Places(None, folder))


def swapped(items, i, j):
    items = list(items)
    items[i], items[j] = items[j], items[i]
    return items


def without(vocab, i):
    return {token: n for token, n in vocab.items() if n != i}


VOCAB = [  # a change of the vocabulary, or of its JSON, and the words of the error
    (lambda v: json.dumps(v)[:-9], "vocab.json is cut or damaged"),
    (lambda v: "", "vocab.json is cut or damaged"),
    (lambda v: json.dumps([*v]), "vocab.json holds no JSON object"),
    (lambda v: '{"a":' * 100_000, "vocab.json is cut or damaged"),
    (lambda v: json.dumps(v)[:-1] + ', "a": 7}', "vocab.json: 'a' occurs twice"),
    (lambda v: {"a": 0, "b": 1}, "vocab.json is not byte-level: it lacks 254 of the 256 bytes"),
    (lambda v: without(v, 70), "vocab.json: id 70 is missing"),
    (lambda v: without(v, 300), "vocab.json: id 300 is missing"),
    (lambda v: {**v, "a": v["b"]}, "vocab.json: 'a' and 'b' have the same id|'b' and 'a'"),
    (lambda v: {**v, "a": "7"}, "vocab.json: the id of 'a' is '7', not a whole number"),
    (lambda v: {**v, "a": 7.0}, "the id of 'a' is 7.0"),
    (lambda v: {**v, "a": -1}, "the id of 'a' is -1"),
    (lambda v: {**v, "a": True}, "the id of 'a' is True"),
    (lambda v: {**v, "a": None}, "the id of 'a' is None"),
    (lambda v: {**v, "fox": len(v)}, "merges.txt has no merge that makes 'fox'"),
    (lambda v: dict(zip(swapped(v, 290, 300), v.values(), strict=True)), "the order of merges"),
]
MERGES = [  # a change of the merges
    (lambda m: m[:-1], "merges.txt has no merge that makes"),
    (lambda m: m[:20] + m[21:], "which no earlier merge makes|has no merge that makes"),
    (lambda m: [*m[:-1], m[-1][:-1]], "not two tokens|makes|no earlier merge"),
    (lambda m: [*m, m[0]], "merge 85, .*, occurs twice|merge [0-9]+, .*, occurs twice"),
    (lambda m: [*m, "a"], "merge [0-9]+ is .'a'., not two tokens"),
    (lambda m: [*m, "a b c"], "not two tokens"),
    (lambda m: [*m, " b"], "not two tokens"),
    (lambda m: [*m, "q q"], "makes 'qq', which .*vocab.json does not have"),
    (lambda m: [*m, "foxes q"], "joins 'foxes', which no earlier merge makes"),
    (lambda m: m[::-1], "which no earlier merge makes"),
    (lambda m: swapped(m, 1, 2), "which no earlier merge makes|the order of merges differs"),
    (lambda m: [], "has no merge that makes"),
]


def test_intact_files_are_read_whatever_their_line_ends(folder, trained):
    whole, vocab, merges = trained
    codec = fit(folder)
    assert codec.decode(codec.encode([TRAINING])) == TRAINING
    (folder / "merges.txt").write_bytes("\r\n".join(merges).encode())
    assert fit(folder).fingerprint == codec.fingerprint
    (folder / "merges.txt").unlink()
    added = [{"id": vocab[SPECIAL], "content": SPECIAL, "special": True}]
    (folder / "tokenizer.json").write_text(json.dumps({**whole, "added_tokens": added}))
    assert fit(folder).fingerprint == codec.fingerprint


@pytest.mark.parametrize(("change", "words"), VOCAB, ids=range(len(VOCAB)))
def test_a_damaged_vocabulary_is_refused(folder, trained, change, words):
    changed = change(trained[1])
    text = changed if isinstance(changed, str) else json.dumps(changed)
    (folder / "vocab.json").write_text(text)
    refused(lambda: fit(folder, 9999), words)


@pytest.mark.parametrize(("change", "words"), MERGES, ids=range(len(MERGES)))
def test_damaged_merges_are_refused(folder, trained, change, words):
    (folder / "merges.txt").write_text("\n".join(change(trained[2])))
    refused(lambda: fit(folder), words)


def refused(call, words):
    with pytest.raises(DataError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


WHOLE = [  # a change of a run's tokenizer.json, or of its text
    (lambda w: json.dumps(w)[:-20], "run/tokenizer.json is cut or damaged"),
    (lambda w: "", "run/tokenizer.json is cut or damaged"),
    (lambda w: "[]", "run/tokenizer.json holds no JSON object"),
    (lambda w: {}, "has no model and no pre_tokenizer"),
    (lambda w: {**w, "model": {**w["model"], "type": "Unigram"}}, "its type differs"),
    (lambda w: {**w, "model": {**w["model"], "dropout": 0.5}}, "its dropout differs"),
    (lambda w: {**w, "model": {**w["model"], "merges": w["model"]["merges"][:-1]}}, "no merge"),
    (lambda w: {**w, "model": {**w["model"], "merges": None}}, "no list of merges"),
    (lambda w: {**w, "model": {**w["model"], "merges": [1]}}, "merge 1 is 1, not two tokens"),
    (lambda w: {**w, "model": {**w["model"], "vocab": []}}, "has no vocabulary"),
    (lambda w: {**w, "model": {**w["model"], "vocab": {"a": 0}}}, "lacks 255 of the 256 bytes"),
    (lambda w: {**w, "normalizer": {"type": "NFC"}}, "its normalizer differs"),
    (lambda w: {**w, "pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer differs"),
    (lambda w: {**w, "added_tokens": [7]}, "an added token without content"),
]


@pytest.mark.parametrize(("change", "words"), WHOLE, ids=range(len(WHOLE)))
def test_a_damaged_record_of_a_tokenizer_is_refused(trained, change, words):
    changed = change(trained[0])
    text = changed if isinstance(changed, str) else json.dumps(changed)
    for tokenizer in (BPE(vocab_size=340), GPT2(vocab_size=340)):
        refused(lambda: tokenizer.restore(text, "run/tokenizer.json"), words)  # noqa: B023
    intact = json.dumps(trained[0])
    assert json.loads(BPE(vocab_size=340).restore(intact).to_json()) == trained[0]
    refused(lambda: BPE(vocab_size=300).restore(intact), "data.tokenizer.vocab_size=3")


@pytest.mark.parametrize("tokenizer", [Bytes(), Ids(vocab_size=9)])
def test_a_tokenizer_without_files_has_an_empty_record(tokenizer):
    assert tokenizer.restore("{}").vocab_size == tokenizer.vocab_size
    refused(lambda: tokenizer.restore("{", "run/tokenizer.json"), "run/tokenizer.json is cut")


def test_special_tokens_have_no_bytes(folder, trained, tmp_path):
    codec, end = fit(folder), trained[1][SPECIAL]
    ids = [*codec.encode([TRAINING]), end] * 3
    assert codec.n_bytes(ids) == 3 * len(TRAINING)
    assert codec.decode(ids) == (TRAINING + SPECIAL) * 3
    np.savez(tmp_path / "saved.npz", train=ids, valid=ids)
    tokens = Tokens(
        path=str(tmp_path / "saved.npz"), tokenizer=GPT2(path=str(folder), vocab_size=341)
    )
    assert tokens.load(Places(None, tmp_path)).bytes["valid"] == 3 * len(TRAINING)
