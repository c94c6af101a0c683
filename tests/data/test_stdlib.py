"""The embedded corpus is there on every machine, capped, mixed, and split by module."""

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from attnlab.config import ConfigError
from attnlab.data import stdlib
from attnlab.data.source import DataError, Places
from attnlab.data.stdlib import Stdlib

NOWHERE = Places(None, Path("nowhere"))


@pytest.fixture(scope="module")
def texts():
    return Stdlib().texts(NOWHERE)


def n_bytes(documents):
    return sum(len(document.encode()) for document in documents)


def library(folder, files, monkeypatch):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(folder))


def test_it_loads_at_its_defaults_and_comes_back_to_the_byte(tmp_path, texts):
    corpus = Stdlib().load(Places(None, tmp_path))
    assert corpus.vocab_size == Stdlib().tokenizer.vocab_size == corpus.codec.n_tokens
    assert corpus.decode(corpus.valid) == "".join(texts.valid)
    assert corpus.decode(corpus.test) == "".join(texts.test)
    assert len(corpus.train) > 500_000


def test_it_fills_its_cap_and_no_more(texts):
    total = sum(n_bytes(documents) for documents in texts.splits().values())
    assert 0.95 * 3_000_000 < total <= 3_000_000
    assert n_bytes(Stdlib(max_bytes=200_000).texts(NOWHERE).train) <= 180_000 + 20_000


def test_a_twentieth_each_is_validation_and_test(texts):
    for split in (texts.valid, texts.test):
        assert n_bytes(split) == pytest.approx(150_000, rel=0.1)


def test_every_document_is_a_file_of_the_running_library(texts):
    root = Path(sysconfig.get_path("stdlib"))
    assert (root / "contextlib.py").is_file()
    sources = {path.read_bytes() for path in root.rglob("*.py") if "site-packages" not in str(path)}
    assert all(document.encode() in sources for document in texts.valid)


def test_a_module_is_in_one_split_with_all_its_files(tmp_path, monkeypatch):
    files = {f"m{i}/f{j}.py": f"# {i} {j}\n" + "x = 1\n" * 200 for i in range(30) for j in range(3)}
    library(tmp_path, files, monkeypatch)
    splits = Stdlib(max_bytes=100_000).texts(NOWHERE).splits()
    split_of_module = {(d.split()[1], split) for split, docs in splits.items() for d in docs}
    assert all(splits.values())
    assert max(Counter(module for module, _ in split_of_module).values()) == 1


def test_no_module_takes_more_than_a_sixteenth(tmp_path, monkeypatch):
    files = {f"huge/f{i}.py": f"# huge {i}\n" + "x = 1\n" * 100 for i in range(200)}
    files |= {f"m{i}.py": f"# small {i}\n" + "x = 1\n" * 100 for i in range(200)}
    library(tmp_path, files, monkeypatch)
    texts = Stdlib(max_bytes=100_000).texts(NOWHERE)
    everything = [d for documents in texts.splits().values() for d in documents]
    assert 0 < n_bytes(d for d in everything if d.startswith("# huge")) <= 100_000 / 16
    assert n_bytes(everything) > 95_000


def test_tests_installed_packages_and_this_machines_build_are_not_the_library(
    tmp_path, monkeypatch
):
    wanted = {f"m{i}.py": f"# wanted {i}\n" + "x = 1\n" * 200 for i in range(60)}
    places = ("test", "json/tests", "site-packages/x", "idlelib/idle_test", "a/__pycache__")
    others = {f"{place}/x.py": "# unwanted\n" for place in (*places, "config-3.11-x")}
    library(tmp_path, wanted | others | {"_sysconfigdata__x.py": "# unwanted\n"}, monkeypatch)
    texts = Stdlib(max_bytes=100_000).texts(NOWHERE)
    assert all("# wanted" in d for documents in texts.splits().values() for d in documents)


def test_files_are_read_in_the_encoding_they_declare(tmp_path, monkeypatch):
    files = {f"m{i}.py": f"# {i}\n" + "x = 1\n" * 200 for i in range(60)}
    library(tmp_path, files, monkeypatch)
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\n# é\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"# coding: utf-8\n# \xe9\n")
    (tmp_path / "unheard.py").write_bytes(b"# coding: klingon\n")
    texts = Stdlib(max_bytes=100_000).texts(NOWHERE)
    everything = [d for documents in texts.splits().values() for d in documents]
    assert "# coding: latin-1\n# é\n" in everything
    assert len(everything) == 61


def test_the_same_python_gives_the_same_corpus(texts):
    assert Stdlib().texts(NOWHERE) == texts


def test_a_python_without_its_source_says_so(tmp_path, monkeypatch):
    library(tmp_path, {"only.py": "x = 1\n"}, monkeypatch)
    with pytest.raises(DataError, match="without its library's source"):
        Stdlib().texts(NOWHERE)


def test_a_cap_too_small_to_split_is_refused():
    with pytest.raises(ConfigError, match="max_bytes: must be at least 100000, got 5"):
        Stdlib(max_bytes=5)
