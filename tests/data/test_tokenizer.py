"""Text becomes ids and text again, to the byte, however it is cut, trained, cached or restored.

Files of a byte-level BPE that were cut or edited are refused in one line with their name.
"""

import json
import os
import signal
import time
from functools import partial
from threading import Event
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attnlab.config import ConfigError
from attnlab.data import codec as codec_module
from attnlab.data.codec import LONGEST_WORD, id_dtype, pieces
from attnlab.data.documents import MARKER
from attnlab.data.places import DataError, Places
from attnlab.data.tokenizer import BPE, GPT2, Bytes, Ids, Tokenizer
from attnlab.data.tokens import Tokens

TRAINING = (
    "The quick brown fox, they'll say, jumped over 123 lazy dogs.\n"
    "Les élèves naïfs mangèrent à Zürich; 東京 と 京都. \t Again:\n\n  the fox, the dogs.\r\n"
) * 4

any_text = st.text(max_size=60)
# what the cutting could get wrong: runs of white space, contractions, letters beside digits
spaced_text = st.text(alphabet="ab 's1_\n\n\t\r\u00a0\u2003\u2028\x1c\x85é東", max_size=60)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The data folder holds a small byte-level BPE in GPT-2's two files."""
    folder = tmp_path_factory.mktemp("tokenizer")
    places = Places(data=folder, cache=folder / "cache")
    (folder / "gpt2-tokenizer").mkdir()
    BPE(vocab_size=320).fit([TRAINING], places).trained.model.save(str(folder / "gpt2-tokenizer"))
    return places


@pytest.fixture(scope="module", params=["bpe", "gpt2", "bytes"])
def tokenizer(request):
    return {"bpe": BPE(vocab_size=300), "gpt2": GPT2(vocab_size=320), "bytes": Bytes()}[
        request.param
    ]


@pytest.fixture(scope="module")
def codec(tokenizer, places):
    return tokenizer.fit([TRAINING], places)


@settings(deadline=None)
@given(text=any_text | spaced_text)
@example(text="<|endoftext|>")
@example(text="<<|endoftext|><|im_end|>|<|x|>|> <|a b|> \n<|é|><|")
@example(text="\ufeff\x00\r\n \u200d👩‍👩‍👧 \U0010ffff")
def test_every_text_comes_back_to_the_byte(codec, text):
    ids = codec.encode([text])
    assert codec.decode(ids) == text
    markers = "".join(MARKER.findall(text))
    assert codec.n_bytes(ids) == len(text.encode()) - len(markers.encode())
    assert ids.dtype == np.uint16
    assert ids.max(initial=0) < codec.vocab_size


@settings(deadline=None)
@given(documents=st.lists(any_text, max_size=4))
def test_documents_are_encoded_whole_and_nothing_is_put_between_them(codec, documents):
    one_by_one = [codec.encode([document]) for document in documents]
    together = codec.encode(documents)
    np.testing.assert_array_equal(together, np.concatenate([codec.encode([]), *one_by_one]))


@settings(deadline=None, max_examples=500)
@given(text=spaced_text, piece=st.integers(1, 8))
def test_cutting_a_long_document_changes_no_token(bpe_codec, text, piece):
    def words(part):
        return [word for word, _ in bpe_codec.trained.pre_tokenizer.pre_tokenize_str(part)]

    with mock.patch.object(codec_module, "PIECE_CHARACTERS", piece):
        cut = list(pieces(text))
        assert "".join(cut) == text
        assert [word for part in cut for word in words(part)] == words(text)
        assert bpe_codec.encode([text]).tolist() == bpe_codec.trained.encode(text).ids


@pytest.fixture(scope="module")
def bpe_codec(places):
    return BPE(vocab_size=400).fit([TRAINING], places)


def test_a_long_document_is_really_cut(bpe_codec):
    document = TRAINING * 20
    with mock.patch.object(codec_module, "PIECE_CHARACTERS", 100):
        assert len(list(pieces(document))) > 20
        with mock.patch.object(codec_module, "BATCH_PIECES", 3):
            assert bpe_codec.decode(bpe_codec.encode([document])) == document


@pytest.mark.parametrize("document", ["ab" * 1000, "1", "", "=+" * 1000])
def test_a_word_that_is_not_too_long_stays_whole(bpe_codec, document):
    with mock.patch.object(codec_module, "PIECE_CHARACTERS", 10):
        assert list(pieces(document)) == [document]


LONG = {
    "letters": "aé",
    "digits": "1²",
    "newlines": "\n",
    "spaces": " ",
    "marks": "=+",
    "han": "東京",
}


