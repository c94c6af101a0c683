"""The files that people and their scripts read, from complete and from partial studies.

comparison.png and .svg at any stage of a study, axes and styles.
"""

import csv
import io
import json
import math
import re
import struct
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.font_manager
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from support.reported_study import (
    LOSSES,
    NASTY,
    begin,
    complete,
    edit,
    finish,
    in_full,
    partial,
    plan,
    write_study,
)

from attnlab.analysis import scaling
from attnlab.analysis.analysis import analyse
from attnlab.analysis.compare_folders import read_folders
from attnlab.analysis.profile import harness_of
from attnlab.analysis.runs_table import load_results
from attnlab.analysis.table import read_table
from attnlab.record import (
    HARNESS,
    StudyRecord,
    pack,
    recorded_run,
    unpack,
    write_json,
    write_object,
)
from attnlab.record.atomic_files import WRITTEN, read_file
from attnlab.reporting import write_report, write_results
from attnlab.reporting.figures.axes import LINE_HEIGHT, ZERO, Extent, name_ends, window
from attnlab.reporting.figures.comparison import _Panels, comparison, panel_pdfs
from attnlab.reporting.figures.styles import families_of, matplotlib_style, styles_of
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.sentences import forest_caption
from attnlab.reporting.tables.data_files import csv_table, results
from attnlab.reporting.tables.latex import latex


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "results" / "mechanisms"


RANKING = """
results = json.load(open("results/mechanisms/comprehensive_results.json"))
for rank, (name, m) in enumerate(sorted(results.items(), key=lambda x: x[1]["final_loss"]), 1):
    print(f"{rank}. {name}: Loss {m['final_loss']:.4f}, PPL {m['final_perplexity']:.2f}")
"""


