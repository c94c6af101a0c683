"""The files that people and their scripts read, from complete and from partial studies."""

import csv
import io
import json
import math
import re
import struct
import time
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from rich.console import Console
from support.reported_study import LOSSES, begin, complete, finish, in_full, partial, plan

from attnlab.analysis.analysis import analyse
from attnlab.record import write_json
from attnlab.reporting import TerminalReport, write_report, write_results
from attnlab.reporting.figures.axes import Extent, window
from attnlab.reporting.figures.comparison import comparison
from attnlab.reporting.figures.styles import styles_of
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.sentences import ONE_SEED
from attnlab.reporting.tables.data_files import csv_table, results
from attnlab.reporting.tables.latex import latex


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "results" / "mechanisms"


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def in_terminal(study_dir, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(analyse(study_dir)))
    return console.file.getvalue()


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
        "3 seeds per variant; Tukey's HSD, blocked by seed; minimum detectable difference (80 % "
        "power): 0.021 nats",
        "](comparison.png)",
        "| 1 | 1 | hybrid 3:1 | 5.0507 ± 0.0070 | -0.0497 ± 0.0150 | better | toy | 3/3 |",
        "| baseline | baseline | toy |",
        "| mha is better than identity. | “`mha` beats `identity`.” Nobody 2020 | **supported** | ",
        "| memory first | no winner | They tie. | 0.001 | More seeds. |",
        "| -0.0497 | -0.0647 to -0.0347 | -0.0572 to -0.0422 |",
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


def test_a_study_may_have_no_baseline_and_may_have_a_test_split(study_dir):
    plan(study_dir, baseline=None, variants=("mha", "identity"))
    for variant in ("mha", "identity"):
        for seed in (0, 1, 2):
            finish(study_dir, variant, seed, test_loss=LOSSES[variant] - 0.1)
    analysis = in_full(study_dir, "test_loss")
    report, html = markdown(analysis, None), page(analysis)
    assert "| test loss (nats/token) |" in report
    assert "| 5.0000 ± 0.0000 |" in report
    assert "| validation loss (nats/token) |" in report
    assert "Test loss by variant" in html
    assert "None" not in report + in_terminal(study_dir, 140)
    assert ">None<" not in html


def test_the_report_of_a_partial_study_names_what_is_missing(study_dir):
    partial(study_dir)
    write_results(study_dir)
    report = (study_dir / "report.md").read_text()
    assert "comparison.png" not in report
    assert "## Left out, alarms and failures" in report
    assert "- identity, seed 2: diverged: loss is nan (2 of 3 seeds finished)" in report
    assert "- gqa_1, seed 0: failed: CUDA out of memory (0 of 3 seeds finished)" in report
    assert "still to run: 12 of 18 runs" in report


def test_the_same_function_twice_stands_in_one_place_and_one_tier(study_dir):
    complete(study_dir)
    analysis = in_full(study_dir)
    found = results(analysis)
    assert found["gqa_1"]["rank"] == found["mqa"]["rank"] == 4
    assert found["gqa_1"]["tier"] == found["mqa"]["tier"]
    rows = list(csv.DictReader(io.StringIO(csv_table(analysis))))
    tiers = {row["tier"] for row in rows if row["variant"] in ("gqa_1", "mqa")}
    assert tiers == {str(analysis.tiers["mqa"])}


@pytest.mark.parametrize("written", ["report.md", "terminal"])
def test_one_seed_gets_no_verdict(study_dir, written):
    complete(study_dir, seeds=(0,))
    write_results(study_dir)
    text = in_terminal(study_dir, 100)
    if written == "report.md":
        text = (study_dir / written).read_text()
    assert ONE_SEED in " ".join(text.split())
    assert "tier" not in text
    assert "±" not in text


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


@pytest.mark.parametrize("make", [complete, partial, plan], ids=["complete", "partial", "planned"])
def test_the_picture_is_drawn_at_any_stage_in_time(study_dir, make):
    make(study_dir)
    write_report(study_dir)  # the first ever on a machine makes the font cache, too
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 15  # on a busy machine; 2 s alone
    width, height = size_of((study_dir / "comparison.png").read_bytes())
    assert width == 1800
    assert 700 < height < 1800


def test_a_users_own_settings_do_not_change_the_picture(study_dir, monkeypatch):
    complete(study_dir)
    analysis = in_full(study_dir)
    first = comparison(analysis)
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert comparison(analysis) == first
    assert mpl.rcParams["axes.facecolor"] == "red"


