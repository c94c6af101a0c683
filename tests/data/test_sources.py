"""Every source keeps the same promises: exact splits, a fingerprint of contents, a cache.

Corpora: the embedded one and WikiText-2; the n-gram estimate of what counting predicts.
"""

import gzip
import json
import math
import os
import re
import resource
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from attnlab.config import Choice, ConfigError, override
from attnlab.data import stdlib
from attnlab.data.arithmetic import Arithmetic
from attnlab.data.codec import ByteLevelCodec
from attnlab.data.documents import measure
from attnlab.data.mad import Compression, InContextRecall, Memorization, SelectiveCopying
from attnlab.data.places import cached
from attnlab.data.reasoning import Depo, Mano
from attnlab.data.recall import MQAR, FuzzyRecall, Needle
from attnlab.data.ruler import CommonWords, VariableTracking
from attnlab.data.source import Corpus, DataConfig, DataError, Places, Texts
from attnlab.data.state_tracking import StateTracking
from attnlab.data.stdlib import SitePackages, Stdlib
from attnlab.data.task import Task
from attnlab.data.text import Text, TinyShakespeare, WikiText2
from attnlab.data.tokenizer import BPE, Bytes, Ids, Tokenizer
from attnlab.data.tokens import Tokens

SMALL = BPE(vocab_size=300)
CONFIGS = [
    WikiText2(path="somewhere"),
    Text(paths=("a.txt", "b")),
    Stdlib(),
    SitePackages(),
    Arithmetic(),
    Tokens(path="x.npz", tokenizer=Ids(vocab_size=9)),
    MQAR(),
    CommonWords(),
    Compression(),
    TinyShakespeare(),
    Depo(),
    Mano(),
    VariableTracking(),
    FuzzyRecall(),
    InContextRecall(),
    Memorization(),
    Needle(),
    SelectiveCopying(),
    StateTracking(),
]
SPLITS = {"train": "the cat sat on the mat. " * 9, "valid": "the élan. ", "test": "sat, 東京. "}


def folder_of(folder: Path, splits=SPLITS, ending=".txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in splits.items():
        raw = text.encode()
        (folder / f"{split}{ending}").write_bytes(
            gzip.compress(raw) if ending == ".txt.gz" else raw
        )
    return folder


def load(folder: Path, cache: Path, tokenizer: Tokenizer = SMALL) -> Corpus:
    return Text(paths=(str(folder),), tokenizer=tokenizer).load(Places(None, cache))


def test_the_examples_are_all_the_kinds_there_are():
    shipped = {k for k, c in DataConfig.kinds.items() if c.__module__.startswith("attnlab.")}
    assert {config.kind() for config in CONFIGS} == shipped


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind())
def test_the_file_is_named_after_the_source(config):
    file = config.kind()
    if isinstance(config, Task):
        shared = dict.fromkeys(("mqar", "needle", "fuzzy_recall"), "recall")
        shared |= dict.fromkeys(("depo", "mano"), "reasoning")
        shared |= dict.fromkeys(("variable_tracking", "common_words"), "ruler")
        file = {**shared, "state_tracking": file}.get(file, "mad")
    file = {"site_packages": "stdlib", "wikitext2": "text", "tiny_shakespeare": "text"}.get(
        file, file
    )  # they share a file
    assert type(config).__module__ == f"attnlab.data.{file}"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind())
def test_settings_survive_json_and_reject_misspelling(config):
    data = json.loads(json.dumps(config.to_dict()))
    assert DataConfig.from_dict(data) == config
    with pytest.raises(ConfigError, match="no field 'tokeniser'; did you mean 'tokenizer'"):
        DataConfig.from_dict({**data, "tokeniser": "bytes"})


def test_settings_can_be_given_on_the_command_line():
    changed = override(WikiText2(), ["path=here", "tokenizer.vocab_size=4096"])
    assert changed == WikiText2(path="here", tokenizer=BPE(vocab_size=4096))
    assert override(WikiText2(), ["tokenizer=bytes"]).tokenizer == Bytes()


def test_the_package_does_without_torch():
    program = "import attnlab.data, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("tokenizer", [BPE(vocab_size=300), Bytes()], ids=["bpe", "bytes"])
def test_every_split_comes_back_to_the_byte(tmp_path, tokenizer):
    corpus = load(folder_of(tmp_path / "data"), tmp_path / "cache", tokenizer)
    assert {split: corpus.decode(ids) for split, ids in corpus.splits().items()} == SPLITS
    assert corpus.bytes == {split: len(text.encode()) for split, text in SPLITS.items()}
    assert corpus.vocab_size == tokenizer.vocab_size


