"""Saved tokens are taken as they are, once it is sure that they are tokens of this vocabulary.

Every window once an epoch; what counting the tokens predicts.
"""

import io
import math
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.config import ConfigError
from attnlab.data import ngram
from attnlab.data.batches import evaluation_starts, window_starts
from attnlab.data.ngram import ngram_loss
from attnlab.data.source import DataError, Places
from attnlab.data.tokenizer import BPE, Bytes, Ids
from attnlab.data.tokens import Tokens

HUNDRED = Ids(vocab_size=100)
ARRAYS = {"train": np.arange(100), "valid": np.array([7, 8, 9]), "test": np.array([1, 99])}


def save(path, arrays=ARRAYS):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


def load(path, tokenizer=HUNDRED, data=None):
    return Tokens(path=str(path), tokenizer=tokenizer).load(Places(data, path))


@pytest.fixture(params=["saved.npz", "saved"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_splits_are_what_was_saved(path):
    corpus = load(save(path))
    assert {split: ids.tolist() for split, ids in corpus.splits().items()} == {
        split: ids.tolist() for split, ids in ARRAYS.items()
    }
    assert corpus.train.dtype == np.uint16
    assert corpus.vocab_size == 100
    assert corpus.decode(corpus.valid) == "7 8 9"
    assert corpus.description["tokens"] == {"train": 100, "valid": 3, "test": 2}


def test_a_test_split_is_not_needed_and_the_others_are(path):
    save(path, {"train": ARRAYS["train"], "valid": ARRAYS["valid"]})
    assert load(path).test is None
    with pytest.raises(DataError, match=r"has test.*, but nothing is named train; name the splits"):
        load(save(path.with_name(f"other{path.suffix}"), {"test": ARRAYS["test"]}))


def test_a_folder_of_small_ids_is_mapped_and_not_read(tmp_path):
    arrays = {split: ids.astype(np.uint16) for split, ids in ARRAYS.items()}
    assert isinstance(load(save(tmp_path / "saved", arrays)).train, np.memmap)


def test_the_dtype_follows_the_vocabulary(path):
    corpus = load(save(path), Ids(vocab_size=70_000))
    assert corpus.train.dtype == np.int32


def test_the_fingerprint_is_of_ids_and_vocabulary_however_they_were_saved(tmp_path):
    archive, folder = load(save(tmp_path / "a.npz")), load(save(tmp_path / "b"))
    assert archive.fingerprint == folder.fingerprint
    changed = {**ARRAYS, "test": np.array([1, 98])}
    assert load(save(tmp_path / "c", changed)).fingerprint != folder.fingerprint
    assert load(tmp_path / "b", Ids(vocab_size=101)).fingerprint != folder.fingerprint


def test_bytes_are_known_from_the_tokenizer_or_stated_or_unknown(path):
    unknown = load(save(path))
    assert unknown.bytes == {"train": None, "valid": None, "test": None}
    assert unknown.bits_per_byte("valid", 1.0) is None
    assert load(path, Bytes()).bytes["train"] == 100
    stated = {**ARRAYS, "valid_bytes": np.array(12)}
    corpus = load(save(path.with_name(f"stated{path.suffix}"), stated))
    assert corpus.bytes["valid"] == 12
    assert corpus.bits_per_byte("valid", np.log(2)) == pytest.approx(3 / 12)


def test_a_relative_path_is_found_in_the_data_folder(path):
    save(path)
    config = Tokens(path=path.name, tokenizer=Ids(vocab_size=100))
    assert config.load(Places(path.parent, path.parent)).fingerprint == load(path).fingerprint
    with pytest.raises(DataError, match=r"saved tokens '.*' not found"):
        config.load(Places(path, path))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([5, 100]), r"train.*: id 100, .*0 to 99; set data.tokenizer.vocab_size=101"),
        (np.array([5, -1]), "train.*: id -1"),
        (np.array([0.5]), "train.*: expected a vector of whole numbers, got float64"),
        (np.zeros((2, 3), int), r"train.*: expected a vector of whole numbers, got int64\(2, 3\)"),
        (np.array([], int), "train.*: empty"),
        (np.array(3), r"train.*: expected a vector of whole numbers, got int64\(\)"),
        (np.array([True, False]), "train.*: expected a vector of whole numbers, got bool"),
        (np.array([1 + 2j]), "train.*: expected a vector of whole numbers, got complex"),
        (np.array([2**63], np.uint64), "train.*: id 9223372036854775808"),
    ],
)
def test_what_is_no_token_of_the_vocabulary_is_refused(path, ids, message):
    with pytest.raises(DataError, match=message):
        load(save(path, {**ARRAYS, "train": ids}))


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (-5, "-5"),
        (0, "0"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (2.5, "2.5"),
        ([1, 2], "1 2"),
        ("x", "x"),
    ],
)
def test_a_stated_number_of_bytes_is_a_positive_whole_number(path, count, shown):
    with pytest.raises(DataError, match=f"valid_bytes.*a positive whole number, got .*{shown}"):
        load(save(path, {**ARRAYS, "valid_bytes": np.array(count)}))