@pytest.mark.parametrize("kind", LONG)
def test_a_word_without_end_is_cut_and_comes_back(bpe_codec, kind, monkeypatch):
    monkeypatch.setattr(codec_module, "_BLOCK", 1000)
    run = LONG[kind] * (3 * LONGEST_WORD // len(LONG[kind]))
    text = f"The fox. {run}x jumped{run}"
    words = [
        word
        for piece in pieces(text)
        for word, _ in bpe_codec.trained.pre_tokenizer.pre_tokenize_str(piece)
    ]
    assert max(len(word) for word in words) <= (LONGEST_WORD + 1) * len(LONG[kind][-1].encode())
    assert "".join(pieces(text)) == text
    assert bpe_codec.decode(bpe_codec.encode([text])) == text
    lengths = [len(piece) for piece in pieces(run)]
    assert lengths == [LONGEST_WORD] * 3


@pytest.mark.parametrize("kind", LONG)
def test_time_grows_with_the_length_of_a_word(bpe_codec, kind):
    def seconds(n):
        text = LONG[kind] * (n // len(LONG[kind]))
        begin = time.process_time()
        bpe_codec.encode([text])
        return time.process_time() - begin

    assert min(seconds(200_000) for _ in range(2)) < 1.0


@pytest.mark.parametrize("text", ["a1" * 99, "a,b" * 99, "+ " * 99, "東京。" * 99, "x\x1c" * 99])
def test_text_without_words_apart_is_cut_and_changes_no_token(bpe_codec, text):
    whole = bpe_codec.trained.encode(text).ids
    with mock.patch.object(codec_module, "PIECE_CHARACTERS", 10):
        assert bpe_codec.encode([text]).tolist() == whole


def test_training_does_not_depend_on_how_the_text_is_cut(places, tmp_path, bpe_codec):
    with mock.patch.object(codec_module, "PIECE_CHARACTERS", 10):
        cut = BPE(vocab_size=400).fit([TRAINING], Places(None, tmp_path))
    assert cut.fingerprint == bpe_codec.fingerprint


def test_frequent_words_become_single_tokens(bpe_codec):
    assert len(bpe_codec.encode([" fox the dogs"])) < len(
        Bytes().fit([], None).encode([" fox the dogs"])
    )
    assert [bpe_codec.decode([i]) for i in bpe_codec.encode([" fox"])] == [" fox"]


def test_a_pair_seen_once_gets_no_token(tmp_path):
    codec = BPE(vocab_size=400).fit(["xyz aab aab"], Places(None, tmp_path))
    vocabulary = codec.trained.get_vocab().keys()
    assert "ab" in vocabulary or "aa" in vocabulary
    assert not any(len(token) > 1 and "y" in token for token in vocabulary)


def test_too_little_text_leaves_the_stated_vocabulary_as_it_is(tmp_path):
    codec = BPE(vocab_size=32_000).fit(["one fox, one fox"], Places(None, tmp_path))
    assert codec.vocab_size == 32_000
    assert 256 < codec.n_tokens < 300
    assert codec.decode([31_999]) == ""  # an id without a token, as an untrained model may write


def test_a_tokenizer_is_trained_once_for_the_same_text_and_settings(tmp_path):
    places = Places(None, tmp_path)
    first = BPE(vocab_size=300).fit([TRAINING], places)
    with mock.patch.object(BPE, "_train", side_effect=AssertionError("trained again")):
        again = BPE(vocab_size=300).fit([TRAINING], places)
        assert again.fingerprint == first.fingerprint
        for other in (BPE(vocab_size=301), [TRAINING]), (BPE(vocab_size=300), [TRAINING, "x"]):
            with pytest.raises(AssertionError, match="trained again"):
                other[0].fit(other[1], places)


def test_training_is_interrupted_at_once(tmp_path):
    ended, untrained = Event(), mock.Mock()

    def train(*_):
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(20)

    untrained.train_from_iterator.side_effect = train
    with (
        mock.patch("attnlab.data.tokenizer.byte_level", return_value=untrained),
        pytest.raises(KeyboardInterrupt),
    ):
        BPE().fit([TRAINING], Places(None, tmp_path))
    ended.set()
    untrained.train_from_iterator.side_effect = OverflowError("too much")
    with (
        mock.patch("attnlab.data.tokenizer.byte_level", return_value=untrained),
        pytest.raises(OverflowError, match="too much"),
    ):
        BPE().fit([TRAINING], Places(None, tmp_path))


def test_a_codec_is_restored_from_its_record(tokenizer, codec):
    restored = tokenizer.restore(codec.to_json())
    assert restored.fingerprint == codec.fingerprint
    assert restored.encode([TRAINING]).tolist() == codec.encode([TRAINING]).tolist()
    assert restored.decode(restored.encode([TRAINING])) == TRAINING


def test_fingerprints_tell_tokenizers_apart(places):
    kinds = [BPE(vocab_size=300), BPE(vocab_size=301), GPT2(vocab_size=320), Bytes()]
    kinds += [Ids(vocab_size=5), Ids(vocab_size=6)]
    fingerprints = {kind.fit([TRAINING], places).fingerprint for kind in kinds}
    assert len(fingerprints) == len(kinds)


def test_broken_utf8_is_shown_and_not_raised(codec):
    first_of_four_bytes = codec.encode(["\U0001f98a"])[:1]
    assert codec.decode(first_of_four_bytes) == "\ufffd"


def test_ids_are_as_small_as_the_vocabulary_allows(tmp_path):
    assert id_dtype(65_536) is np.uint16
    assert id_dtype(65_537) is np.int32
    wide = BPE(vocab_size=100_000).fit([TRAINING], Places(None, tmp_path))
    assert wide.encode([TRAINING]).dtype == np.int32
    assert wide.encode([]).dtype == np.int32


def test_gpt2s_files_are_found_by_path_in_the_data_folder_and_below_it(places, tmp_path):
    below = places.data / "gpt2-tokenizer"
    found = [
        GPT2(vocab_size=320, path=str(below)).fit([], Places(None, tmp_path)),
        GPT2(vocab_size=320, path=below.name).fit([], places),
        GPT2(vocab_size=320).fit([], Places(below, tmp_path)),
        GPT2(vocab_size=320).fit([], places),
    ]
    assert len({codec.fingerprint for codec in found}) == 1


def test_missing_files_of_gpt2_are_named_with_every_place_tried(tmp_path):
    with pytest.raises(DataError) as error:
        GPT2().fit([], Places(tmp_path, tmp_path))
    for part in (
        str(tmp_path),
        str(tmp_path / "gpt2-tokenizer"),
        "data.tokenizer.path=DIR",
        "ATTNLAB_DATA",
        "https://huggingface.co/openai-community/gpt2/resolve/main/{vocab.json,merges.txt}",
    ):
        assert part in str(error.value)
    with pytest.raises(DataError, match="no folder of data was given"):
        GPT2().fit([], Places(None, tmp_path))


def test_a_path_that_was_named_is_not_replaced_by_another(places, tmp_path):
    with pytest.raises(DataError, match="not found"):
        GPT2(path=str(tmp_path), vocab_size=320).fit([], places)


def test_more_tokens_than_the_stated_vocabulary_are_refused_with_the_right_number(places):
    with pytest.raises(DataError, match=r"has 320 tokens.*set data.tokenizer.vocab_size=320"):
        GPT2(vocab_size=319).fit([], places)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "bpe", "vocab_size": 256},
        {"kind": "bytes", "vocab_size": 257},
        {"kind": "gpt2", "vocab_size": 0},
        {"kind": "ids", "vocab_size": 0},
        {"kind": "ids"},
    ],
)
def test_an_impossible_vocabulary_is_refused_before_anything_is_read(settings):
    with pytest.raises(ConfigError, match="vocab_size"):
        Tokenizer.from_dict(settings)


