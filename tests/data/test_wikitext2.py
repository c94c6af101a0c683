"""WikiText-2 is found where it was said to be, or the error says where it was looked for."""

import gzip
import sys
from types import SimpleNamespace

import pytest

from attnlab.data.source import DataError, Places
from attnlab.data.wikitext2 import WikiText2

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