@pytest.mark.parametrize(
    "names",
    [
        "train val",
        "training_ids validation_ids",
        "train-00000-of-00001 dev",
        "fineweb_train_000001 fineweb_val_000000",
        "TRAIN HELDOUT",
    ],
)
def test_splits_are_recognised_by_words_in_names(path, names):
    arrays = dict(zip(names.split(), (ARRAYS["train"], ARRAYS["valid"]), strict=True))
    corpus = load(save(path, arrays))
    assert corpus.train.tolist() == list(range(100))
    assert corpus.valid.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("train valid val", "both named as the valid split"),
        ("train dev eval", "both named as the valid split"),
        ("train_ids train_mask valid", "train_ids.* and train_mask.* are both named as the train"),
        ("train test", "has .*, but nothing is named valid"),
        ("a b", "holds no train and no valid but a.*b.*; name the splits train, valid and test"),
        ("train arr_0", "holds no valid but train.*arr_0|holds no valid but arr_0.*train"),
        ("train_test valid", "words for two splits"),
    ],
)
def test_names_that_leave_a_doubt_are_refused(path, names, words):
    with pytest.raises(DataError, match=words):
        load(save(path, dict.fromkeys(names.split(), ARRAYS["train"])))


def test_a_folder_without_tokens_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no saved tokens; name the splits train, valid"):
        load(tmp_path)


