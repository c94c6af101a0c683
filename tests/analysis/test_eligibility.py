"""The tidy table of runs, and who is compared with whom: nothing is dropped silently.

Variants are compared within one text, and the orders on two texts by Kendall's tau.
"""

import csv
import io
import math
import random
import re
import warnings

import pytest
from support.reported_study import steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.eligibility import eligible
from attnlab.analysis.runs_table import load_results
from attnlab.analysis.table import read_table
from attnlab.analysis.texts import by_text
from attnlab.analysis.verdict import verdict_of
from attnlab.record import TUNING_SEED, RunFolder, pack
from attnlab.reporting.figures.comparison import _Panels
from attnlab.reporting.figures.page_charts import Charts
from attnlab.reporting.figures.styles import matplotlib_style
from attnlab.reporting.files import write_report
from attnlab.reporting.pages import forests, markdown
from attnlab.reporting.tables.data_files import csv_table, results, runs_csv


def entered(folder, losses, **more):
    return eligible(read_table(write_study(folder, losses, **more)))


def test_a_variant_that_diverged_with_one_seed_is_out_with_its_reason(tmp_path):
    found = entered(tmp_path, {"mha": [5.0, 5.1, 5.2], "wild": [4.0, "loss is nan", 4.0]})
    assert found.left_out == {"wild": "diverged with seed 1 (of 3): loss is nan"}
    assert list(found.losses) == ["mha"]
    assert found.seeds == (0, 1, 2)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_keeps_a_variant_out(tmp_path, loss):
    found = entered(tmp_path, {"mha": [5.0, 5.1, 5.2], "wild": [4.0, 4.0, loss]})
    assert found.left_out == {"wild": "finished seed 2 with a validation loss that is not finite"}


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


SAME = {"kind": "same_order", "least": 0.6}
TEXTS = {  # mean loss by mechanism and text: code has the opposite order of two
    "wiki": {"mha": 5.0, "mla": 5.1, "delta": 5.2},
    "code": {"mha": 3.1, "mla": 3.0, "delta": 3.2},
    "sums": {"mha": 1.0, "mla": 1.1, "delta": 1.2},
}


