"""The files that people and their scripts read, from complete and from partial studies."""

import csv
import io
import json
import math
import struct
import time

import matplotlib as mpl
import pytest
from rich.console import Console

from attnlab.analysis.table import read_table
from attnlab.record import RunFolder, StudyRecord, write_json
from attnlab.report import TerminalReport, write_report, write_results
from attnlab.report.scale import Extent, window
from attnlab.report.verdict import ONE_SEED

LOSSES = {  # of seed 0; three far apart, two equal, one far from all
    "mha": 5.10,
    "gqa_1": 5.13,
    "mqa": 5.13,
    "hybrid 3:1": 5.05,
    "cost|$^$": 5.11,
    "identity": 6.21,
}
NOISE = (0.0, 0.004, -0.003)


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "results" / "mechanisms"


def plan(study_dir, seeds=(0, 1, 2), baseline="mha"):
    StudyRecord(
        name="mechanisms",
        question="Which attention mechanism?",
        baseline=baseline,
        variants=tuple(LOSSES),
        seeds=seeds,
        command="attnlab run mechanisms --seeds 3",
        attnlab_version="0.1.0",
    ).write(study_dir)


def begin(study_dir, variant, seed):
    run = RunFolder(study_dir, variant, seed)
    model = {"d_model": 128, "mechanisms": [{"kind": "toy", "loss": LOSSES[variant]}]}
    run.open(
        {"identity": variant, "model": model, "train": {"steps": 1000}},
        {"device": "NVIDIA H200", "packages": {"torch": "2.13.0"}, "started": f"12:0{seed}"},
    )
    return run


def finish(study_dir, variant, seed):
    run = begin(study_dir, variant, seed)
    loss = LOSSES[variant] + NOISE[seed] * (1 + len(variant) % 3)
    for step in range(100, 1001, 100):
        at_step = loss + 4 * math.exp(-step / 200)
        run.append({"step": step, "train_loss": at_step - 0.1})
        run.append({"step": step, "eval_loss": at_step, "eval_accuracy": 0.2})
    run.finish(
        {
            "status": "finished",
            "final_loss": loss,
            "final_perplexity": math.exp(loss),
            "final_accuracy": 0.25,
            "final_bits_per_byte": None,
            "total_time": 20.0 + seed,
            "train_time": 2.0,
            "step_time": 0.00175,
            "tokens_per_second": 2.3e6,
            "peak_memory_bytes": 3 * 2**30,
            "attention_type": "toy",
            "parameters": {"attention": 262_144, "total": 4_883_584},
            "state_bytes": 2**20,
        }
    )


def complete(study_dir, seeds=(0, 1, 2)):
    plan(study_dir, seeds)
    for variant in LOSSES:
        for seed in seeds:
            finish(study_dir, variant, seed)


def partial(study_dir):
    """Some variants finished, one with a diverged seed, one failed, one under way."""
    plan(study_dir)
    finish(study_dir, "mha", 0)
    finish(study_dir, "mha", 1)
    finish(study_dir, "identity", 0)
    finish(study_dir, "identity", 1)
    begin(study_dir, "identity", 2).finish({"status": "diverged", "reason": "loss is nan"})
    begin(study_dir, "gqa_1", 0).fail("CUDA out of memory")
    begin(study_dir, "mqa", 0).append({"step": 100, "eval_loss": math.nan})


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def in_terminal(study_dir, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(read_table(study_dir)))
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
    write_report(study_dir)
    report = (study_dir / "report.md").read_text()
    for expected in (
        "Which attention mechanism?",
        "**hybrid 3:1 has the lowest validation loss: 5.0507 ± 0.0070 nats a token",
        "](comparison.png)",
        "| 1 | hybrid 3:1 | toy | 3/3 | 5.0507 ± 0.0070 |",
        "| mha | 1.75 | 2.30 M | 21.0 s |",
        "| baseline |",
        "| train.steps | 1000 |",
        "| mha | model.mechanisms: toy(loss=5.1) |",
        "attnlab run mechanisms --seeds 3",
        "| packages.torch | 2.13.0 |",
        r"cost\|$^$",
    ):
        assert expected in report
    assert "Not finished" not in report
    tables = [block for block in report.split("\n\n") if block.startswith("| ")]
    for table in tables:
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1, table


def test_a_study_may_have_no_baseline_and_may_have_a_test_split(study_dir):
    plan(study_dir, baseline=None)
    for seed in (0, 1, 2):
        finish(study_dir, "mha", seed)
        run = RunFolder(study_dir, "mha", seed)
        write_json(run.path / "summary.json", {**run.summary(), "test_loss": 5.5})
    write_report(study_dir)
    report = (study_dir / "report.md").read_text()
    assert "| bits per byte | test loss |\n|--:|---|---|--:|--:|--:|--:|--:|--:|\n| 1 |" in report
    assert "| 5.5000 ± 0.0000 |\n" in report
    assert "None" not in report + in_terminal(study_dir, 140)