def test_the_files_of_nanogpt_are_mapped_and_its_pickle_is_not_read(tmp_path):
    for name in ("train", "val"):
        np.arange(100, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    (tmp_path / "meta.pkl").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    (tmp_path / "prepare.py").write_text("raise SystemExit")
    corpus = load(tmp_path)
    assert isinstance(corpus.train, np.memmap)
    assert corpus.valid.tolist() == list(range(100))
    with pytest.raises(DataError, match=r"set data.tokenizer.vocab_size=100 or more"):
        load(tmp_path, Ids(vocab_size=65))
    with pytest.raises(DataError, match=r"uint16, too small for a vocabulary of 70000; save .npy"):
        load(tmp_path, Ids(vocab_size=70_000))


def test_the_header_of_llm_c_is_no_token(tmp_path):
    for name in ("train", "val"):
        header = np.zeros(256, np.int32)
        header[:3] = 20_240_520, 1, 600
        ids = np.arange(600, dtype=np.uint16) % 100
        (tmp_path / f"{name}_000.bin").write_bytes(header.tobytes() + ids.tobytes())
    assert load(tmp_path).train.tolist() == ids.tolist()
    (tmp_path / "train_000.bin").write_bytes(header.tobytes() + ids.tobytes()[:-2])
    with pytest.raises(DataError, match="599 ids, its header says 600: it is cut"):
        load(tmp_path)


def test_files_of_one_split_are_joined_in_the_order_of_their_names(tmp_path):
    (tmp_path / "train").mkdir()
    for n in (1, 0):
        np.save(tmp_path / "train" / f"{n}.npy", ARRAYS["train"][n * 50 : n * 50 + 50])
    np.savez_compressed(tmp_path / "valid.npz", ids=ARRAYS["valid"])
    assert load(tmp_path).train.tolist() == list(range(100))
    assert load(tmp_path).valid.tolist() == [7, 8, 9]


def npy(array=ARRAYS["train"], **changes):
    buffer = io.BytesIO()
    np.save(buffer, array)
    raw = buffer.getvalue()
    for old, new in changes.values():
        assert old in raw
        raw = raw.replace(old, new.ljust(len(old)))
    return raw


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def raw_archive(raw):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("train.npy", raw)
        zipped.writestr("valid.npy", npy())
    return buffer.getvalue()


HUGE = {"shape": (b"(100,), }          ", b"(9000000000000,), }")}
PATH, DAMAGED = "data.path names an .npz file", "is damaged, or no file of token ids"
FILES = [  # name (in a folder with an intact valid.npy, or not), bytes, words of the error
    ("one.npy", npy(), PATH),
    ("train.bin", bytes(range(200)), PATH),
    ("a.txt", b"hello", PATH),
    ("a.npz", b"hello", DAMAGED),
    ("a.npz", b"", DAMAGED),
    ("a.npz", archive(**ARRAYS)[:200], DAMAGED),
    ("a.npz", archive(**ARRAYS)[:-30], DAMAGED),
    ("a.npz", archive(train=np.array([{}]), valid=ARRAYS["valid"]), DAMAGED),
    ("a.npz", archive(train=np.zeros(40 << 20, np.uint8)), "train.npy expands more than token ids"),
    ("a.npz", raw_archive(npy(**HUGE)), DAMAGED),
    ("a.npz", raw_archive(b"hello"), "expected a vector|" + DAMAGED),
    ("folder/train.npy", b"", DAMAGED),
    ("folder/train.npy", b"hello", DAMAGED),
    ("folder/train.npy", npy()[:-9], DAMAGED),
    ("folder/train.npy", npy(**HUGE), DAMAGED),
    ("folder/train.npy", npy(d=(b"'<i8'", b"'|O'")), DAMAGED),
    ("folder/train.npy", npy(d=(b"'<i8'", b"{{{")), DAMAGED),
    ("folder/train.npz", archive(a=ARRAYS["train"], b=ARRAYS["train"]), "holds 2 arrays .a, b.*"),
    ("folder/train.bin", b"", "has 0 bytes; uint16 ids have two bytes each"),
    ("folder/train.bin", b"abc", "has 3 bytes"),
    ("folder/train.bin", ARRAYS["train"].astype(np.uint32).tobytes(), "no file of uint16 ids but"),
    ("folder/train.parquet", b"PAR1", "no file of token ids: .npy, .npz, .bin are read"),
    ("folder/train.npy.gz", b"\x1f\x8b", "no file of token ids: .npy, .npz, .bin are read"),
]


@pytest.mark.parametrize(("name", "raw", "words"), FILES, ids=range(len(FILES)))
def test_what_is_no_file_of_ids_is_refused_in_one_line(tmp_path, name, raw, words):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(raw)
    if "/" in name:
        np.save(file.parent / "valid.npy", ARRAYS["valid"])
    with pytest.raises(DataError, match=words) as error:
        load(file.parent if "/" in name else file)
    assert "\n" not in str(error.value)
    assert file.name in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    np.save(tmp_path / "valid.npy", ARRAYS["valid"])
    os.mkfifo(tmp_path / "train.npy")
    for place in (tmp_path, tmp_path / "train.npy"):
        with pytest.raises(DataError, match=r"train\.npy is a pipe, not a file"):
            load(place)


def test_a_tokenizer_that_would_need_text_is_refused():
    with pytest.raises(ConfigError, match="tokenizer: bpe is trained on text"):
        Tokens(path="x", tokenizer=BPE())
    with pytest.raises(DataError, match="have no text"):
        Tokens(path="x", tokenizer=Bytes()).texts(Places(None, None))


seq_lens = st.integers(1, 9)
batch_sizes = st.integers(1, 7)


def starts(n_tokens=100, *, seq_len=4, batch_size=3, steps=10, seed=0):
    return window_starts(n_tokens, seq_len=seq_len, batch_size=batch_size, steps=steps, seed=seed)


@given(n_tokens=st.integers(10, 200), seq_len=seq_lens, batch_size=batch_sizes)
def test_every_window_occurs_once_an_epoch_and_no_two_overlap(n_tokens, seq_len, batch_size):
    n_windows = n_tokens // (seq_len + 1)
    steps = 3 * n_windows  # batch_size whole epochs and more
    in_order = starts(n_tokens, seq_len=seq_len, batch_size=batch_size, steps=steps).ravel()
    assert in_order.dtype == np.int64
    for epoch in in_order.reshape(-1, n_windows):
        assert sorted(epoch) == [window * (seq_len + 1) for window in range(n_windows)]
    assert in_order.max() + seq_len + 1 <= n_tokens


@given(steps=st.integers(0, 30), more=st.integers(1, 30), batch_size=batch_sizes)
def test_a_batch_does_not_depend_on_how_many_follow(steps, more, batch_size):
    few = starts(batch_size=batch_size, steps=steps)
    many = starts(batch_size=batch_size, steps=steps + more)
    assert few.shape == (steps, batch_size)
    np.testing.assert_array_equal(many[:steps], few)


def test_seeds_and_epochs_differ_in_order():
    first, second = starts(batch_size=20, steps=2)  # 20 windows: one epoch a step
    assert (first != second).any()
    assert (first != starts(batch_size=20, steps=1, seed=1)[0]).any()
    assert (first != sorted(first)).any()


def test_the_order_of_a_seed_is_fixed_for_good():
    """Records of old runs stay comparable: these numbers may never change."""
    assert starts(40, steps=3).tolist() == [[15, 10, 5], [30, 0, 35], [20, 25, 35]]


def test_a_split_shorter_than_a_window_says_what_to_do():
    with pytest.raises(ValueError, match=r"has 9 tokens.*needs 10: set seq_len to 8 or less"):
        starts(9, seq_len=9)
    assert starts(10, seq_len=9, batch_size=2, steps=1).tolist() == [[0, 0]]


@settings(max_examples=300)
@given(n_tokens=st.integers(2, 120), seq_len=st.integers(1, 40))
def test_evaluation_scores_every_token_but_the_first_exactly_once(n_tokens, seq_len):
    windows = evaluation_starts(n_tokens, seq_len)
    counted = windows.counted()
    assert counted.shape == (len(windows.starts), windows.length)
    assert (counted.sum(1) == windows.new_targets).all()
    targets = windows.starts[:, None] + 1 + np.arange(windows.length)
    assert sorted(targets[counted]) == list(range(1, n_tokens))
    assert windows.length <= seq_len
    assert windows.starts.min() >= 0
    assert windows.starts.max() + windows.length + 1 == n_tokens  # no window reads past the split


def test_the_last_window_is_as_long_as_the_others_and_counts_its_new_targets_alone():
    windows = evaluation_starts(12, 4)  # 11 targets
    assert windows.starts.tolist() == [0, 4, 7]
    assert windows.new_targets.tolist() == [4, 4, 3]
    assert windows.counted()[2].tolist() == [False, True, True, True]


def test_one_token_cannot_be_evaluated():
    with pytest.raises(ValueError, match="has 1 tokens; evaluation needs at least 2"):
        evaluation_starts(1, 8)


VOCAB = 5


@pytest.fixture
def text():
    """Tokens that are partly predictable: mostly the sum of the two before."""
    random = np.random.default_rng(0)
    tokens = [1, 2]
    for noise in random.integers(0, VOCAB, 400):
        tokens.append(int((tokens[-1] + tokens[-2]) % VOCAB if noise else random.integers(VOCAB)))
    return np.array(tokens, np.uint16)


def kneser_ney_in_words(train, context, word, order):
    """p(word | context) from sets and lists of tuples, one order after the other."""

    def grams(n):
        longest = [tuple(train[i - order + 1 : i + 1]) for i in range(order - 1, len(train))]
        while len(longest[0]) > n:
            longest = [gram[1:] for gram in set(longest)]
        return longest

    p = 1 / VOCAB
    for n in range(1, order + 1):
        seen = grams(n)
        counts = {gram: seen.count(gram) for gram in set(seen)}
        once, twice = (sum(c == times for c in counts.values()) for times in (1, 2))
        discount = (once + 1) / (once + 2 * twice + 2)
        before = tuple(context[len(context) - n + 1 :]) if n > 1 else ()
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == before}
        if len(before) < n - 1 or not after:
            break
        total = sum(after.values())
        p = (max(after.get(word, 0) - discount, 0) + discount * len(after) * p) / total
    return p


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_ngrams_are_those_of_kneser_and_ney(text, order, monkeypatch):
    monkeypatch.setattr(ngram, "ORDER", order)
    train, window = text[:300], text[300:340]
    p_T = ngram._kneser_ney(train, window[None], VOCAB)[order][0]
    train, window = train.tolist(), window.tolist()
    expected = [
        kneser_ney_in_words(train, window[:t], window[t], order) for t in range(1, len(window))
    ]
    np.testing.assert_allclose(p_T, expected, rtol=1e-12)