CURVE = """
data = json.load(open(f"results/mechanisms/{name}/metrics.json"))
plt.plot(data["train_steps"], data["train_loss"], label=name)
"""


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # users' code leaves it open
def test_the_two_snippets_that_users_have_run_as_they_stand(
    study_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    import matplotlib.pyplot as plt

    complete(study_dir)
    write_results(study_dir)
    monkeypatch.chdir(tmp_path)
    names = {"json": json, "plt": plt}
    exec(RANKING, names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(LOSSES)
    assert printed[0].startswith("1. hybrid 3:1: Loss 5.05")
    assert printed[-1].startswith("6. identity: Loss 6.21")
    exec(CURVE, names)
    (line,) = plt.gca().lines
    assert list(line.get_xdata()) == list(range(100, 1001, 100))
    plt.close("all")


def test_results_hold_means_spreads_and_where_to_look(study_dir):
    complete(study_dir)
    write_results(study_dir)
    results = json.loads((study_dir / "comprehensive_results.json").read_text())
    mha = results["mha"]
    assert next(iter(results)) == "hybrid 3:1"
    assert mha["final_loss"] == pytest.approx(5.10 + 0.001 / 3)
    assert mha["final_perplexity"] == pytest.approx(math.exp(mha["final_loss"]))
    assert mha["total_time"] == 21
    assert mha["attention_type"] == "toy"
    assert mha["seeds"] == [0, 1, 2]
    assert mha["spread"]["final_loss"] == pytest.approx(0.00351, abs=1e-5)
    assert (study_dir / results["hybrid 3:1"]["folder"] / "metrics.json").is_file()
    assert json.loads((study_dir / "failures.json").read_text()) == {}


def on_task(value, error, **how):
    return {
        "metrics": {f"acc {NASTY}": {"value": value, "standard_error": error}},
        **{"identity": "x", "shots": 0, "limit": None, "step": 40, "weights": "last"},
        **how,
    }


HARNESS_ROWS = [  # variant, task, measured, mean, standard error, runs
    ("mha", "few", "0-shot, first 9 questions, step 40", "0.7000", "0.2000 (questions)", "1"),
    ("mha", "few", "0-shot, step 40", "0.5000", "–", "1"),
    ("mha", "same", "0-shot, step 40", "0.5000", "0.0400 (questions)", "2"),
    ("mha", "task|1", "0-shot, step 40", "0.4000", "0.1000 (seeds)", "2"),
    ("b.c", "task|1", "0-shot, step 40", "0.6000", "0.0900 (questions)", "1"),
    ("b.c", "wide", "0-shot, best weights", "–", "–", "2"),
]


def test_results_of_the_harness_are_a_table_packed_or_not(study_dir, tmp_path, empty_charts):
    write_study(study_dir, {"mha": [5.0, 5.1], "b.c": [5.2, 5.3]})
    before = markdown(analyse(study_dir), None) + page(analyse(study_dir))
    assert "lm-evaluation-harness" not in before
    assert "harness" not in results(analyse(study_dir))["mha"]
    lost, best = on_task(None, None, weights="best"), on_task(0.2, 0.1, weights="best")
    same = {"same": on_task(0.5, 0.04)}
    runs = {
        "mha/seed-0": {**same, "task|1": on_task(0.3, 0.02), "few": on_task(0.7, 0.2, limit=9)},
        "mha/seed-1": {**same, "task|1": on_task(0.5, 0.03), "few": on_task(0.5, None)},
        "b%2Ec/seed-0": {"task|1": on_task(0.6, 0.09), "wide": lost},
        "b%2Ec/seed-1": {"task|1": on_task(0.9, 0.09, identity="of before"), "wide": best},
        "gone/seed-0": {"task|1": on_task(0.9, 0.09)},
    }
    write_object(study_dir / HARNESS, {"runs": runs})
    written, shown = (study_dir / HARNESS).read_bytes(), markdown(analyse(study_dir), None)
    lines = [line for line in shown.splitlines() if " 0-shot" in line]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [(*row[:3], *row[4:]) for row in cells] == [
        tuple(cell.replace("|", "\\|") for cell in row) for row in HARNESS_ROWS
    ]
    assert "Left out, since the runs were trained anew: b.c, seed 1." in shown
    html = page(analyse(study_dir))
    assert html.count("0-shot") == len(HARNESS_ROWS)
    assert "<img" not in html + shown
    assert '<a href="#harness">Tasks of lm-evaluation-harness</a>' in html
    (one, _) = results(analyse(study_dir))["b.c"]["harness"]
    assert (one["mean"], one["standard_error"], one["error_over"]) == (0.6, 0.09, "questions")

    pack(study_dir)
    assert (study_dir / HARNESS).read_bytes() == written
    assert markdown(analyse(study_dir), None) == shown
    compared = read_folders([study_dir / "mha", study_dir / "b%2Ec"], out=tmp_path, command="")
    assert [of.runs for of in harness_of(compared)[0]] == [1, 1, 2, 2, 1, 2]
    unpack(study_dir)
    assert (study_dir / HARNESS).read_bytes() == written

    (study_dir / HARNESS).write_bytes(written.replace(b"0.6", b"0.8"))
    whole = analyse(study_dir).whole
    compared = read_folders([study_dir / "mha", study_dir / "b%2Ec"], out=tmp_path, command="")
    for table in (whole, compared):
        (line,) = table.damage
        assert line.startswith(f"{study_dir / HARNESS} was altered: its checksum differs; restore")
        assert line.endswith("or delete it to evaluate again")


def test_an_output_projection_of_its_own_is_a_part_and_no_size_on_a_ladder(study_dir):
    plan(study_dir, variants=("mha", "mqa"))
    counts = {"embedding": 70, "head": 0, "attention": 20, "total": 100, "active": 100}
    finish(study_dir, "mha", 0, parameters=counts)
    finish(study_dir, "mqa", 0, parameters=counts)
    assert "| head |" not in markdown(analyse(study_dir), None)
    path = study_dir / "mqa" / "seed-0" / "summary.json"
    edit(path, parameters=counts | {"head": 5, "total": 105})
    assert "| embedding | head | attention |" in markdown(analyse(study_dir), None)
    sizes = [scaling._x(variant, "parameters") for variant in read_table(study_dir).variants]
    assert sizes == [30, 30]


def test_metrics_hold_means_over_seeds_and_every_seed(study_dir):
    complete(study_dir)
    write_results(study_dir)
    metrics = json.loads((study_dir / "mha" / "metrics.json").read_text())
    by_seed = metrics["seeds"]
    assert set(by_seed) == {"0", "1", "2"}
    last = [by_seed[seed]["eval_loss"][-1] for seed in "012"]
    assert metrics["eval_loss"][-1] == pytest.approx(sum(last) / 3)
    assert metrics["eval_perplexity"][-1] == pytest.approx(math.exp(metrics["eval_loss"][-1]))
    assert len(metrics["train_steps"]) == len(metrics["train_loss"]) == 10
    assert metrics["train_time"] == 2.0
    config = json.loads((study_dir / "mha" / "config.json").read_text())
    assert config["train"] == {"steps": 1000}
    assert "seed" not in config


def test_what_did_not_finish_is_in_failures_with_its_reason(study_dir):
    partial(study_dir)
    write_results(study_dir)
    failures = json.loads((study_dir / "failures.json").read_text())
    results = json.loads((study_dir / "comprehensive_results.json").read_text())
    assert list(results) == ["mha", "identity"]
    assert failures["identity"] == {
        "seeds_finished": [0, 1],
        "seeds": {"2": {"status": "diverged", "reason": "loss is nan"}},
    }
    assert failures["gqa_1"]["seeds"]["0"] == {"status": "failed", "reason": "CUDA out of memory"}
    assert failures["mqa"]["seeds"]["0"]["status"] == "partial"
    assert set(results) | set(failures) == set(LOSSES)
    for folder in (study_dir, study_dir / "mqa"):
        for path in folder.glob("*.json"):
            json.loads(path.read_text(), parse_constant=pytest.fail)


def test_the_report_says_what_was_asked_what_came_out_and_how(study_dir):
    complete(study_dir)
    report = markdown(in_full(study_dir), "comparison.png")
    for expected in (
        "Which attention mechanism?",
        "**The hybrid is best.** The floor is far.",
        "3 seeds per variant; intervals of seeds, at this recipe; minimum detectable difference "
        "(80 % power): 0.021 nats",
        "](comparison.png)",
        "| 1 | a | hybrid 3:1 | 5.0507 ± 0.0070 | -0.0497 ± 0.0150 | better | toy | 3/3 |",
        "| baseline | baseline | toy |",
        "| mha is better than identity. | “`mha` beats `identity`.” Nobody 2020 | **supported** | ",
        "| memory first | no winner | They tie. | 0.001 | More seeds. |",
        "| parameters (M) | FLOPs/token (M) | time/step (ms) | tokens/s (M) | peak memory (GiB) |",
        "| 4.884 | 12.0 | 1.75 | 2.30 | 3.00 | 1.00 | 21.0 | 2.00 |",
        "| train.steps | 1000 |",
        "| mha | model.mechanisms: toy(loss=5.1) |",
        "attnlab run mechanisms --seeds 3",
        "| packages.torch | 2.13.0 |",
        r"cost\|$^$",
    ):
        assert expected in report
    assert "Left out, alarms and failures" not in report
    tables = [block for block in report.split("\n\n") if block.startswith("| ")]
    assert len(tables) >= 8
    for table in tables:
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1, table


def test_the_report_of_a_partial_study_names_what_is_missing(study_dir):
    partial(study_dir)
    write_results(study_dir)
    report = (study_dir / "report.md").read_text()
    assert "comparison.png" not in report
    assert "## Left out, alarms and failures" in report
    assert (
        "- identity, seed 2: diverged: loss is nan (2 of 3 seeds finished; not compared)" in report
    )
    assert "- gqa_1, seed 0: failed: CUDA out of memory (0 of 3 seeds finished; not " in report
    assert report.count("loss is nan") == 1  # the headline names another variant
    assert "still to run: 12 of 18 runs" in report


def test_a_report_states_the_level_of_its_looks_where_seeds_are_added(study_dir, empty_charts):
    complete(study_dir)
    replace(StudyRecord.read(study_dir), most_seeds=10, families={"a": ("mha",)}).write(study_dir)
    analysis = analyse(study_dir)
    for text in (page(analysis), markdown(analysis, None), latex(analysis).replace("\\", "")):
        assert "98.3 %" in text
        assert not re.search("95 % (interval|for all)", text)
    assert "simultaneous 98.3 % intervals" in forest_caption(analysis, "mha")


def test_the_same_function_twice_stands_in_one_place_with_one_letter(study_dir):
    complete(study_dir)
    analysis = in_full(study_dir)
    found = results(analysis)
    assert found["gqa_1"]["rank"] == found["mqa"]["rank"] == 4
    assert found["gqa_1"]["letters"] == found["mqa"]["letters"]
    rows = list(csv.DictReader(io.StringIO(csv_table(analysis))))
    letters = {row["letters"] for row in rows if row["variant"] in ("gqa_1", "mqa")}
    assert letters == {"".join(analysis.letters["mqa"])}


def test_the_table_has_one_row_per_variant_and_units_in_its_columns(study_dir):
    partial(study_dir)
    write_results(study_dir)
    rows = list(csv.DictReader(io.StringIO((study_dir / "table.csv").read_text())))
    assert {row["variant"] for row in rows} == set(LOSSES)
    mha = next(row for row in rows if row["variant"] == "mha")
    gqa_1 = next(row for row in rows if row["variant"] == "gqa_1")
    assert float(mha["validation_loss_nats_per_token"]) == pytest.approx(5.102)
    assert mha["peak_memory_bytes"] == str(3 * 2**30)
    assert (mha["seeds_finished"], mha["seeds_planned"]) == ("2", "3")
    assert (gqa_1["place"], gqa_1["seeds_failed"]) == ("", "1")
    assert gqa_1["validation_loss_nats_per_token"] == ""


def test_flops_that_are_not_known_are_said_to_be_not_counted_beside_those_that_are(tmp_path):
    seen = {}
    for name, flops in ("some", 12e6), ("none", None):
        of_mha = {"flops_per_token": flops}
        losses = {"mha": [5.0, 5.1], "fla": [5.2, 5.3], "open": [None, None]}
        folder = write_study(tmp_path / name, losses, mha=of_mha, fla={"flops_per_token": None})
        seen[name] = markdown(in_full(folder), "comparison.png")
    assert re.search(r"FLOPs/token \(M\).*\n.*\n.* 12\.0 .*\n.* not counted ", seen["some"])
    assert "not counted" not in seen["none"]
    assert "FLOPs/token" not in seen["none"]


def test_a_run_that_ended_without_its_final_name_gets_it(study_dir):
    plan(study_dir)
    run = begin(study_dir, "mha", 0)
    write_json(run.partial / "summary.json", {"status": "finished", "final_loss": 5.0})
    write_results(study_dir)
    assert run.path.name == "seed-0"


def test_a_refresh_rewrites_only_what_changed(study_dir):
    def times():
        return {path: path.stat().st_mtime_ns for path in study_dir.rglob("*.*") if path.is_file()}

    partial(study_dir)
    write_results(study_dir)
    before = times()
    write_results(study_dir)
    assert times() == before
    finish(study_dir, "cost|$^$", 0)
    write_results(study_dir)
    changed = {path.name for path, when in before.items() if times()[path] != when}
    assert changed == {
        *("comprehensive_results.json", "failures.json"),
        *("report.md", "table.csv", "table.tex"),
    }


def test_the_report_says_from_when_to_when_runs_started_and_not_when_each_did(study_dir):
    plan(study_dir)
    for seed in (0, 1, 2):
        finish(study_dir, "mha", seed)
    write_results(study_dir)
    assert "| runs started | 12:00 to 12:02 |" in (study_dir / "report.md").read_text()


def test_the_report_says_how_far_gradients_in_bfloat16_are_from_those_in_float32(study_dir):
    plan(study_dir)
    errors = ({"error": 0.05, "allowed": 0.5}, {"error": 0.06, "allowed": 0.25}, None)
    for seed, error in enumerate(errors):
        of_run = error and {"parameter": "blocks.0.mix.q_proj.weight", **error}
        finish(study_dir, "mha", seed, gradient_error=of_run)
    write_results(study_dir)
    said = "compared in 2 runs; the largest error is 24% of what is allowed"
    assert said in (study_dir / "report.md").read_text()


def test_the_report_says_on_how_many_devices_a_run_was_trained(study_dir):
    plan(study_dir, variants=("mha", "mqa"))
    for name in ("mha", "mqa"):
        finish(study_dir, name, 0, device="NVIDIA H200")
    assert "processes" not in markdown(analyse(study_dir), picture=None)
    there = {"device": "NVIDIA H200", "processes": 4}
    environment = there | {"processes": 2, "earlier": [there]}
    edit(study_dir / "mha" / "seed-0" / "environment.json", **environment)
    page = markdown(analyse(study_dir), picture=None)
    assert "| processes | 4, then 2 |" in page
    different = "Times and peak memory were measured on different devices, not comparable: "
    assert f"{different}mha on 4, then 2 x NVIDIA H200; mqa on NVIDIA H200." in page
    rows = {run["variant"]: run["processes"] for run in load_results(study_dir)}
    assert rows == {"mha": "4, then 2", "mqa": "1"}


def test_the_table_for_papers_has_whole_rows_and_no_special_characters(study_dir):
    complete(study_dir)
    table = latex(in_full(study_dir))
    body = [line for line in table.splitlines() if line.endswith(r" \\")]
    columns = len(table.split(r"\begin{tabular}{@{}")[1].split("@")[0])
    assert len(body) == 3 + len(in_full(study_dir).order)  # titles on two lines, units, variants
    for line in body:
        bare = line.replace(r"\&", "")
        assert bare.count("&") == columns - 1
        assert bare.count("$") % 2 == 0
    assert table.count(r"\midrule") == 1
    assert r"gqa\_1" in table
    assert r"cost\textbar{}\$\textasciicircum{}\$" in table


HOSTILE = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "[2cm]", "*", "**b**", "<img src=x>", "a|b"),
    *("[x](http://x)", "![x](y)", "# h", "\\\\input{x}", "%", "$x$", "a\nb", "`c`"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_in_every_form_of_the_report(tmp_path, name):
    losses = {name: [4.0, 4.1], "mha": [5.0, 5.2]}
    analysis = analyse(write_study(tmp_path / "x", losses))
    table = replace(analysis.table, study=replace(analysis.table.study, name=f"</h1>{name}"))
    analysis = replace(analysis, table=table)
    cells = [cell for row in csv.reader(io.StringIO(csv_table(analysis))) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+@\t" and cell]
    assert not [cell for cell in cells if cell.startswith("-") and not is_number(cell)]
    assert any(name in cell for cell in cells)
    rows = latex(analysis).split("\\midrule\n")[1].splitlines()
    assert not [row for row in rows if row.lstrip().startswith(("[", "*"))]
    assert len([row for row in rows if row.endswith("\\\\")]) == 2
    text = markdown(analysis, None)
    assert "<img" not in text
    assert "</h1>" not in text
    assert "](http" not in text.replace("\\[x](http", "")
    assert text.splitlines()[0].startswith("# ")


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_the_table_for_papers_is_whole_caption_label_and_cited_names(study_dir, monkeypatch):
    complete(study_dir)
    cited = r"Grouped & small~\cite{ainslie2023}"
    record = replace(StudyRecord.read(study_dir), labels={"mqa": "MQA_1", "gqa_1": cited})
    record.write(study_dir)
    analysis = analyse(study_dir)
    table = latex(analysis)
    assert table.startswith(r"\begin{table}")
    assert r"\label{tab:mechanisms}" in table
    caption = next(line for line in table.splitlines() if line.startswith(r"\caption{"))
    for expected in ("lower is better; at this recipe", "Source: attnlab 0.1.0", "share a letter"):
        assert expected in caption
    assert "\nGrouped \\& small~\\cite{ainslie2023} & " in table
    assert "\nMQA\\_1 & " in table
    assert r"\textbf{5.051 $\pm$ 0.007}" in table
    assert r"\textbf{6.2" not in table
    pdfs = panel_pdfs(analysis)
    curves = {"curves", "training", "curves_minus_reference"}
    assert pdfs.keys() == curves | {"differences", "loss", "time", "positions", "recall", "other"}
    width = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdfs["differences"])
    assert width
    assert float(width[1]) == pytest.approx(3.4 * 72, abs=1)
    monkeypatch.setattr(_Panels, "every", lambda self, every=_Panels.every: one_of(every(self)))
    assert panel_pdfs(analysis) == one_of(pdfs)  # the same bytes each time


def one_of(panels):
    return {"differences": panels["differences"]}


def test_fifty_runs_are_reported_in_time(study_dir, monkeypatch):
    plan(study_dir, seeds=range(5), variants=[f"variant {i}" for i in range(10)])
    for i in range(10):
        for seed in range(5):
            finish(study_dir, f"variant {i}", seed, final_loss=5 + i / 100 + seed / 1000)
    read = Counter[str]()
    monkeypatch.setattr(
        recorded_run, "read_file", lambda of: read.update([of.name]) or read_file(of)
    )
    monkeypatch.setattr("attnlab.reporting.figures.comparison.panel_pdfs", lambda _: {})
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 9  # on a busy machine; 2 s alone
    assert (study_dir / "report.html").stat().st_size < 3e6
    assert read["metrics.jsonl"] == 50  # each run once
    others = [path.name for path in study_dir.iterdir() if not any(map(path.match, WRITTEN))]
    assert not [name for name in others if not (study_dir / name).is_dir()]


def test_a_report_writes_nothing_through_a_linked_variant(study_dir, tmp_path):
    complete(study_dir)
    elsewhere = tmp_path / "elsewhere"
    (study_dir / "mqa").rename(elsewhere)
    (study_dir / "mqa").symlink_to(elsewhere)
    (elsewhere / "metrics.json").write_text("mine")
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    write_results(study_dir)
    assert {p: p.read_bytes() for p in elsewhere.rglob("*") if p.is_file()} == before
    assert (study_dir / "mha" / "metrics.json").is_file()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A whole study's analysis, and its picture as PNG and SVG."""
    study_dir = tmp_path_factory.mktemp("drawn") / "mechanisms"
    complete(study_dir)
    analysis = in_full(study_dir)
    return analysis, comparison(analysis)


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("make", [partial, plan], ids=["partial", "planned"])
def test_the_picture_is_drawn_at_any_stage_in_time(study_dir, make, monkeypatch):
    monkeypatch.setattr("attnlab.reporting.files.page", lambda _: "")
    make(study_dir)
    mpl.font_manager.findfont("sans")  # the first ever on a machine makes the font cache
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 15  # on a busy machine; 2 s alone
    if make is partial:
        assert_fits((study_dir / "comparison.png").read_bytes())
    else:  # no run has finished: the caption says so, and there is no panel
        assert size_of((study_dir / "comparison.png").read_bytes())[1] < 400


def test_a_panel_that_nothing_was_recorded_for_is_not_drawn(study_dir):
    losses = {"mha": [5.1, 5.11], "identity": [6.2, 6.22]}
    without_curves = _Panels(analyse(write_study(study_dir, losses)))
    assert without_curves.every().keys() == {"loss", "differences"}
    figure = without_curves.together()
    assert [len(part.axes) for part in figure.subfigs] == [3]
    assert sum(axes.axison for axes in figure.get_axes()) == 2


def assert_fits(png):
    width, height = size_of(png)
    assert width == 1800
    assert 700 < height < 1800


def test_the_picture_is_the_same_each_time_whatever_a_users_own_settings(drawn, monkeypatch):
    analysis, first = drawn
    assert_fits(first[0])
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert comparison(analysis) == first
    assert mpl.rcParams["axes.facecolor"] == "red"


def test_equal_values_do_not_collapse_an_axis():
    low, high = window([Extent(5.0, 5.0), Extent(5.0 + 1e-13, 5.0 + 1e-13)])
    assert high - low >= 0.02
    low, high = window([Extent(0.0, 0.0), Extent(-1e-12, 1e-12)])
    assert high - low >= 0.02


def test_variants_of_one_study_have_colours_of_their_own():
    styles = styles_of({f"variant {i}": (f"family {i % 12}",) for i in range(40)})
    assert len({style.colour for style in styles.values()}) == 40
    assert len({style.dark for style in styles.values()}) == 40
    looks = {(style.colour, str(style.line), style.marker) for style in styles.values()}
    assert len(looks) == 40


def test_a_family_has_one_hue_and_the_baseline_and_the_floor_are_grey(tmp_path):
    kinds = {
        **{"mha": "grouped_query", "gqa_2": "grouped_query", "gqa_1": "grouped_query"},
        **{"linear": "gated_delta_net", "kda": "kda", "sparse_64": "deepseek_sparse"},
        **{"identity": "identity", "own": "theirs"},
    }
    functions = {name: {"function": kind} for name, kind in kinds.items()}
    study_dir = write_study(tmp_path / "s", {name: [5.0] for name in kinds}, **functions)
    styles = styles_of(families_of(read_table(study_dir)))

    def hue(name):
        hue, saturation, _ = rgb_to_hsv(to_rgb(styles[name].colour))
        return None if saturation < 0.1 else round(float(hue), 1)

    assert hue("mha") is hue("identity") is None
    assert styles["mha"].colour != styles["identity"].colour
    assert hue("gqa_2") == hue("gqa_1") is not None
    assert hue("linear") == hue("kda")
    assert len({hue(name) for name in ("gqa_2", "linear", "sparse_64", "own")}) == 4

    declared = {"one": ("gqa_2", "sparse_64"), "two": ("gqa_1",)}
    write_study(tmp_path / "d", {name: [5.0] for name in kinds}, families=declared, **functions)
    styles = styles_of(families_of(read_table(tmp_path / "d")))
    assert hue("gqa_2") == hue("sparse_64") != hue("gqa_1")


def test_names_at_the_ends_of_lines_do_not_overlap(study_dir):
    axes = Figure(figsize=(5, 4)).subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    ends = {f"v{i}": (1.0, 0.5 + i * 1e-9) for i in range(10)} | {"far": (1.0, 9.0)}
    with matplotlib_style():
        name_ends(axes, ends, styles_of({name: (name,) for name in ends}))
    heights = sorted(label.get_position()[1] for label in axes.texts)
    least = LINE_HEIGHT * axes.figure.dpi / 72 / axes.bbox.height
    assert len(heights) == 11
    assert min(above - below for below, above in pairwise(heights)) > 0.99 * least
    assert {label.get_text() for label in axes.texts} >= {"v0", "far 9 ↑"}


def test_one_far_variant_does_not_squash_the_others():
    near = [Extent(5.0 + i / 100, 5.01 + i / 100) for i in range(10)]
    assert window([*near, Extent(6.2, 6.21)]) == window(near)
    assert window([Extent(1.0, 1.01), *near]) == window(near)
    worse = [Extent(5.0 + i / 10, 5.05 + i / 10) for i in range(4)]
    assert window([*worse, Extent(6.0, 6.1)]) == window(worse)
    low, high = window([Extent(4.6, 4.7), *worse])
    assert low < 4.6  # the best one is what the figure is about
    low, high = window([Extent(1.0, 1.0), Extent(2.0, 2.0), Extent(9.0, 9.0)])
    assert low < 1 < 9 < high
    low, high = window([Extent(5.0, 5.0)])
    assert low < 5 < high


def test_differences_are_shown_beside_zero_however_far_all_of_them_are():
    worst = Extent(9.0, 9.1)
    for sign in (1, -1):
        away = [Extent(*sorted((sign * i / 10, sign * (i / 10 + 0.05)))) for i in range(3, 8)]
        low, high = window(away, ZERO)
        assert low < 0 < high
        assert window([*away, worst], ZERO) == (low, high)


def test_the_picture_is_an_svg_too(drawn):
    _, (_, svg) = drawn
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tips = {element.text for element in root.iter("{http://www.w3.org/2000/svg}title")}
    assert "identity minus mha: +1.1107 ± 0.0150" in tips
    assert "hybrid 3:1, seed 1: 5.0580" in tips
