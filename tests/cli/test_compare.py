"""Runs of several folders side by side: paired, named apart, only read; refused where unfair."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support import fake_workers
from support.reported_study import begin, complete, edit, steady, write_run, write_study
from typer.testing import CliRunner

from attnlab.analysis.analysis import Analysis, analysis_of
from attnlab.analysis.compare_folders import read_folders
from attnlab.analysis.settings import shared_and_own
from attnlab.cli import app
from attnlab.cli.console import console, errors
from attnlab.record import TUNING_SEED, RunFolder, StudyRecord
from attnlab.reporting.files import compare, write_comparison
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.sentences import how_sure
from attnlab.reporting.terminal import TerminalReport

DATA = {"source": "toy", "origin": "here", "fingerprint": "aaaa", "tokenizer": {"kind": "bytes"}}
TRAIN = {"learning_rate": 3e-4, "steps": 1000, "batch_size": 4, "seq_len": 64}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two studies, written once and copied for each test."""
    folder = tmp_path_factory.mktemp("studies")
    alike(write_study(folder / "first", {"mha": steady(5.0, 1), "mla": steady(4.9, 2)}))
    alike(write_study(folder / "second", {"mha": steady(5.0, 1), "linear": steady(4.5, 3)}))
    return folder


@pytest.fixture
def first(tmp_path, written):
    return Path(shutil.copytree(written / "first", tmp_path / "first"))


@pytest.fixture
def second(tmp_path, written):
    return Path(shutil.copytree(written / "second", tmp_path / "second"))


def alike(study: Path, data=None, train=None, summary=None) -> Path:
    """Give all runs the settings on which fairness depends, with what the test changes."""
    for run in study.glob("*/seed-*"):
        edit(run / "environment.json", data=DATA | (data or {}))
        edit(run / "config.json", train=TRAIN | (train or {}))
        (run / "metrics.jsonl").write_text('{"step": 1000, "eval_loss": 5.0}\n')
        edit(run / "summary.json", **{"device": "cpu", **(summary or {})})
    return study


def side_by_side(*folders: Path, out: Path | None = None, **more) -> Analysis:
    out = out or folders[0].parent / "out"
    return analysis_of(read_folders(folders, out=out, command="attnlab compare", **more))


def shown(analysis: Analysis) -> dict[str, str]:
    screen = Console(width=200, file=io.StringIO(), color_system=None)
    screen.print(TerminalReport(analysis))
    return {
        "page": page(analysis),
        "report.md": markdown(analysis, None),
        "terminal": screen.file.getvalue(),
    }


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_studies_are_one_table_paired_by_seed_with_a_winner(first, second):
    found = side_by_side(first, second)
    assert found.order == ("linear", "mla", "first/mha", "second/mha")
    assert found.seeds == (0, 1, 2, 3, 4)
    assert found.headline[0].startswith("At this recipe, linear predicts this text best: 4.500")
    assert found.to_best["mla"].mean == pytest.approx(0.4)
    assert set(found.runs.values()) == {5}
    assert found.table.study.question == "Comparison of first/mha, mla, second/mha and linear"


def test_the_same_function_of_two_studies_ties(first, second):
    found = side_by_side(first, second)
    (control,) = found.controls
    assert control.names == ("first/mha", "second/mha")
    assert control.ties
    assert found.letters["first/mha"] == found.letters["second/mha"]


def test_variants_and_single_runs_stand_beside_studies(first, second):
    of_runs = side_by_side(first / "mla" / "seed-1", first / "mla" / "seed-3", second / "linear")
    assert of_runs.order == ("linear", "mla")
    assert of_runs.runs == {"linear": 5, "mla": 2}
    assert of_runs.letters == {"linear": ("a",), "mla": ("b",)}
    assert of_runs.baseline == "mla"


def test_one_seed_gives_no_verdict(first, second, empty_charts):
    found = side_by_side(first / "mla" / "seed-1", second / "linear" / "seed-1")
    assert not found.letters
    for text in shown(found).values():
        assert "linear has the lowest loss" in text
        assert "that is no verdict" in text
        assert "One seed per variant: no intervals." in text
    uneven = side_by_side(first / "mla", second / "linear" / "seed-1")
    assert how_sure(uneven).startswith("No verdict. "), "no run of a comparison is to come"


def test_names_grow_until_they_differ(tmp_path):
    folders = [tmp_path / end for end in ("a/runs/mha", "b/runs/mha", "b/other/mha", "b/mla")]
    for folder in folders:
        write_study(folder.parent, {folder.name: steady(5.0)})
    found = side_by_side(*folders, out=tmp_path / "out")
    assert [variant.name for variant in found.table.variants] == [
        *("a/runs/mha", "b/runs/mha", "other/mha", "mla")
    ]


def test_a_diverged_run_is_left_out_as_in_a_study(first, tmp_path):
    other = alike(write_study(tmp_path / "other", {"wild": [4.0, "loss is nan", 4.0]}))
    found = side_by_side(first, other)
    assert "wild" not in found.order
    assert "loss is nan" in found.left_out["wild"]