def on_texts(folder, texts=TEXTS, summary=None, **more):
    """A study of the same mechanisms on several texts; `summary` is of all runs."""
    losses, data = {}, {}
    for text, means in texts.items():
        for place, (name, mean) in enumerate(means.items()):
            losses[f"{name}_{text}"] = steady(mean, place) if isinstance(mean, float) else mean
            of_run = {"function": name, "data": {"kind": text}}
            data[f"{name}_{text}"] = {**of_run, **(summary or {})}
    names = {text: means or {"mha": None} for text, means in texts.items()}
    groups = tuple(tuple(f"{name}_{text}" for name in means) for text, means in names.items())
    return write_study(
        folder, losses, baseline="mha_wiki", by_design={"data": groups}, **data, **more
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The analysis of a study on three texts."""
    return analyse(on_texts(tmp_path_factory.mktemp("three"), hypotheses=[SAME]))


def test_variants_are_compared_within_their_text_and_never_across(three):
    found = three
    each = {found.text: found, **found.texts}
    assert {text: of.order for text, of in each.items()} == {
        "wiki": ("mha_wiki", "mla_wiki", "delta_wiki"),
        "code": ("mla_code", "mha_code", "delta_code"),
        "sums": ("mha_sums", "mla_sums", "delta_sums"),
    }
    for text, of in each.items():
        assert (of.left_out, of.baseline) == ({}, f"mha_{text}")
        assert {name.partition("_")[2] for pair in of.pairs for name in pair} == {text}
        assert of.level == pytest.approx(0.05 / 3)
    first, second = found.headline
    assert first.startswith("On wiki, at this recipe, mha_wiki predicts this text best: ")
    starts = [line.split(",")[0] for line in second.splitlines()]
    assert starts[1:] == ["On code", "On sums", starts[-1]]
    assert starts[-1].startswith("By mean losses")
    tau = (
        "Kendall's tau of the mechanisms' order is 0.33 to 1.00, with intervals within [0.33, 1.00]"
    )
    assert tau in second
    assert (
        "By mean losses, the order of the mechanisms is not the same on all 3 texts; shown to "
        "change places: mha and mla (wiki and code) and mla and mha (code and sums)."
    ) in second


def test_no_table_ranks_variants_across_texts(three):
    found = three
    text = markdown(found, None)
    assert "nothing here ranks them across texts" in text
    ranking = text.partition("## Ranking")[2].partition("## ")[0]
    assert "mla_wiki" in ranking
    assert "_code" not in ranking
    places = {name: (row["text"], row["rank"]) for name, row in results(found).items()}
    assert places["mla_code"] == ("code", 1)
    assert places["mha_wiki"] == ("wiki", 1)
    assert len(csv_table(found).splitlines()) == 10


def test_a_study_of_tasks_calls_them_tasks(tmp_path):
    found = analyse(on_texts(tmp_path, summary={"final_by_group": {}, "final_accuracy": 0.9}))
    assert found.headline[0].startswith("On wiki, at this recipe, mha_wiki answers this task best")
    report = markdown(found, None)
    assert "## On other tasks" in report
    assert "not the same on all 3 tasks" in report
    assert not re.search(r"\btexts?\b", report)


def test_the_picture_has_the_differences_on_each_text(three):
    with matplotlib_style():
        parts = _Panels(three).together().subfigs
    shown = {
        axes.get_title(loc="left"): [label.get_text() for label in axes.get_yticklabels()]
        for axes in parts[1].axes
        if axes.get_title(loc="left")
    }
    assert shown == {
        "On code": ["mla", "mha", "delta"],
        "On sums": ["mha", "mla", "delta"],
    }


def test_figures_of_several_texts_share_no_id(three):
    drawn = [Charts(three).forest(), *forests(three)]
    svgs = [svg for chart in drawn for svg in chart.forms.values()]
    ids = [name for svg in svgs for name in re.findall(r'id="([^"]+)"', svg)]
    assert len(drawn) == 3
    assert len(ids) == len(set(ids))


def test_kendalls_tau_says_how_far_two_texts_agree_and_which_pairs_they_do_not(three):
    found = {it.texts: it for it in three.agreements}
    assert [(of.tau, of.low, of.high) for of in found.values()] == [
        (pytest.approx(1 / 3),) * 3,
        (1, 1, 1),
        (pytest.approx(1 / 3),) * 3,
    ]
    assert found["wiki", "code"].opposite == (("mha", "mla"),)
    assert found["wiki", "code"].same == (("mha", "delta"), ("mla", "delta"))
    assert found["wiki", "sums"].opposite == ()


def test_an_order_that_nothing_decides_leaves_tau_open(tmp_path):
    texts = {"wiki": TEXTS["wiki"], "code": {"mha": 3.0, "mla": 3.0001, "delta": 3.2}}
    found = analyse(on_texts(tmp_path, texts))
    (agreement,) = found.agreements
    assert (agreement.low, agreement.high) == (pytest.approx(1 / 3), 1)
    same = "the order of the mechanisms is the same on both texts; no two are shown to change"
    assert same in found.headline[1]


@pytest.mark.parametrize(
    ("texts", "ruling"),
    [
        ({"wiki": TEXTS["wiki"], "sums": TEXTS["sums"]}, "supported"),
        ({"wiki": TEXTS["wiki"], "code": {"mha": 3.0, "mla": 3.0001, "delta": 3.2}}, "undecided"),
        ({"wiki": TEXTS["wiki"], "code": {"mha": [3.0], "mla": [3.1]}}, "not judged"),
        ({"wiki": TEXTS["wiki"]}, "not judged"),
    ],
    ids=["same", "open", "one_seed", "one_text"],
)
def test_the_same_order_on_every_text_is_judged(tmp_path, texts, ruling):
    recorded = [SAME]
    (judged,) = analyse(on_texts(tmp_path, texts, hypotheses=recorded)).judgements
    assert judged.ruling == ruling


def test_a_hypothesis_is_judged_on_the_text_that_its_variants_read(tmp_path):
    better = {"kind": "better", "variants": ["mla_code"], "than": ["mha_code"]}
    across = {"kind": "better", "variants": ["mla_code"], "than": ["mha_wiki"]}
    ranked = {"kind": "ranked", "variant": "mla_code"}
    found = analyse(on_texts(tmp_path, hypotheses=[better, across, ranked])).judgements
    assert [of.ruling for of in found] == ["supported", "not judged", "supported"]
    assert "it reads another text" in found[1].found[0]


def test_a_text_without_a_variant_that_can_be_compared_takes_nothing_from_the_others(tmp_path):
    wild = {"mha": ["loss is nan"] * 2, "mla": ["loss is nan"] * 2}
    found = analyse(on_texts(tmp_path, {"wiki": TEXTS["wiki"], "code": wild}))
    assert found.order[0] == "mha_wiki"
    assert found.texts["code"].order == ()
    assert set(found.texts["code"].left_out) == {"mha_code", "mla_code"}
    assert found.agreements == ()
    assert "mha_code, seed 0: diverged" in markdown(found, None)


def test_a_text_without_the_mechanisms_of_the_baseline_is_compared_without_one(tmp_path):
    texts = {"wiki": TEXTS["wiki"], "code": {"mla": 3.0, "delta": 3.2}}
    code = analyse(on_texts(tmp_path, texts)).texts["code"]
    assert (code.baseline, code.left_out) == (None, {})
    assert code.order == ("mla_code", "delta_code")
    assert "mla_code predicts this text best" in code.headline[0]


def test_without_the_baselines_text_another_one_is_the_first(tmp_path):
    found = analyse(on_texts(tmp_path, {"code": TEXTS["code"], "wiki": {}}))
    assert (found.text, found.left_out, found.texts) == ("code", {}, {})
    assert found.order == ("mla_code", "mha_code", "delta_code")


def test_a_variant_alone_on_its_text_is_listed_and_divides_no_error(tmp_path):
    found = analyse(on_texts(tmp_path, {"wiki": TEXTS["wiki"], "code": {"mha": 3.0}}))
    assert found.texts == {}
    assert found.level == 0.05
    assert "losses per token are not comparable" in found.left_out["mha_code"]


def test_a_study_of_one_text_is_read_as_it_is(tmp_path):
    table = read_table(write_study(tmp_path, {"mha": [5.0, 5.1], "mla": [5.0, 5.1]}))
    assert next(iter(by_text(table).values())) is table