def test_the_tokenizer_is_trained_on_the_training_split_alone(tmp_path):
    plain = load(folder_of(tmp_path / "plain"), tmp_path / "cache")
    other = {**SPLITS, "valid": "zebra " * 99, "test": "giraffe " * 99}
    changed = load(folder_of(tmp_path / "changed", other), tmp_path / "cache")
    assert changed.codec.fingerprint == plain.codec.fingerprint
    assert " zebra" not in [changed.decode([i]) for i in range(300)]


def test_the_fingerprint_is_of_contents_and_not_of_places_or_times(tmp_path):
    one = folder_of(tmp_path / "one")
    two = folder_of(tmp_path / "two", ending=".txt.gz")
    os.utime(two / "train.txt.gz", (0, 0))
    assert load(one, tmp_path / "a").fingerprint == load(two, tmp_path / "b").fingerprint


def test_the_fingerprint_tells_any_change_of_text_or_tokenizer(tmp_path):
    corpora = [
        load(folder_of(tmp_path / "same"), tmp_path / "cache"),
        load(tmp_path / "same", tmp_path / "cache", BPE(vocab_size=301)),
        load(tmp_path / "same", tmp_path / "cache", Bytes()),
        load(folder_of(tmp_path / "no_test", dict(list(SPLITS.items())[:2])), tmp_path / "cache"),
    ]
    for split, text in SPLITS.items():
        changed = {**SPLITS, split: text + "!"}
        corpora.append(load(folder_of(tmp_path / f"other_{split}", changed), tmp_path / "cache"))
    assert len({corpus.fingerprint for corpus in corpora}) == len(corpora)
    assert all(int(corpus.fingerprint, 16) for corpus in corpora)


def test_the_measure_of_documents_tells_where_each_of_them_ends():
    assert measure(["ab", "c"]).n_bytes == measure(["a", "bc"]).n_bytes == 3
    assert measure(["ab", "c"]).sha256 != measure(["a", "bc"]).sha256


def test_a_second_load_neither_trains_nor_encodes(tmp_path):
    first = load(folder_of(tmp_path / "data"), tmp_path / "cache")
    with (
        mock.patch.object(BPE, "_train", side_effect=AssertionError("trained again")),
        mock.patch.object(ByteLevelCodec, "encode", side_effect=AssertionError("encoded again")),
    ):
        again = load(tmp_path / "data", tmp_path / "cache")
    assert isinstance(again.train, np.memmap)
    for split, ids in first.splits().items():
        np.testing.assert_array_equal(again.splits()[split], ids)
    assert again.fingerprint == first.fingerprint


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight(tmp_path):
    corpus = load(folder_of(tmp_path / "data"), tmp_path / "cache", Bytes())
    assert corpus.bits_per_byte("test", math.log(256)) == pytest.approx(8)
    merged = load(tmp_path / "data", tmp_path / "cache")
    bits = math.log2(300) * len(merged.valid) / len(SPLITS["valid"].encode())
    assert merged.bits_per_byte("valid", math.log(300)) == pytest.approx(bits)


@pytest.mark.parametrize("tokenizer", [BPE(vocab_size=300), Bytes()], ids=["bpe", "bytes"])
def test_a_marker_between_documents_is_predicted_and_is_no_byte_of_text(tmp_path, tokenizer):
    splits = {split: f"{text}<|endoftext|>{text}<|im_end|>" for split, text in SPLITS.items()}
    corpus = load(folder_of(tmp_path / "data", splits), tmp_path / "cache", tokenizer)
    assert corpus.decode(corpus.test) == splits["test"]
    assert corpus.bytes == {split: 2 * len(text.encode()) for split, text in SPLITS.items()}
    only = dict.fromkeys(SPLITS, "<|endoftext|>")
    nothing = load(folder_of(tmp_path / "only", only), tmp_path / "cache", tokenizer)
    assert nothing.bits_per_byte("test", 1.0) is None