@pytest.mark.parametrize(
    ("differing", "said"),
    [
        (
            {"data": {"fingerprint": "bbbb"}},
            "data: toy aaaa in {first}; toy bbbb in {second}",
        ),
        (
            {"data": {"tokenizer": {"kind": "bpe", "vocab_size": 512}}},
            "tokenizer: bytes in {first}; bpe(vocab_size=512) in {second}",
        ),
        ({"train": {"steps": 300}}, "training steps: 1000 in {first}; 300 in {second}"),
        ({"train": {"batch_size": 8}}, "sequences/step: 4 in {first}; 8 in {second}"),
        ({"train": {"seq_len": 32}}, "tokens/sequence: 64 in {first}; 32 in {second}"),
        (
            {"summary": {"test_loss": 4.0}},
            "measured on: validation in {first}; validation and test in {second}",
        ),
    ],
    ids=["data", "tokenizer", "steps", "batch", "length", "split"],
)
def test_what_is_not_alike_is_named_with_who_has_what(first, second, differing, said, empty_charts):
    alike(second, **differing)
    found = side_by_side(first, second)
    said = said.format(first=first, second=second)
    assert found.table.unfair == (said,)
    for name, text in shown(found).items():
        read = text.partition("<header>")[2] or text  # what is read first, on the page
        assert read.index("Not a fair comparison") < read.index(found.headline[0][:30]), name
        assert " ".join(said.split()) in " ".join(text.split()), name


def test_losses_per_token_of_two_tokenizers_are_never_compared(first, second, tmp_path):
    alike(second, data={"tokenizer": {"kind": "bpe", "vocab_size": 512}})
    with pytest.raises(ValueError, match="different tokenizers") as refused:
        compare(first, second, out=tmp_path / "out", anyway=True)
    assert "final_bits_per_byte" in str(refused.value)


def test_one_variant_of_a_study_that_differs_is_named_alone(first, second):
    for seed in range(5):
        edit(second / "mha" / f"seed-{seed}" / "config.json", train={"steps": 10})
    (steps, *_) = [line for line in side_by_side(first, second).table.unfair if "steps" in line]
    assert steps == f"training steps: 1000 in {first} and linear; 10 in second/mha"


def test_a_record_from_before_there_was_a_setting_is_of_the_same_function(first, second):
    alike(second, train={"keep": "none", "extends": None})
    found = side_by_side(first, second)
    assert [control.names for control in found.controls] == [("first/mha", "second/mha")]
    shared, own = shared_and_own({one.name: one.config for one in found.table.variants})
    assert shared["train.extends"] is None
    assert own["first/mha"].keys() == {"model.mechanisms"}


def test_the_same_settings_on_other_data_are_another_function(first, second):
    alike(second, data={"fingerprint": "bbbb"})
    assert not side_by_side(first, second).controls


def test_other_differences_are_shown_and_not_refused(first, second, empty_charts):
    alike(second, data={"origin": "elsewhere"}, train={"learning_rate": 1e-3})
    found = side_by_side(first, second)
    assert not found.table.unfair
    for name in ("page", "report.md"):
        text = shown(found)[name]
        assert "Not a fair comparison" not in text
        assert "0.001" in text
        assert f"elsewhere ({second})" in text


def test_times_of_different_devices_are_no_comparison(first, second, empty_charts):
    alike(first, summary={"step_time": 0.002, "flops_per_token": 5})
    alike(second, summary={"step_time": 0.001, "flops_per_token": 5, "device": "NVIDIA H200"})
    found = side_by_side(first, second)
    assert [front.key for front in found.fronts] == ["flops_per_token"]
    (fast,) = [pick for pick in found.picks if "training speed first" in pick.use_cases]
    assert fast.variant is None
    for name, text in shown(found).items():
        said = f"not comparable: {first} on cpu; {second} on NVIDIA H200"
        assert said in " ".join(text.split()), name

    alike(second, summary={"device": "cpu"})
    found = side_by_side(first, second)
    assert [front.key for front in found.fronts] == ["flops_per_token", "step_time"]
    assert "not comparable" not in page(found)


def test_curves_stand_against_steps_tokens_and_time(first, second):
    """Where a step reads as many tokens for all, they are a second scale of the steps."""
    for study in (first, second):
        alike(study, summary={"steps": 1000, "tokens": 256_000})
        for metrics in study.glob("*/seed-*/metrics.jsonl"):
            lines = ({"step": s, "eval_loss": 5.0, "train_seconds": s / 9} for s in (500, 1000))
            metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    forms, words = _curves(page(side_by_side(first, second)))
    assert forms == {"step", "time"}
    assert words == ["steps and tokens", "time"]

    alike(second, train={"batch_size": 8}, summary={"steps": 1000, "tokens": 512_000})
    read = page(side_by_side(first, second))
    forms, words = _curves(read)
    assert forms == {"step", "tokens", "time"}
    assert words == ["steps", "tokens", "time"]
    (drawn,) = re.findall(r'<div class="form tokens linear">(.*?)</div>', read, re.DOTALL)
    assert "500k" in drawn  # where the second ends; the first, half way there