def test_the_report_of_a_partial_study_names_what_is_missing(study_dir):
    partial(study_dir)
    write_results(study_dir)
    report = (study_dir / "report.md").read_text()
    assert "comparison.png" not in report
    assert "- identity, seed 2: diverged: loss is nan (2 of 3 seeds finished)" in report
    assert "- gqa_1, seed 0: failed: CUDA out of memory (0 of 3 seeds finished)" in report
    assert "still to run: 12 of 18 runs" in report


def test_the_report_does_not_separate_what_it_cannot(study_dir):
    plan(study_dir, seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        finish(study_dir, "gqa_1", seed)
        finish(study_dir, "mqa", seed)
    # the same numbers under another name
    for seed in (0, 1, 2):
        summary = RunFolder(study_dir, "gqa_1", seed).summary()
        write_json(study_dir / "mqa" / f"seed-{seed}" / "summary.json", summary)
    write_report(study_dir)
    report = (study_dir / "report.md").read_text()
    assert "gqa_1, mqa have the lowest validation loss" in report
    assert "includes 0: mqa." in report
    assert "Worse than" not in report


@pytest.mark.parametrize("written", ["report.md", "terminal"])
def test_one_seed_gets_no_verdict(study_dir, written):
    complete(study_dir, seeds=(0,))
    write_results(study_dir)
    text = in_terminal(study_dir, 100)
    if written == "report.md":
        text = (study_dir / written).read_text()
    assert ONE_SEED in text
    assert "separable" not in text
    assert "±" not in text


def test_the_table_has_one_row_a_variant_and_units_in_its_columns(study_dir):
    partial(study_dir)
    write_results(study_dir)
    rows = list(csv.DictReader(io.StringIO((study_dir / "table.csv").read_text())))
    assert {row["variant"] for row in rows} == set(LOSSES)
    mha, gqa_1 = rows[0], next(row for row in rows if row["variant"] == "gqa_1")
    assert float(mha["validation_loss_nats_per_token"]) == pytest.approx(5.102)
    assert mha["peak_memory_bytes"] == str(3 * 2**30)
    assert (mha["seeds_finished"], mha["seeds_planned"]) == ("2", "3")
    assert (gqa_1["rank"], gqa_1["seeds_failed"]) == ("", "1")
    assert gqa_1["validation_loss_nats_per_token"] == ""


@pytest.mark.parametrize("make", [complete, partial, plan], ids=["complete", "partial", "planned"])
def test_the_picture_is_drawn_at_any_stage_in_time(study_dir, make):
    make(study_dir)
    write_report(study_dir)  # the first ever on a machine makes the font cache, too
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 5
    width, height = size_of((study_dir / "comparison.png").read_bytes())
    assert width == 1800
    assert 700 < height < 1800


def test_the_same_study_gives_the_same_picture(study_dir, monkeypatch):
    complete(study_dir)
    write_report(study_dir)
    first = (study_dir / "comparison.png").read_bytes()
    monkeypatch.setitem(
        mpl.rcParams, "axes.facecolor", "red"
    )  # nor do a user's own settings matter
    (study_dir / "comparison.png").unlink()
    write_report(study_dir)
    assert (study_dir / "comparison.png").read_bytes() == first
    assert mpl.rcParams["axes.facecolor"] == "red"


def test_one_far_variant_does_not_squash_the_others():
    near = [Extent(5.0 + i / 100, 5.01 + i / 100) for i in range(10)]
    assert window([*near, Extent(6.2, 6.21)]) == window(near)
    assert window([Extent(1.0, 1.01), *near]) == window(near)
    low, high = window([Extent(1.0, 1.0), Extent(2.0, 2.0), Extent(9.0, 9.0)])
    assert low < 1 < 9 < high
    low, high = window([Extent(5.0, 5.0)])
    assert low < 5 < high


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_the_terminal_table_fits_and_names_stay_whole(study_dir, width):
    complete(study_dir)
    lines = in_terminal(study_dir, width).splitlines()
    assert max(len(line) for line in lines) <= width
    rows = [line for line in lines if line.lstrip()[:2] in {"1 ", "2 ", "3 ", "4 ", "5 ", "6 "}]
    assert len(rows) == len(LOSSES)
    assert "hybrid 3:1  " in rows[0]
    assert "5.0507 ± 0.0070" in rows[0]
    assert any("too narrow for: mechanism" in line for line in lines) == (width < 120)


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
    assert changed == {"comprehensive_results.json", "failures.json", "report.md", "table.csv"}


def test_the_report_says_from_when_to_when_runs_started_and_not_when_each_did(study_dir):
    plan(study_dir)
    for seed in (0, 1, 2):
        finish(study_dir, "mha", seed)
    write_report(study_dir)
    assert "| runs started | 12:00 to 12:02 |" in (study_dir / "report.md").read_text()