def test_the_description_is_json_and_names_no_folder(tmp_path):
    corpus = load(folder_of(tmp_path / "data"), tmp_path / "cache", BPE(vocab_size=5000))
    described = json.dumps(corpus.description)
    assert str(tmp_path) not in described
    told = json.loads(described)
    assert told["source"] == "text"
    assert told["documents"] == {"train": 1, "valid": 1, "test": 1}
    assert told["tokens"] == {split: len(ids) for split, ids in corpus.splits().items()}
    assert told["bytes"] == corpus.bytes
    assert told["tokenizer"]["kind"] == "bpe"
    assert told["tokenizer"]["vocab_size"] == 5000
    assert 256 < told["tokenizer"]["n_tokens"] < 5000  # what so little text yielded


def test_a_cache_that_the_disk_refuses_says_why(tmp_path):
    texts = {"train": "the cat sat on the mat. " * 999, "valid": "a mat. "}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(DataError, match="File too large"):
            load(folder_of(tmp_path / "data", texts, ".txt.gz"), tmp_path / "cache", Bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_empty_split_is_an_error_that_names_it(tmp_path):
    folder = folder_of(tmp_path / "data", {**SPLITS, "valid": ""})
    with pytest.raises(DataError, match=r"valid.txt: no text; the valid split would be empty"):
        load(folder, tmp_path / "cache")


def test_a_source_of_ones_own_is_settings_and_texts(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Sums(DataConfig):
        largest: int = 9
        tokenizer: Tokenizer = SMALL

        def texts(self, places: Places) -> Texts:
            sums = [f"{a}+{b}={a + b}\n" for a in range(self.largest) for b in range(self.largest)]
            return Texts(train=sums[2:], valid=sums[:1], test=None, origin="sums")

    try:
        corpus = Sums().load(Places(None, tmp_path))
        assert corpus.decode(corpus.valid) == "0+0=0\n"
        assert corpus.test is None
        assert corpus.splits().keys() == corpus.bytes.keys() == {"train", "valid"}
        assert replace(Sums(), largest=8).load(Places(None, tmp_path)) != corpus
    finally:
        del DataConfig.kinds["sums"]
    assert issubclass(DataConfig, Choice)


@pytest.mark.parametrize("kind", ["tokens", "tokenizers"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_cache_is_made_again(tmp_path, kind, damage):
    folder = folder_of(tmp_path / "data")

    def ids():
        corpus = load(folder, tmp_path / "cache")  # not kept: its ids are mapped from the file
        return [corpus.fingerprint, *(ids.tolist() for ids in corpus.splits().values())]

    sound = ids()
    for path in (tmp_path / "cache" / kind).iterdir():
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes({"flipped": bytes(raw), "cut": bytes(raw[:-9]), "emptied": b""}[damage])
    assert [ids(), ids()] == [sound, sound]


def test_an_unfinished_write_leaves_nothing_behind(tmp_path):
    def write_half(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "folder" / "file", write_half)
    assert list((tmp_path / "folder").iterdir()) == []
    assert (
        cached(tmp_path / "folder" / "file", lambda f: f.write(b"whole")).read_bytes() == b"whole"
    )


def test_whoever_asks_at_the_same_time_finds_a_whole_file(tmp_path):
    together, content, seen = Barrier(8), b"0123456789" * 10_000, []

    def ask():
        together.wait()
        path = cached(
            tmp_path / "file",
            lambda f: [f.write(content[i : i + 10]) for i in range(0, len(content), 10)],
        )
        seen.append(path.read_bytes() == content)

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "file.sha256"]


def test_a_cache_that_cannot_be_written_says_how_to_name_another(tmp_path):
    (tmp_path / "occupied").write_text("a file")
    with pytest.raises(DataError, match="ATTNLAB_CACHE"):
        cached(tmp_path / "occupied" / "file", lambda f: f.write(b""))


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
        assert f" {place}  (" in told
    for remedy in ("data.path=DIR", "ATTNLAB_DATA=DIR", "pip install datasets", "train.txt", PAGE):
        assert remedy in told.splitlines()[-1]


def test_without_a_data_folder_the_hub_is_the_place_that_was_tried(tmp_path):
    with pytest.raises(DataError, match=r"hub \(the package datasets is not installed\)"):
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
    with pytest.raises(DataError, match=r"the Hugging Face hub \(no route\)"):
        WikiText2().texts(Places(None, tmp_path))


def problems_of(texts):
    return [line for documents in texts.splits().values() for line in documents]


CALCULATION = re.compile(r"(\d+)([-+*])(\d+)(?:%(\d+))?")


def test_arithmetic_is_the_same_on_every_machine():
    found = problems_of(Arithmetic(max_bytes=50_000).texts(NOWHERE))
    assert measure(found).sha256[:16] == "607e7b3fb9757ea8"
    assert found != problems_of(Arithmetic(max_bytes=50_000, seed=1).texts(NOWHERE))


def test_every_answer_is_right():
    for line in problems_of(Arithmetic(max_bytes=50_000).texts(NOWHERE)):
        question, _, answer = line.removesuffix("\n").partition("=")
        if calculation := CALCULATION.fullmatch(question):
            a, sign, b, modulus = calculation.groups()
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert int(answer) == (value % int(modulus) if modulus else value)
        elif question[0].isdigit():
            assert sorted(map(int, question.split())) == [*map(int, answer.split())]
        else:
            left = question + answer
            while any(pair in left for pair in ("()", "[]", "{}")):
                left = left.replace("()", "").replace("[]", "").replace("{}", "")
            assert left == ""


def test_no_held_out_problem_is_also_for_training_in_any_order_of_its_operands(tmp_path):
    def key(line):
        question = line.partition("=")[0]
        if calculation := CALCULATION.fullmatch(question):
            a, sign, b, modulus = calculation.groups()
            return (sign, modulus, *((a, b) if sign == "-" else sorted((a, b))))
        return tuple(sorted(question.split()))

    texts = Arithmetic(max_bytes=200_000).texts(NOWHERE)
    keys = {split: set(map(key, lines)) for split, lines in texts.splits().items()}
    assert not keys["train"] & (keys["valid"] | keys["test"])
    assert len(problems_of(texts)) == sum(map(len, keys.values()))
    sizes = {split: n_bytes(lines) for split, lines in texts.splits().items()}
    assert sizes["valid"] == pytest.approx(10_000, rel=0.15)
    assert sizes["test"] == pytest.approx(10_000, rel=0.15)
    corpus = Arithmetic(max_bytes=200_000).load(Places(None, tmp_path))
    assert corpus.overlaps() == []
    assert corpus.bits_per_byte("valid", math.log(2)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("division",)}, "no task 'division'; known: addition, modular, sorting"),
        ({"tasks": ()}, "name at least one, each once"),
        ({"tasks": ("sorting", "sorting")}, "name at least one, each once"),
        ({"digits": 0}, "must lie between 1 and 100, got 0"),
        ({"max_bytes": 1}, "must lie between 1000 and 50000000, got 1"),
    ],
)
def test_settings_of_arithmetic_that_are_no_problems(settings, message):
    with pytest.raises(ConfigError, match=message):
        Arithmetic(**settings)


