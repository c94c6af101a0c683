"""A request applies its options to the study, once, and names its folders and devices.

Nothing is trained into a folder whose other runs it cannot be compared with.
"""

import functools
import multiprocessing
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, fake_workers, tiny_study

import attnlab
from attnlab.analysis.analysis import analyse
from attnlab.checks import suite
from attnlab.config import ConfigError, override
from attnlab.data import Places
from attnlab.data.stdlib import Stdlib
from attnlab.device.machine import Slot
from attnlab.mechanisms.identity import Identity
from attnlab.record import RunFolder, pack
from attnlab.reporting.pages import markdown
from attnlab.reporting.sentences import facts, how_sure
from attnlab.runner import plan
from attnlab.runner import run as running
from attnlab.runner.comparable import of_run, unlike_others
from attnlab.runner.events import Started
from attnlab.runner.processes import require_processes
from attnlab.runner.request import Request
from attnlab.study.study import Study
from attnlab.study.targets import load_study, shipped_names
from attnlab.study.variants import notes_on_data, read_data
from attnlab.training.config import Tuning

FORK = multiprocessing.get_context("fork")
TUNED = fake_workers.TUNED


def test_without_options_the_study_is_as_it_is():
    assert Request(study=TUNED).apply_options() is TUNED


def test_all_options_change_the_study():
    request = Request(
        study=TUNED,
        only="mha, mqa",
        seeds=5,
        steps=20,
        overrides=iter(["train.warmup_steps=3"]),
        tune=False,
    )
    study = request.apply_options()
    assert study == request.apply_options()
    assert (list(study.variants), study.seeds, study.tuning) == (["mha", "mqa"], 5, None)
    assert {(c.train.steps, c.train.warmup_steps) for c in study.variants.values()} == {(20, 3)}


def test_a_study_is_tuned_as_it_says_or_as_the_call_says():
    plain = replace(TUNED, tuning=None)
    assert Request(study=TUNED, tune=True).apply_options().tuning == TUNED.tuning != Tuning()
    assert Request(study=plain).apply_options().tuning is None
    assert Request(study=plain, tune=True).apply_options().tuning == Tuning()
    assert (
        Request(study=replace(plain, name="p"), tune=True).call() == "attnlab.run('p', tune=True)"
    )


