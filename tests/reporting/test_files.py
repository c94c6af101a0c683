"""The files that people and their scripts read, from complete and from partial studies."""

import csv
import io
import json
import math
import re
import time
from dataclasses import replace

import matplotlib as mpl
import pytest
from support.reported_study import (
    LOSSES,
    begin,
    complete,
    edit,
    finish,
    in_full,
    partial,
    plan,
    write_study,
)

from attnlab.analysis.analysis import analyse
from attnlab.analysis.runs_table import load_results
from attnlab.record import StudyRecord, write_json
from attnlab.reporting import write_report, write_results
from attnlab.reporting.figures.comparison import _Panels, panel_pdfs
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
    assert "- identity, seed 2: diverged: loss is nan (2 of 3 seeds finished)" in report
    assert "- gqa_1, seed 0: failed: CUDA out of memory (0 of 3 seeds finished)" in report
    assert "still to run: 12 of 18 runs" in report


def test_a_report_states_the_level_of_its_looks_where_seeds_are_added(study_dir):
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


def test_a_hundred_runs_are_reported_in_time(study_dir):
    plan(study_dir, seeds=range(5), variants=[f"variant {i}" for i in range(20)])
    for i in range(20):
        for seed in range(5):
            finish(study_dir, f"variant {i}", seed, final_loss=5 + i / 100 + seed / 1000)
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 20  # on a busy machine; 4 s alone
    assert (study_dir / "report.html").stat().st_size < 3e6


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