def test_a_task_that_has_too_few_problems_says_how_many_there_are():
    few = Arithmetic(tasks=("addition",), digits=1, max_bytes=10_000)
    with pytest.raises(DataError, match="only about 55 different problems of the task addition"):
        few.texts(NOWHERE)
    with pytest.raises(DataError, match="too few problems to split"):
        Arithmetic(tasks=("sorting",), terms=100, max_bytes=1_000).texts(NOWHERE)


def packages_in(folder, count=30, files=2, **more):
    """A folder of packages, with the record of the project that installed the first of them."""
    sources = {
        f"p{i}/f{j}.py": f"# {i} {j}\n" + f"x = {i}\n" * 400
        for i in range(count)
        for j in range(files)
    }
    for name, content in {**sources, **more}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    info = folder / "Project_Zero-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Project.Zero\nVersion: 1.0\n")
    (info / "RECORD").write_text("p0/f0.py,,\np0/f1.py,,\n")
    return SitePackages(path=str(folder), max_bytes=200_000)


def split_by(texts, word):
    return {
        (document.split()[word], split)
        for split, documents in texts.splits().items()
        for document in documents
    }


def test_a_package_is_in_one_split_and_the_same_wherever_it_lies(tmp_path):
    found = packages_in(tmp_path / "a").texts(NOWHERE)
    assert all(found.splits().values())
    assert "30 packages" in found.origin
    assert "whole packages" in found.origin
    assert len(split_by(found, 1)) == 30
    assert packages_in(tmp_path / "b").texts(NOWHERE) == found
    corpora = [packages_in(tmp_path / name).load(Places(None, tmp_path / "c")) for name in "de"]
    assert corpora[0].fingerprint == corpora[1].fingerprint
    assert corpora[0].overlaps() == []


def test_few_packages_are_split_by_files(tmp_path):
    source = replace(packages_in(tmp_path, count=2, files=40), packages=("p0", "p1"))
    found = source.texts(NOWHERE)
    assert "whole files" in found.origin
    assert all(found.splits().values())


