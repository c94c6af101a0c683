"""Saved tokens are taken as they are, once it is sure that they are tokens of this vocabulary."""

import numpy as np
import pytest

from attnlab.config import ConfigError
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
    with pytest.raises(DataError, match="holds no train and no valid"):
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
    with pytest.raises(DataError, match="saved tokens not found"):
        config.load(Places(path, path))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([5, 100]), r"train: id 100, .*0 to 99; set data.tokenizer.vocab_size=101"),
        (np.array([5, -1]), "train: id -1"),
        (np.array([0.5]), "train: expected a vector of whole numbers, got float64"),
        (np.zeros((2, 3), int), r"train: expected a vector of whole numbers, got int64\(2, 3\)"),
        (np.array([], int), "train: empty"),
    ],
)
def test_what_is_no_token_of_the_vocabulary_is_refused(path, ids, message):
    with pytest.raises(DataError, match=message):
        load(save(path, {**ARRAYS, "train": ids}))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", ARRAYS["train"])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "objects.npz", train=np.array([{}]), valid=ARRAYS["valid"])
    for name in ("one.npy", "text.npz", "objects.npz"):
        with pytest.raises(DataError, match=f"{name} is neither an .npz file nor a folder"):
            load(tmp_path / name)


def test_a_tokenizer_that_would_need_text_is_refused():
    with pytest.raises(ConfigError, match="tokenizer: bpe is trained on text"):
        Tokens(path="x", tokenizer=BPE())
    with pytest.raises(DataError, match="have no text"):
        Tokens(path="x", tokenizer=Bytes()).texts(Places(None, None))
