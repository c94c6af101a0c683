"""Corpora: the embedded one and WikiText-2; the n-gram estimate of what counting predicts."""

import gzip
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnlab.config import ConfigError
from attnlab.data import stdlib
from attnlab.data.source import DataError, Places
from attnlab.data.stdlib import Stdlib
from attnlab.data.wikitext2 import WikiText2

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


PAGE = "https://huggingface.co/datasets/Salesforce/wikitext (wikitext-2-v1)"
FILES = {
    "train": " \n = Homarus gammarus = \n \n The <unk> lobster . \n",
    "valid": " \n = Valid = \n \n",
    "test": " \n = Test = \n \n",
}


@pytest.fixture(autouse=True)
def without_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it raises ImportError


def put(folder, name="{}.txt"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in FILES.items():
        path = folder / name.format(split)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return folder


def found(texts):
    return {split: "".join(documents) for split, documents in texts.splits().items()}


@pytest.mark.parametrize("name", ["{}.txt", "{}.txt.gz", "wiki.{}.tokens"])
@pytest.mark.parametrize("below", [".", "wikitext-2", "wikitext2"])
def test_it_is_found_in_the_data_folder_or_below_it(tmp_path, below, name):
    put(tmp_path / below, name)
    assert found(WikiText2().texts(Places(tmp_path, tmp_path))) == FILES


def test_the_path_that_was_named_comes_first_and_is_the_only_one(tmp_path):
    put(tmp_path / "data")
    named = put(tmp_path / "named")
    (named / "valid.txt").write_text("another text")
    places = Places(tmp_path / "data", tmp_path)
    assert WikiText2(path=str(named)).texts(places).valid == ["another text"]
    with pytest.raises(DataError, match="elsewhere"):
        WikiText2(path=str(tmp_path / "elsewhere")).texts(places)


def test_what_is_missing_is_said_with_every_place_and_every_remedy(tmp_path):
    put(tmp_path)
    (tmp_path / "test.txt").unlink()
    with pytest.raises(DataError) as error:
        WikiText2().load(Places(tmp_path, tmp_path / "cache"))
    told = str(error.value)
    for place in (tmp_path, tmp_path / "wikitext-2", tmp_path / "wikitext2"):
        assert f"\n  {place}  (" in told
    for remedy in ("data.path=DIR", "ATTNLAB_DATA=DIR", "pip install datasets", "train.txt", PAGE):
        assert remedy in told.splitlines()[-1]


def test_without_a_data_folder_the_hub_is_the_place_that_was_tried(tmp_path):
    with pytest.raises(DataError, match=r"hub  \(the package datasets is not installed\)"):
        WikiText2().texts(Places(None, tmp_path))


def test_the_hub_gives_the_same_bytes_as_the_files(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        rows = {
            split: [{"text": "" if line == " \n" else line} for line in text.splitlines(True)]
            for split, text in FILES.items()
        }
        return {"train": rows["train"], "validation": rows["valid"], "test": rows["test"]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert found(WikiText2().texts(Places(tmp_path, tmp_path))) == FILES
    assert asked == [("Salesforce/wikitext", "wikitext-2-v1")]


def test_a_hub_that_cannot_be_reached_is_one_more_place_that_was_tried(tmp_path, monkeypatch):
    def load_dataset(*names):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"the Hugging Face hub  \(no route\)"):
        WikiText2().texts(Places(None, tmp_path))