def test_equal_values_do_not_collapse_an_axis():
    low, high = window([Extent(5.0, 5.0), Extent(5.0 + 1e-13, 5.0 + 1e-13)])
    assert high - low >= 0.005
    low, high = window([Extent(0.0, 0.0), Extent(-1e-12, 1e-12)])
    assert high - low >= 0.001


def test_variants_of_one_study_have_colours_of_their_own():
    styles = styles_of(f"variant {i}" for i in range(40))
    assert len({style.colour for style in list(styles.values())[:14]}) == 14
    looks = {(style.colour, str(style.line), style.marker) for style in styles.values()}
    assert len(looks) == 40


def test_one_far_variant_does_not_squash_the_others():
    near = [Extent(5.0 + i / 100, 5.01 + i / 100) for i in range(10)]
    assert window([*near, Extent(6.2, 6.21)]) == window(near)
    assert window([Extent(1.0, 1.01), *near]) == window(near)
    low, high = window([Extent(1.0, 1.0), Extent(2.0, 2.0), Extent(9.0, 9.0)])
    assert low < 1 < 9 < high
    low, high = window([Extent(5.0, 5.0)])
    assert low < 5 < high


@pytest.mark.parametrize("width", [60, 80, 100, 160, 220])
def test_the_terminal_table_fits_and_names_stay_whole(study_dir, width):
    complete(study_dir)
    lines = in_terminal(study_dir, width).splitlines()
    assert max(len(line) for line in lines) <= width
    rows = [line for line in lines if re.match(r"\d +\d  \w", line)]
    assert len(rows) == len(LOSSES)
    assert "hybrid 3:1  " in rows[0]
    assert "5.0507 ± 0.0070" in rows[0]
    assert ("mechanism" in lines[1]) == (width >= 160)
    assert any("not shown at this width: " in line for line in lines) == (width < 220)


def test_the_terminal_lists_failures(study_dir):
    partial(study_dir)
    text = in_terminal(study_dir, 140)
    assert "identity, seed 2: diverged: loss is nan (2 of 3 seeds finished)" in text
    assert "2/3" in text


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
    write_report(study_dir)
    assert "| runs started | 12:00 to 12:02 |" in (study_dir / "report.md").read_text()


def test_the_terminal_says_the_verdict_in_two_sentences_and_how_sure_it_is(study_dir):
    complete(study_dir)
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(in_full(study_dir)))
    text = console.file.getvalue()
    assert "The hybrid is best.\nThe floor is far.\n3 seeds per variant;" in text
    assert text.splitlines()[1].split()[:3] == ["#", "tier", "variant"]


def test_the_table_for_papers_has_whole_rows_and_no_special_characters(study_dir):
    complete(study_dir)
    table = latex(in_full(study_dir))
    body = [line for line in table.splitlines() if line.endswith(r" \\")]
    columns = len(table.split(r"\begin{tabular}{")[1].split("}")[0])
    assert len(body) == 1 + len(in_full(study_dir).order)
    for line in body:
        bare = line.replace(r"\&", "")
        assert bare.count("&") == columns - 1
        assert bare.count("$") % 2 == 0
    assert table.count(r"\midrule") == len(set(in_full(study_dir).tiers.values()))
    assert r"gqa\_1" in table
    assert r"cost\textbar{}\$\textasciicircum{}\$" in table


def test_the_picture_is_an_svg_too_the_same_each_time(study_dir):
    complete(study_dir)
    analysis = in_full(study_dir)
    png, svg = comparison(analysis)
    assert (png, svg) == comparison(analysis)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tips = {element.text for element in root.iter("{http://www.w3.org/2000/svg}title")}
    assert "identity minus mha: +1.1107 ± 0.0150" in tips
    assert "hybrid 3:1, seed 1: 5.0580" in tips


def test_a_hundred_runs_are_reported_in_time(study_dir):
    plan(study_dir, seeds=range(5), variants=[f"variant {i}" for i in range(20)])
    for i in range(20):
        for seed in range(5):
            finish(study_dir, f"variant {i}", seed, final_loss=5 + i / 100 + seed / 1000)
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 20  # on a busy machine; 4 s alone
    assert (study_dir / "report.html").stat().st_size < 3e6