def test_the_ngrams_give_each_context_one_whole_probability(text):
    contexts = np.stack([text[i : i + 7] for i in range(300, 380)])
    every_next = np.concatenate(
        [np.insert(contexts, 7, word, axis=1) for word in range(VOCAB)]
    ).reshape(VOCAB, len(contexts), 8)
    by_order = [ngram._kneser_ney(text[:300], windows, VOCAB) for windows in every_next]
    for p_WT in zip(*by_order, strict=True):
        np.testing.assert_allclose(sum(p_WT)[:, -1], 1.0, rtol=1e-12)


def test_the_cache_says_what_followed_earlier_in_the_window(text):
    windows = text[:60].reshape(2, 30)
    for k, p_WT in enumerate(ngram._cache(windows)):
        for window, p_T in zip(windows.tolist(), p_WT, strict=True):
            for t in range(1, len(window)):
                for length in reversed(range(min(k, t) + 1)):  # the longest that is not new
                    context = window[t - length : t]
                    after = [
                        window[i] for i in range(length, t) if window[i - length : i] == context
                    ]
                    if after:
                        break
                assert p_T[t - 1] == after.count(window[t]) / len(after)


def test_noise_costs_its_entropy_and_a_rule_next_to_nothing():
    noise = np.random.default_rng(0).integers(0, VOCAB, 40_000).astype(np.uint16)
    loss = ngram_loss(noise[:20_000], noise[20_000:], vocab_size=VOCAB, seq_len=64)
    assert loss == pytest.approx(math.log(VOCAB), rel=1e-2)
    cycle = np.tile(np.arange(VOCAB, dtype=np.uint16), 2000)
    assert ngram_loss(cycle, cycle[:1001], vocab_size=VOCAB, seq_len=64) < 0.1


def test_what_repeats_in_a_window_is_known_without_training_text():
    random = np.random.default_rng(0)
    train = random.integers(0, 1000, 5000).astype(np.uint16)
    twice = np.concatenate([np.tile(random.integers(0, 1000, 32), 2) for _ in range(50)])
    loss = ngram_loss(train, np.append(twice, 0).astype(np.uint16), vocab_size=1000, seq_len=64)
    assert loss < 0.65 * math.log(1000)


@pytest.mark.parametrize("n_tokens", [2, 3, 10])
def test_a_text_shorter_than_an_ngram_will_do(n_tokens):
    tokens = np.arange(n_tokens, dtype=np.uint16) % VOCAB
    assert math.isfinite(ngram_loss(tokens, tokens, vocab_size=VOCAB, seq_len=8))