def test_the_vocabulary_is_known_before_any_text_is_read():
    sizes = [t.vocab_size for t in (BPE(vocab_size=512), GPT2(), Bytes(), Ids(vocab_size=7))]
    assert sizes == [512, 50_257, 256, 7]


def test_unknown_text_is_numbers(tmp_path):
    ids = Ids(vocab_size=70_000).fit([], Places(None, tmp_path))
    assert ids.decode(ids.encode(["5 69999 0"])) == "5 69999 0"
    assert ids.n_bytes(ids.encode(["5"])) is None
    with pytest.raises(DataError, match="use tokenizer=bpe"):
        ids.encode(["five"])


FOX = "The quick brown fox, they'll say, jumped over 123 lazy dogs and more.\n" * 4
SPECIAL = "<|endoftext|>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the text of a tokenizer.json, its vocabulary with one special token, its merges."""
    codec = BPE(vocab_size=340).fit([FOX], Places(None, tmp_path_factory.mktemp("cache")))
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
    assert codec.decode(codec.encode([FOX])) == FOX
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


def refused_to_restore(tokenizer, text, words):
    refused(partial(tokenizer.restore, text, "run/tokenizer.json"), words)


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
        refused_to_restore(tokenizer, text, words)
    intact = json.dumps(trained[0])
    assert json.loads(BPE(vocab_size=340).restore(intact).to_json()) == trained[0]
    refused(lambda: BPE(vocab_size=300).restore(intact), "data.tokenizer.vocab_size=3")


@pytest.mark.parametrize("tokenizer", [Bytes(), Ids(vocab_size=9)])
def test_a_tokenizer_without_files_has_an_empty_record(tokenizer):
    assert tokenizer.restore("{}").vocab_size == tokenizer.vocab_size
    refused_to_restore(tokenizer, "{", "run/tokenizer.json is cut")


def test_special_tokens_have_no_bytes(folder, trained, tmp_path):
    codec, end = fit(folder), trained[1][SPECIAL]
    ids = [*codec.encode([FOX]), end] * 3
    assert codec.n_bytes(ids) == 3 * len(FOX)
    assert codec.decode(ids) == (FOX + SPECIAL) * 3
    np.savez(tmp_path / "saved.npz", train=ids, valid=ids)
    tokens = Tokens(
        path=str(tmp_path / "saved.npz"), tokenizer=GPT2(path=str(folder), vocab_size=341)
    )
    assert tokens.load(Places(None, tmp_path)).bytes["valid"] == 3 * len(FOX)
