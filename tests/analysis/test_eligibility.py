"""The tidy table of runs, and who is compared with which seeds: nothing is dropped silently."""

import csv
import io
import math
import random
import warnings

import pytest
from support.reported_study import steady, write_run, write_study

from attnlab.analysis.eligibility import eligible
from attnlab.analysis.runs_table import load_results
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.record import TUNING_SEED, RunFolder, pack
from attnlab.reporting.files import write_report
from attnlab.reporting.tables.data_files import runs_csv


def entered(folder, losses, **more):
    return eligible(read_table(write_study(folder, losses, **more)))


def test_a_variant_that_diverged_with_one_seed_is_out_with_its_reason(tmp_path):
    found = entered(tmp_path, {"mha": [5.0, 5.1, 5.2], "wild": [4.0, "loss is nan", 4.0]})
    assert found.left_out == {"wild": "diverged with seed 1 (of 3): loss is nan"}
    assert list(found.losses) == ["mha"]
    assert found.seeds == (0, 1, 2)


def test_an_alarm_keeps_a_variant_out(tmp_path):
    leak = {"alarms": ["the loss is below what the text allows"]}
    found = entered(tmp_path, {"mha": [5.0, 5.1], "leak": [1.0, 1.1]}, leak=leak)
    assert found.left_out == {
        "leak": "raised an alarm with seed 0: the loss is below what the text allows"
    }


def test_a_failed_run_takes_nothing_from_the_others(tmp_path):
    losses = {"mha": [5.0, 5.1, 5.2], "mla": [5.0, "failed: out of memory", 5.1]}
    found = entered(tmp_path, losses)
    assert (found.seeds, found.left_out) == ((0, 1, 2), {})
    assert found.incomplete == {"mla": 2}
    verdict = verdict_of(read_table(tmp_path))
    assert "mla 2 of 3; all finished runs count" in verdict.why
    assert verdict.means["mha"] == pytest.approx(5.1)
    assert verdict.runs == {"mha": 3, "mla": 2}


def test_a_study_under_way_is_compared_over_all_runs_that_have_finished(tmp_path):
    found = entered(tmp_path, {"mha": [5.0, 5.1, 5.2], "mla": [5.0, 5.1, None]})
    assert (len(found.losses["mha"]), len(found.losses["mla"])) == (3, 2)


def test_a_variant_with_one_seed_is_named_and_takes_no_verdict_from_the_others(tmp_path):
    losses = {"mha": [5.0, 5.1, 5.2], "late": [None, None, 5.1], "mla": [5.0, 5.1, 5.2]}
    found = entered(tmp_path, losses)
    assert found.seeds == (0, 1, 2)
    assert found.left_out == {"late": "finished 1 of 3 seeds; an error needs at least 2"}


def test_what_never_finished_is_named(tmp_path):
    losses = {"mha": [5.0, 5.1], "big": ["failed: out of memory"] * 2, "next": [None, None]}
    assert entered(tmp_path, losses).left_out == {
        "big": "failed with 2 of 2 seeds, and finished none: out of memory",
        "next": "no seed has finished",
    }


def test_variants_without_a_common_seed_are_compared_too(tmp_path):
    draw = random.Random(0)
    losses = {
        "mha": [draw.gauss(5.0, 0.01) for _ in range(3)] + [None, None],
        "mla": [draw.gauss(5.0, 0.01) for _ in range(3)] + [None, None],
        "other": [None, None, None, 6.0, 6.01],
    }
    verdict = verdict_of(read_table(write_study(tmp_path, losses)))
    assert not verdict.left_out
    assert verdict.method == "unpaired"
    assert verdict.pairs["other", "mha"].separable


def test_the_verdict_is_read_from_the_test_split_where_every_run_has_one(tmp_path):
    tested = {"test_loss": 6.0}
    losses = {"mha": [5.0, 5.1], "mla": [5.2, 5.3]}
    assert entered(tmp_path / "a", losses, mha=tested, mla=tested).metric == "test_loss"
    assert entered(tmp_path / "b", losses, mha=tested).metric == "final_loss"


@pytest.mark.parametrize("losses", [[None], ["loss is nan"], ["failed: no"]])
def test_a_study_with_nothing_to_compare_has_no_verdict(tmp_path, losses):
    verdict = verdict_of(read_table(write_study(tmp_path, {"mha": losses})))
    assert verdict.method == "none"
    assert verdict.order == ()
    assert list(verdict.left_out) == ["mha"]


