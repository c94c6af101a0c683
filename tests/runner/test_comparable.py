"""Nothing is trained into a folder whose other runs it cannot be compared with."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import fake_workers, tiny_study

import attnlab
from attnlab.analysis.analysis import analyse
from attnlab.config import override
from attnlab.data import Places
from attnlab.data.stdlib import Stdlib
from attnlab.record import RunFolder, pack
from attnlab.reporting.pages import markdown
from attnlab.reporting.sentences import facts, how_sure
from attnlab.runner import plan
from attnlab.runner.comparable import of_run, unlike_others
from attnlab.runner.events import Started
from attnlab.runner.request import Request
from attnlab.study.study import Study

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
