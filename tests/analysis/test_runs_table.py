"""The tidy table of results has a row per run, the same from folders and from a packed study."""

import csv
import io
import math
import warnings

import pytest
from support.written_study import write_run, write_study

from attnlab.analysis.runs_table import load_results
from attnlab.record import TUNING_SEED, RunFolder, pack
from attnlab.reporting.files import write_report
from attnlab.reporting.tables.data_files import runs_csv


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