def test_a_diverged_variant_does_not_change_what_is_said_of_the_others(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.1, 2), "gqa": steady(5.2, 3)}
    alone = verdict_of(read_table(write_study(tmp_path / "a", losses)))
    wild = losses | {"wild": [1.0, 1.0, "loss is nan", 1.0, 1.0]}
    beside = verdict_of(read_table(write_study(tmp_path / "b", wild)))
    assert beside.pairs == alone.pairs
    assert beside.letters == alone.letters


@pytest.mark.parametrize("baseline", ["a", "c"])
def test_two_seeds_of_some_leave_the_third_of_others_in(tmp_path, baseline):
    losses = {name: [5.0, 5.1, 5.2] for name in ("a", "b")} | {
        name: [5.0, 5.1, None] for name in ("c", "d", "e", "f")
    }
    found = entered(tmp_path, losses, baseline=baseline)
    assert {name: len(runs) for name, runs in found.losses.items()} == {
        **dict.fromkeys("ab", 3),
        **dict.fromkeys("cdef", 2),
    }
    assert not found.left_out


def test_a_variant_with_four_of_five_seeds_keeps_all_five_of_the_others(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": [*steady(5.1, 2)[:4], "failed: disk full"]}
    verdict = verdict_of(read_table(write_study(tmp_path, losses)))
    assert verdict.runs == {"mha": 5, "mla": 4}
    assert verdict.pairs["mla", "mha"].separable


@pytest.fixture
def study(tmp_path):
    folder = write_study(
        tmp_path / "toy",
        {"mha": [5.0, "loss is nan at step 7"], "=mqa": [5.2, None]},
        mha={"parameters": {"total": 10}, "attention_type": ["mha", "mha"], "by_step": [1.0, 2.0]},
    )
    tuning = RunFolder(folder, "mha", TUNING_SEED, recipe="lr-0.0006")
    write_run(tuning, 5.1, rate=6e-4, test_loss=math.inf)
    return folder


def test_every_run_that_has_begun_is_a_row_with_the_same_columns(study):
    rows = load_results(study)
    assert [(row["variant"], row["seed"], row["purpose"], row["status"]) for row in rows] == [
        ("mha", 0, "verdict", "finished"),
        ("mha", 1, "verdict", "diverged"),
        ("=mqa", 0, "verdict", "finished"),
        ("mha", TUNING_SEED, "tuning", "finished"),
    ]
    first, diverged, _, tuning = rows
    assert all(list(row) == list(first) for row in rows)
    assert (first["study"], first["final_loss"], first["mechanism"]) == ("toy", 5.0, "mha")
    assert (first["parameters.total"], first["device"]) == (10, "cpu")
    assert (diverged["final_loss"], diverged["reason"]) == (None, "loss is nan at step 7")
    assert (tuning["learning_rate"], tuning["train.learning_rate"]) == (6e-4, 6e-4)
    assert tuning["test_loss"] is None
    assert first["model.mechanisms"] == "mha"
    assert "by_step" not in first  # a curve is no cell


def test_a_packed_study_has_the_same_rows(study):
    rows = load_results(study)
    pack(study)
    assert load_results(study) == rows
    assert load_results(str(study)) == rows
    assert [row["seed"] for row in load_results(study / "mha")] == [0, 1, TUNING_SEED]
    assert [row["seed"] for row in load_results([study / "mha" / "seed-1"])] == [1]


def test_several_folders_are_one_table(study, tmp_path):
    other = write_study(tmp_path / "other", {"mla": [4.9]}, mla={"only_here": 1.5})
    rows = load_results([study, other])
    assert [row["study"] for row in rows] == ["toy"] * 4 + ["other"]
    assert [row["only_here"] for row in rows] == [None] * 4 + [1.5]
    with pytest.raises(ValueError, match="holds no run"):
        load_results(tmp_path / "nothing")


def test_a_report_writes_the_table_with_nothing_that_a_spreadsheet_would_execute(study):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runs without curves have an empty legend
        write_report(study)
    text = (study / "runs.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["variant"] for row in rows] == ["mha", "mha", "'=mqa", "mha"]
    assert [row["final_loss"] for row in rows] == ["5.0", "", "5.2", "5.1"]
    assert text == runs_csv(load_results(study))
    assert runs_csv([{"loss": -1.5, "text": "-1.5"}]) == "loss,text\n-1.5,'-1.5\n"
    assert runs_csv([]) == ""