def test_a_study_has_a_name_a_path_and_lengths():
    assert Request(study="fair_search", length="medium").apply_options().name == (
        "fair_search_medium"
    )
    loaded = Request(study=Path(tiny_study.__file__), only=iter(["mha"])).apply_options()
    added = Request(study=TUNED, add="mine=identity", only="mha").apply_options()
    assert list(added.variants) == ["mha", "mine"]
    assert (loaded.name, list(loaded.variants)) == ("tiny_study", ["mha"])
    with pytest.raises(ValueError, match="no study 'quikstart'; did you mean 'quickstart'"):
        Request(study="quikstart").apply_options()
    with pytest.raises(ConfigError, match="no variant 'mhx'; did you mean 'mha'"):
        Request(study=TUNED, only=["mhx"]).apply_options()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": "x"}, "seeds: expected a whole number, got 'x'"),
        ({"seeds": True}, "seeds: expected a whole number, got True"),
        (
            {"only": 5, "track": 5},
            "only: expected a list or text, got 5\ntrack: expected a list, got 5",
        ),
        ({"overrides": 5}, "overrides: expected a list, got 5"),
        ({"out": 5}, "out: expected a path or text, got 5"),
        ({"tune": "yes"}, "tune: expected True or False, got 'yes'"),
        ({"steps": 1.5}, "steps: expected a whole number, got 1.5"),
        ({"device": None}, "device: expected text, got None"),
        ({"only": ["mha", 5]}, "only: expected text, got 5"),
        ({"cache": "a\0b"}, r"cache: a path has no zero byte, got 'a\x00b'"),
        ({"study": 5}, "study: expected a Study or a path or text, got 5"),
    ],
)
def test_an_argument_of_another_type_is_named(options, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Request(**{"study": "quickstart", **options})


def test_an_unknown_argument_suggests_another():
    for function in (attnlab.run, attnlab.plan):
        with pytest.raises(TypeError, match=r"^no argument 'sedds'; did you mean 'seeds'"):
            function("quickstart", sedds=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"add": ["a=mla", "a=identity"]}, "add.a: two mechanisms have this name"),
        ({"add": ["mla", "mla:n_heads=2"]}, "add.mla: two mechanisms have this name"),
        (
            {"steps": 30, "sweep": ["train.steps=10,20"], "tune": False},
            "sweep.train.steps: 30 is given, too, and not among 10, 20; drop it",
        ),
    ],
)
def test_what_is_given_twice_is_refused(options, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        Request(study=TUNED, **options).apply_options()


def test_swept_values_are_numbers_of_any_library_and_no_objects():
    widths = {"model.d_model": np.array([8, 16]), "train.steps": [np.int64(4), 8]}
    assert len(Request(study=TUNED, sweep=widths, tune=False).apply_options().variants) == 12
    message = r"sweep.model.mechanisms: expected text, a number or JSON, got Identity\(\)"
    with pytest.raises(ConfigError, match=message):
        Request(study=TUNED, sweep={"model.mechanisms": [Identity(), "mla"]}).apply_options()


def test_a_swept_setting_may_begin_at_one_of_its_values():
    options = {"steps": 20, "sweep": {"train.steps": [10, 20]}, "tune": False}
    swept = Request(study=TUNED, **options).apply_options()
    assert {config.train.steps for config in swept.variants.values()} == {10, 20}


def test_a_number_may_be_that_of_another_library():
    study = Request(study=TUNED, seeds=np.int64(2), workers=np.int64(1)).apply_options()
    assert replace(study, margin=np.float32(0.5), most_seeds=np.int32(3)).seeds == 2


def test_one_assignment_needs_no_list():
    study = Request(study=TUNED, overrides="train.steps=20").apply_options()
    assert {run.train.steps for run in study.variants.values()} == {20}


def test_the_results_are_in_the_folder_that_is_named():
    assert Request(study=TUNED, out="here").study_dir(TUNED) == Path("here")
    assert Request(study=TUNED).study_dir(replace(TUNED, name="mine")) == Path("results/mine")
    with pytest.raises(ValueError, match="the study has no name"):
        Request(study=TUNED).study_dir(TUNED)


@pytest.mark.parametrize("name", ["report.md", "comparison.png", "mha/config.json", "bench.json"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_run(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    place = Path("results/mine") / name
    place.mkdir(parents=True)
    for out in (None, "results/mine"):
        with pytest.raises(ValueError, match=f"{place} is a folder, and a file .* move it away"):
            Request(study=TUNED, out=out).study_dir(replace(TUNED, name="mine"))


def test_no_command_writes_to_the_published_results_by_default():
    for name in shipped_names():
        study = load_study(name)
        assert Request(study=study).study_dir(study) == Path("results") / name
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "/results/" in ignored
    assert not any(line.startswith("!") for line in ignored)
    assert (ROOT / "published/mechanisms/runs.jsonl.gz").is_file()


def test_there_are_no_more_workers_than_runs():
    alone = replace(TUNED.only(["mha"]), seeds=1, tuning=None)
    (slot,) = Request(study=alone, device="cpu").slots(alone)
    assert slot.devices == ("cpu",)
    assert Request(study=TUNED, device="cpu", workers=1).slots(TUNED) == [slot]
    assert isinstance(slot, Slot)


def test_the_results_so_far_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    now, written = [0.0], []

    def write(study_dir: Path) -> None:
        written.append(now[0])
        now[0] += 10

    monkeypatch.setattr(running.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(running, "write_results", write)
    results = running.ResultsSoFar()
    for _ in range(5000):  # a run ends every second
        now[0] += 1
        results.update(tmp_path)
    assert 10 * len(written) <= 0.015 * now[0]
    assert len(written) > 3


def test_the_call_names_what_was_given():
    assert Request(study="quickstart").call() == "attnlab.run('quickstart')"
    request = Request(study="a.py", only=("x", "y"), seeds=1, overrides=["train.steps=2"])
    assert request.call() == (
        "attnlab.run('a.py', only=['x', 'y'], seeds=1, overrides=['train.steps=2'])"
    )


def passages(start, n=60):
    return "".join(
        f"Passage {i}: {i * 7919 % 1000} foxes and {i * 31 % 97} dogs.\n"
        for i in range(start, start + n)
    )


def edited(text, every):
    return "".join(f"{text[at : at + every]}*" for at in range(0, len(text), every))


TRAIN, OTHER = passages(0), passages(1000)
SHORT_LINES = "".join(f'{{"text": "line {i}"}}\n' for i in range(99))
SAID = [  # contents of train, valid and test, and the note on them
    ((TRAIN, TRAIN, OTHER), "100% of the valid split is also in the training split"),
    ((TRAIN, OTHER, TRAIN), "100% of the test split is also in the training split"),
    ((TRAIN + OTHER, passages(2000), OTHER), "100% of the test split is also in the training"),
    ((TRAIN, OTHER + TRAIN[:1000], passages(3000)), "[23].% of the valid split is also in"),
    (("a" * 90_000, "a" * 90_000, OTHER), "100% of the valid split is also in the training split"),
    (
        ("a line\n" * 9_000, "a line\n" * 900 + OTHER, passages(3000)),
        "[67].% of the valid split is",
    ),
    ((TRAIN, TRAIN[200:300], passages(3000)), "100% of the valid split is also in the training"),
    ((TRAIN, edited(TRAIN, 300), passages(3000)), "[56].% of the valid split is also in the train"),
    ((TRAIN, OTHER, OTHER), "the test split is the validation split"),
    (
        (TRAIN, OTHER, "short"),
        "the test split has 5 tokens, less than one window of train.seq_len=32",
    ),
    (
        (TRAIN.replace("\n", "\r\n"), OTHER, "a\n" * 99),
        "train.txt: lines end in CRLF, which is kept",
    ),
]


def read(folder, texts, *settings, ending="txt"):
    for split, text in zip(("train", "valid", "test"), texts, strict=True):
        (folder / f"{split}.{ending}").write_bytes(text.encode())
    data = ["data=text", f"data.paths={folder}", "data.tokenizer=bytes"]
    study = tiny_study.study.override([*data, *settings])
    found = read_data(study, Places(None, folder / "cache"))
    return notes_on_data(study, found)


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ({"seeds": 4}, (4, None)),
        ({"seeds": 4, "until": "decided"}, (4, 10)),
        ({"seeds": 12, "until": "decided"}, (12, 12)),
        ({"seeds": 2, "until": "decided", "most_seeds": 5}, (2, 5)),
        ({"until": "found"}, "until: unknown 'found'; use decided"),
        ({"most_seeds": 5}, "most_seeds: only with until decided"),
        ({"seeds": 4, "until": "decided", "most_seeds": 3}, "most_seeds: must be at least the 4"),
    ],
)
def test_seeds_are_fixed_or_added_until_decided(options, seeds):
    request = Request(study=TUNED, **options)
    if isinstance(seeds, str):
        with pytest.raises(ValueError, match=seeds):
            request.apply_options()
    else:
        study = request.apply_options()
        assert (study.seeds, study.most_seeds) == seeds


@pytest.mark.parametrize(("texts", "note"), SAID, ids=range(len(SAID)))
def test_what_a_user_should_know_of_the_data_is_said_once(tmp_path, texts, note):
    (said,) = read(tmp_path, texts)
    assert re.search(note, said)


def test_documents_that_are_also_for_training_are_found_however_short(tmp_path):
    lines = SHORT_LINES.splitlines(keepends=True)
    shuffled = "".join(sorted(lines, key=lambda line: line[::-1]))
    notes = read(tmp_path, (SHORT_LINES, shuffled, '{"text": "no"}\n' * 40), ending="jsonl")
    assert [note[:25] for note in notes] == ["100% of the valid split i"]


def test_nothing_is_said_of_text_that_is_as_it_should_be(tmp_path):
    assert read(tmp_path, (TRAIN, OTHER, passages(2000))) == []


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (
            ("hello world", OTHER, OTHER),
            "train.seq_len: a window of 32 needs 33 tokens, but the training split has 11: set "
            "train.seq_len=10 or less, or use more text",
        ),
        (("hello", "you", "all"), "data: a window of 32 .* the whole corpus has 11: use more text"),
        (("x", OTHER, OTHER), "data: the train split has one token, and needs more: use more text"),
        ((TRAIN, "x", OTHER), "data: the valid split has one token"),
        ((TRAIN, OTHER, "x"), "data: the test split has one token"),
    ],
)
def test_a_split_without_a_window_is_one_error_for_all_runs(tmp_path, texts, words):
    with pytest.raises(ConfigError, match=words) as error:
        read(tmp_path, texts)
    assert len(error.value.problems) == 1


def in_a_pool(results):
    """Send what a worker of `multiprocessing.Pool` can do: check, and start processes."""
    results.send(
        [result.name for result in suite.check_properties("identity", quick=True, isolated=True)]
    )
    require_processes()
    child = FORK.Process(target=results.send, args=("from a child",), daemon=True)
    child.start()
    child.join()


def test_a_worker_of_a_pool_checks_and_runs(monkeypatch):
    monkeypatch.setattr(suite, "PROPERTIES", suite.PROPERTIES[:1])
    received, results = FORK.Pipe(duplex=False)
    worker = FORK.Process(target=in_a_pool, args=(results,), daemon=True)
    worker.start()
    results.close()
    assert received.recv() == [suite.PROPERTIES[0].name]
    assert received.recv() == "from a child"
    worker.join()


def test_a_script_that_a_process_imports_is_told_what_to_write(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(RuntimeError, match='under `if __name__ == "__main__":`'):
        running.run("quickstart")


STUDY = replace(tiny_study.study, name="tiny")
FOLDER = Path("results/tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A folder for derived files; each corpus is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stdlib, "load", functools.cache(Stdlib.load))
        yield tmp_path_factory.mktemp("cache")


@pytest.fixture
def asks(tmp_path, cache, monkeypatch):
    """Ask for a study up to the start of its first run: return None, or why it is refused."""
    monkeypatch.chdir(tmp_path)

    class BegunError(Exception):
        pass

    def stop(event: object) -> None:
        if isinstance(event, Started):
            raise BegunError

    def ask(study: Study, **options):
        try:
            attnlab.run(study, device="cpu", check=False, cache=cache, watch=stop, **options)
        except BegunError:
            return None
        except ValueError as error:
            return str(error)

    return ask


def ended(cache, *assignments, study=STUDY, variant="mha", seed=0):
    """Write a run as a worker leaves it, without training; return its folder."""
    run = study.override(assignments).verdict_run(variant, seed)
    corpus = run.config.data.load(Places.from_environment(cache=cache))
    folder = run.folder(FOLDER)
    data = dict(corpus.description) | {"fingerprint": corpus.fingerprint}
    identity = run.config.identity(corpus.fingerprint)
    folder.open(run.config.to_dict() | {"identity": identity}, {"data": data})
    folder.finish({"status": "finished", "final_loss": 5.0, "test_loss": 5.0})
    study.record(command="", checked=False).write(FOLDER)
    return folder


DIFFERENT = {
    "train.steps=200": "training steps: 200 in mha; 12 in identity (requested)",
    "train.batch_size=3": "sequences/step: 3 in mha; 2 in identity (requested)",
    "train.seq_len=64": "tokens/sequence: 64 in mha; 32 in identity (requested)",
    "data.max_bytes=120000": "data: stdlib ",
}


@pytest.mark.parametrize("changed", DIFFERENT)
def test_another_variant_of_the_folder_refuses_what_it_cannot_be_compared_with(
    asks, cache, changed
):
    ended(cache, changed)
    if "steps" in changed:
        pack(FOLDER)
    refused = asks(STUDY, only="identity")
    assert refused is not None
    assert DIFFERENT[changed] in refused
    assert "nothing was run" in refused
    assert "choose another --out, or use --anyway" in refused
    assert not (FOLDER / "identity").exists()
    assert asks(STUDY, only="identity", anyway=True) is None
    assert asks(STUDY, only="identity", overrides=[changed]) is None


def test_the_seeds_that_are_not_requested_count_too(asks, cache):
    ended(cache, "train.steps=200", seed=3)
    assert "training steps: 200 in mha; 12 in mha (requested)" in asks(STUDY, only="mha")


def test_runs_that_were_never_started_or_are_alike_do_not_matter(asks, cache):
    ended(cache, "train.learning_rate=0.5", "model.d_model=32", "train.keep=none")
    assert asks(STUDY, only="identity") is None


def test_a_study_with_all_runs_done_is_reported_whatever_lies_beside_it(asks, cache):
    ended(cache, "train.steps=200")
    ended(cache, variant="identity")
    assert asks(STUDY, only="identity", seeds=1) is None
    assert "training steps" in analyse(FOLDER).table.unfair[0]


def test_what_the_variants_of_the_study_differ_in_is_its_subject(asks, cache):
    longer = override(tiny_study.base, ["train.steps=24"])
    study = replace(STUDY, variants={**STUDY.variants, "longer": longer})
    ended(cache, study=study, variant="longer")
    assert asks(study, only="identity") is None
    ended(cache, "train.batch_size=3", study=study, variant="longer", seed=1)
    refused = asks(study, only="identity")
    assert "sequences/step" in refused
    assert "training steps" not in refused


def differing(**overrides):
    """A study whose variants short and twin differ from long by design."""
    (setting, value), *_ = overrides.items()
    other = override(tiny_study.base, [f"{setting.replace('__', '.')}={value}"])
    variants = {"short": tiny_study.base, "twin": tiny_study.base, "long": other}
    return replace(STUDY, variants=variants, baseline="short")


def test_a_mix_by_accident_is_refused_although_the_study_has_one_by_design(asks, cache):
    study = differing(train__steps=24)
    ended(cache, study=study, variant="long")
    ended(cache, study=study, variant="twin")
    assert asks(study, only="short") is None
    ended(cache, "train.steps=24", study=study, variant="twin", seed=1)
    refused = asks(study, only="short")
    assert re.search(r"training steps: .*24 in long and twin", refused), refused
    other = replace(study, variants={**study.variants, "fourth": tiny_study.base}).only(["short"])
    ended(cache, "train.steps=7", study=replace(STUDY, name="other"), variant="mqa")
    assert "7 in mqa" in asks(other)


def test_variants_on_two_texts_by_design_are_shown_and_not_compared(asks, cache):
    study = differing(data__max_bytes=120_000)
    for variant in study.variants:
        for seed in range(2):
            ended(cache, study=study, variant=variant, seed=seed)
    assert asks(study, only="long", seeds=3) is None
    analysis = analyse(FOLDER)
    assert analysis.table.unfair == ()
    assert analysis.table.by_design[0].startswith("data: stdlib ")
    assert sorted(analysis.order) == ["short", "twin"]
    assert "by design its data is not that of short" in analysis.left_out["long"]
    for text in (markdown(analysis, None), how_sure(analysis)):
        assert "By design the variants differ in data: stdlib" in text
        assert "fair" not in text.lower()
    assert "share batches" not in facts(analysis)["Seeds"]
    ended(cache, "data.max_bytes=130000", study=study, variant="twin", seed=2)
    assert "data: stdlib" in analyse(FOLDER).table.unfair[0]
    refused = asks(study, only="short", seeds=4)
    assert "data: stdlib" in refused


def test_variants_with_other_steps_by_design_are_compared_and_it_is_said(asks, cache):
    study = differing(train__steps=24)
    for variant in study.variants:
        for seed in range(2):
            ended(cache, study=study, variant=variant, seed=seed)
    analysis = analyse(FOLDER)
    assert sorted(analysis.order) == sorted(study.variants)
    text = markdown(analysis, None)
    said = "By design the variants differ in training steps: 12 in short and twin; 24 in long."
    assert said in text
    assert "fair" not in text.lower()


def test_the_plan_refuses_what_the_run_refuses(asks, cache, monkeypatch):
    monkeypatch.setattr(plan, "TrialProcess", fake_workers.trial_here)
    ended(cache, "train.steps=200")
    with pytest.raises(ValueError, match="training steps: 200 in mha; 12 in identity"):
        attnlab.plan(STUDY, only="identity", device="cpu", cache=cache)


def test_the_splits_are_compared(tmp_path, cache):
    corpus = tiny_study.base.data.load(Places.from_environment(cache=cache))
    requested = {"mha": of_run(tiny_study.base, replace(corpus, test=None))}
    record = STUDY.only(["mha"]).record(command="", checked=False)
    folder = RunFolder(tmp_path, "mqa", 0)
    data = dict(corpus.description) | {"fingerprint": corpus.fingerprint}
    folder.open(tiny_study.base.to_dict() | {"identity": "x"}, {"data": data})
    assert unlike_others(requested, record, tmp_path) == ()
    folder.finish({"status": "finished", "final_loss": 5.0, "test_loss": 5.0})
    assert unlike_others(requested, record, tmp_path) == (
        "measured on: validation and test in mqa; validation in mha (requested)",
    )


@pytest.mark.parametrize("order", [["identity", "mqa", "mha"], ["mqa", "mha", "identity"]])
def test_a_study_run_piecewise_keeps_its_declared_baseline(asks, order):
    for variant in order:
        asks(STUDY, only=variant)
        assert analyse(FOLDER).table.study.baseline == "mha"
    assert Request(study=STUDY, only="mqa").apply_options().baseline == "mha"