def _curves(read: str) -> tuple[set[str], list[str]]:
    """What the page's curves are drawn against, and what its switch offers."""
    forms = set(re.findall(r'<div class="form (\w+) (?:linear|log)">', read))
    switch = read.partition("Curves against")[2].partition("</fieldset>")[0]
    return forms, [w.strip() for w in re.findall(r">([^<>]+)</label>", switch)]


def test_a_margin_and_the_checks_are_those_of_the_studies(first, second):
    edit(second / "study.json", margin=0.002, checked=True)
    found = side_by_side(first, second)
    assert found.margin == 0.002
    assert not found.table.study.checked
    assert found.table.study.command.splitlines() == [
        *("attnlab run first", "attnlab run second", "attnlab compare")
    ]


def test_tuned_learning_rates_are_those_of_the_variants(first, second):
    write_run(RunFolder(second, "linear", TUNING_SEED, recipe="lr-0.0003"), 5.0)
    assert side_by_side(first, second).rates.keys() == {"linear"}


@pytest.fixture
def attnlab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for printer in (console, errors):
        monkeypatch.setattr(printer, "width", 160)

    def call(*arguments: str):
        return CliRunner().invoke(app, ["compare", *arguments])

    return call


def test_the_command_writes_a_report_of_its_own_and_nothing_else(attnlab, tmp_path, monkeypatch):
    fake_workers.draw_nothing(monkeypatch)
    complete(tmp_path / "a")
    complete(tmp_path / "b")
    begin(tmp_path / "b", "late", 7)
    before = contents(tmp_path)
    done = attnlab("a", "b", "--baseline", "b/mha")
    assert done.exit_code == 0, done.output
    assert "Δ b/mha" in done.output
    assert "Report: results/compare/report.html" in done.output
    out = Path("results/compare")
    assert sorted(path.name for path in out.iterdir()) == [
        *("comparison.png", "comparison.svg", "comparison_loss.pdf"),
        *("comprehensive_results.json", "failures.json"),
        *("report.html", "report.md", "table.csv", "table.tex"),
    ]
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert {path.parent for path in after.keys() - before.keys()} == {tmp_path / out}
    results = json.loads((out / "comprehensive_results.json").read_text())
    assert results["a/mha"]["folder"] == str(tmp_path / "a" / "mha")


def test_unfair_is_refused_unless_asked_for(attnlab, first, second, monkeypatch):
    alike(second, train={"steps": 300})
    refused = attnlab("first", "second", "--out", "out")
    assert refused.exit_code == 2
    assert "training steps: 1000 in first; 300 in second" in refused.stderr
    assert "--anyway" in refused.stderr
    assert not Path("out").exists()

    fake_workers.draw_nothing(monkeypatch, page=True)
    made = attnlab("first", "second", "--out", "out", "--anyway", "--json")
    assert made.exit_code == 0
    assert "training steps: 1000 in first; 300 in second" in made.stderr
    assert json.loads(made.stdout)["linear"]["rank"] == 1
    for name in ("report.html", "report.md", "table.tex"):
        assert "training steps: 1000 in first; 300 in second" in (Path("out") / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("first", "nowhere"), "nowhere holds no run: give the folder of a study"),
        (("first", "first/mla/seed-9"), "first/mla/seed-9 holds no run"),
        (("first", "planned"), "planned holds no run"),
        (("first", "./first"), "hold the same run"),
        (("first", "first/mla/seed-0"), "first and first/mla/seed-0 hold the same run"),
        (("first/mla",), "nothing to compare it with"),
        (("first/mla/seed-0", "first/mla/seed-1"), "nothing to compare it with"),
        (("first", "second", "--baseline", "mla_2"), "no variant 'mla_2'; did you mean 'mla'?"),
        (("first", "second", "--out", "first/here"), "--out first/here lies in first"),
        (("first", "second/mha", "--out", "second"), "--out second is a study's folder"),
    ],
)
def test_what_cannot_be_compared_is_said_and_nothing_written(
    attnlab, first, second, arguments, message
):
    StudyRecord(
        name="planned",
        question="",
        baseline=None,
        variants=("mha",),
        seeds=(0,),
        command="",
        attnlab_version="",
    ).write(Path("planned"))
    before = contents(Path())
    done = attnlab(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert contents(Path()) == before


def test_a_report_made_again_is_the_same(first, second, tmp_path, monkeypatch):
    fake_workers.draw_nothing(monkeypatch, page=True)
    found = side_by_side(first, second)
    write_comparison(found)
    before = contents(tmp_path / "out")
    write_comparison(side_by_side(first, second))
    assert contents(tmp_path / "out") == before