def test_packages_are_named_as_they_are_imported_or_installed(tmp_path):
    source = packages_in(tmp_path, files=30)
    by_project = replace(source, packages=("project-zero",)).texts(NOWHERE)
    assert by_project == replace(source, packages=("p0",)).texts(NOWHERE)
    assert {name for name, _ in split_by(by_project, 1)} == {"0"}
    with pytest.raises(DataError, match=r"no package 'p99x' is installed in .*; did you mean"):
        replace(source, packages=("p99x",)).texts(NOWHERE)


def test_copies_tests_and_hidden_files_are_no_packages(tmp_path):
    copy = "# 0 0\n" + "x = 0\n" * 400
    others = {
        f"{place}.py": "# unwanted x\n"
        for place in ("p1/_vendor/y", "p2/tests/y", "tests/y", "p3/.hidden", "not-a-name/y")
    }
    found = packages_in(tmp_path, **{"alias.py": copy, "p1/_vendor/z.py": copy, **others})
    documents = problems_of(found.texts(NOWHERE))
    assert documents.count(copy) == 1
    assert not any("unwanted" in document for document in documents)


def test_a_circle_of_links_is_walked_once_and_a_file_that_is_no_text_is_noted(tmp_path):
    source = packages_in(tmp_path, **{"p1/latin.py": b"# \xe9\n"})
    (tmp_path / "p1" / "self").symlink_to(tmp_path / "p1")
    found = source.texts(NOWHERE)
    assert len(problems_of(found)) == 60
    assert found.notes == ("left out, no text in the encoding they declare: p1/latin.py",)
    (tmp_path / "p1" / "gone.py").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"gone\.py links to"):
        source.texts(NOWHERE)


@pytest.mark.parametrize(
    ("folder", "message"),
    [("empty", "0 files of source code in .*too few to split"), ("missing", "looked in")],
)
def test_a_folder_without_packages_says_what_to_do(tmp_path, folder, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"(?s){message}.*data=stdlib"):
        SitePackages(path=str(tmp_path / folder)).texts(NOWHERE)


def test_the_packages_of_this_python_are_found():
    found = SitePackages(packages=("pytest", "pluggy"), max_bytes=100_000).texts(NOWHERE)
    assert "2 packages" in found.origin


def test_tiny_shakespeare_holds_out_its_last_tenth_and_a_byte_is_a_character(tmp_path):
    (tmp_path / "shakespeare_char").mkdir()
    file = tmp_path / "shakespeare_char" / "input.txt"
    file.write_text("".join(f"Line {i}.\n" for i in range(100)))
    corpus = TinyShakespeare().load(Places(tmp_path, tmp_path / "cache"))
    text = file.read_text()
    assert corpus.decode(corpus.train) + corpus.decode(corpus.valid) == text
    assert (len(corpus.train), corpus.test) == (int(0.9 * len(text)), None)
    missing = f"looked in {tmp_path / 'none.txt'}. Name the file with data.path=FILE"
    with pytest.raises(DataError, match=re.escape(missing)):
        TinyShakespeare(path=str(tmp_path / "none.txt")).load(Places(None, tmp_path))


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "tinyshakespeare/input.txt"])
def test_tiny_shakespeare_is_found_under_its_usual_names_and_the_error_lists_them(tmp_path, name):
    places = Places(tmp_path, tmp_path)
    with pytest.raises(DataError, match=f"looked in .*{re.escape(str(tmp_path / name))}"):
        TinyShakespeare().texts(places)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("Line.\n" * 100)
    assert TinyShakespeare().texts(places).train == ["Line.\n" * 90]


def test_every_source_finds_its_path_in_the_data_folder(tmp_path):
    packages_in(tmp_path / "corpus")
    for split in SPLITS:
        (tmp_path / "corpus" / f"{split}.txt").write_text(f"Some {split}.\n" * 50)
    (tmp_path / "corpus" / "input.txt").write_text("Line.\n" * 100)
    places = Places(tmp_path, tmp_path / "cache")
    for source in (WikiText2, TinyShakespeare, SitePackages):
        found = source(path="corpus").texts(places)
        assert found == source(path=str(tmp_path / "corpus")).texts(NOWHERE)
        with pytest.raises(DataError, match=f"looked in none.*, {tmp_path / 'none'}"):
            source(path="none").texts(places)
        with pytest.raises(DataError, match=r"path of the data .* is empty: name a file or folder"):
            source(path="").texts(places)
