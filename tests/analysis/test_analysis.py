"""What a study folder says, and how sure one may be of it."""

import json
import math
import random
import time
from dataclasses import replace

import pytest
from matplotlib.figure import Figure
from scipy import stats
from support.fake_workers import TUNED, ladder, law_on_ladder, make, work
from support.reported_study import edit, steady, write_study

from attnlab.analysis.analysis import analyse, analysis_of
from attnlab.analysis.curves import Curve
from attnlab.analysis.efficiency import Span, first_reached
from attnlab.analysis.settings import describe, shared_and_own
from attnlab.analysis.statistics.paired import Estimate, paired_difference
from attnlab.analysis.table import Run, Table, read_table, variant_of
from attnlab.record import RunFolder, Rung, StudyRecord, recorded_run
from attnlab.reporting import files
from attnlab.reporting.figures.comparison import panel_pdfs
from attnlab.reporting.figures.scaling import scaling_differences, scaling_laws, speedups
from attnlab.reporting.figures.styles import matplotlib_style, styles_in
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.tables.data_files import csv_table, results
from attnlab.reporting.tables.latex import latex


@pytest.fixture
def study(tmp_path):
    StudyRecord(
        name="toy",
        question="Which?",
        baseline="mha",
        variants=("mha", "mla", "mqa"),
        seeds=(0, 1, 2),
        command="attnlab run toy",
        attnlab_version="0.1.0",
    ).write(tmp_path)
    return tmp_path


def begin(study, variant, seed):
    run = RunFolder(study, variant, seed)
    run.open({"identity": variant, "train": {"steps": 200}}, {"device": "cpu"})
    return run


def finish(study, variant, losses, step_time=0.002):
    """One finished run for each seed that has a loss."""
    for seed, loss in losses.items():
        run = begin(study, variant, seed)
        run.append({"step": 100, "eval_loss": loss + 1})
        run.append({"step": 200, "eval_loss": loss})
        run.finish(
            {
                "status": "finished",
                "final_loss": loss,
                "final_perplexity": math.exp(loss),
                "test_loss": None,
                "step_time": step_time,
                "steps": 200,
                "attention_type": ["delta", "delta", "mha"],
                "parameters": {"embedding": 1, "total": 3},
            }
        )


def test_each_run_is_read_once(tmp_path, monkeypatch):
    replace(TUNED.record(command="", checked=False), name="toy").write(tmp_path)
    runs = work(make(TUNED, tmp_path))
    read, read_run_files = [], recorded_run.read_run_files
    monkeypatch.setattr(
        recorded_run, "read_run_files", lambda folder: read_run_files(read.append(folder) or folder)
    )
    analyse(tmp_path)
    assert len(read) == len({*read}) == len(runs)


def test_a_study_that_has_not_begun_can_be_read(study):
    table = read_table(study)
    assert [variant.name for variant in table.variants] == ["mha", "mla", "mqa"]
    assert table.ranked == ()
    assert table.remaining == 9
    assert table.most_seeds == 0


def test_numbers_are_means_and_sample_spreads_over_seeds(study):
    finish(study, "mha", {0: 5.0, 1: 5.2, 2: 5.4})
    mha = read_table(study).ranked[0]
    assert mha.numbers["final_loss"].mean == pytest.approx(5.2)
    assert mha.numbers["final_loss"].spread == pytest.approx(0.2)
    assert mha.numbers["final_loss"].n == 3
    assert mha.numbers["steps"].mean == 200
    assert "test_loss" not in mha.numbers
    assert mha.mechanism == "delta, mha in layer 2"
    assert mha.parameters["total"] == 3


def test_the_perplexity_of_a_variant_is_exp_of_its_mean_loss(study):
    finish(study, "mha", {0: 1.0, 1: 3.0})
    perplexity = read_table(study).ranked[0].numbers["final_perplexity"]
    assert perplexity.mean == pytest.approx(math.exp(2))
    assert perplexity.spread == pytest.approx((math.exp(3) - math.exp(1)) / math.sqrt(2))


def test_one_seed_has_no_spread_and_no_interval(study):
    finish(study, "mha", {0: 5.0})
    assert read_table(study).ranked[0].numbers["final_loss"].spread is None
    difference = paired_difference({0: 5.1}, {0: 5.0})
    assert (difference.mean, difference.interval) == (pytest.approx(0.1), None)


def test_the_paired_interval_equals_the_one_computed_by_hand():
    # differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(0.975, 2) = 4.302653
    difference = paired_difference({0: 5.1, 1: 6.2, 2: 7.3}, {0: 5.0, 1: 6.0, 2: 7.0})
    assert difference.mean == pytest.approx(0.2)
    assert difference.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert difference.interval == pytest.approx((-0.0484, 0.4484), abs=1e-4)


def test_the_paired_interval_equals_scipys():
    first, second = [5.11, 5.09, 5.13, 5.1], [5.02, 5.04, 5.01, 5.05]
    difference = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert difference.interval == pytest.approx((expected.low, expected.high))


def test_only_seeds_that_both_finished_are_paired():
    difference = paired_difference({1: 6.1, 2: 7.3}, {0: 5.0, 1: 6.0, 2: 7.0})
    assert (difference.n, difference.mean) == (2, pytest.approx(0.2))
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_diverged_seed_is_counted_and_listed_and_its_variant_still_ranked(study):
    finish(study, "mha", {0: 5.0, 1: 5.2, 2: 5.4})
    finish(study, "mla", {0: 4.9})
    begin(study, "mla", 1).finish({"status": "diverged", "reason": "loss is nan", "final_loss": 9})
    begin(study, "mla", 2).fail("out of memory")
    table = read_table(study)
    mla = table.ranked[0]
    assert (mla.name, len(mla.finished), len(mla.runs)) == ("mla", 1, 3)
    assert mla.numbers["final_loss"].mean == 4.9
    assert [(v.name, run.seed, run.status, run.reason) for v, run in table.failures] == [
        ("mla", 1, "diverged", "loss is nan"),
        ("mla", 2, "failed", "out of memory"),
    ]


def test_a_variant_without_a_finished_seed_is_kept_without_a_rank(study):
    finish(study, "mha", {0: 5.0})
    begin(study, "mla", 0).append({"step": 100, "eval_loss": 6.0})
    table = read_table(study)
    assert [variant.name for variant in table.unranked] == ["mla", "mqa"]
    assert table.unranked[0].curve("eval_loss").mean == (6.0,)
    assert table.remaining == 8


def test_curves_are_means_at_the_steps_that_every_seed_reached():
    runs = {
        0: [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}, {"step": 3, "other": 0}],
        1: [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 5.0}],
        2: [],
    }
    curve = Curve.of(runs, "loss")
    assert (curve.steps, curve.mean) == ((1,), (2.0,))
    assert curve.by_seed == {0: ((1, 2), (1.0, 2.0)), 1: ((1, 3), (3.0, 5.0))}
    assert Curve.of({}, "loss").steps == ()


def test_curves_are_subtracted_seed_by_seed():
    first = Curve.of({0: [{"step": 1, "loss": 3.0}], 1: [{"step": 1, "loss": 9.0}]}, "loss")
    second = Curve.of({0: [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}]}, "loss")
    assert first.minus(second).mean == (2.0,)


def test_equal_values_are_their_own_mean():
    assert Estimate.of([0.1] * 3).mean == 0.1
    assert Estimate.of([]) is None


def test_settings_are_split_into_shared_and_own():
    shared, own = shared_and_own(
        {
            "a": {"variant": "a", "seed": 0, "train": {"steps": 1}, "model": {"window": 2}},
            "b": {"variant": "b", "seed": 1, "train": {"steps": 1}, "model": {}},
        }
    )
    assert shared == {"train.steps": 1}
    assert own == {"a": {"model.window": 2}, "b": {}}


def test_mechanisms_by_layer_are_one_setting_in_words():
    delta, mha = {"kind": "delta", "head_dim": 64}, {"kind": "mha"}
    by_layer = {"default": delta, "layers": {"5": mha, "11": mha}}
    shared, own = shared_and_own(
        {
            "hybrid": {"model": {"mechanisms": by_layer, "n_layers": 12}},
            "mha": {"model": {"mechanisms": [mha], "n_layers": 12}},
        }
    )
    assert shared == {"model.n_layers": 12}
    assert {
        name: {path: describe(value) for path, value in of.items()} for name, of in own.items()
    } == {
        "hybrid": {"model.mechanisms": "delta(head_dim=64), mha in layers 5 and 11"},
        "mha": {"model.mechanisms": "mha"},
    }
    assert describe({"default": None, "layers": {"0": mha, "1": delta}}) == (
        "mha in layer 0, delta(head_dim=64) in layer 1"
    )


def test_the_loss_by_position_is_a_mean_over_seeds(study):
    for seed, shift in ((0, 0.0), (1, 0.2)):
        bins = {"first": [0, 1, 2, 4], "loss": [9 + shift, 8 + shift, 7 + shift, 6 + shift]}
        begin(study, "mha", seed).finish(
            {"status": "finished", "final_loss": 6.0, "final_loss_by_position": bins}
        )
    curve = read_table(study).ranked[0].by_position("final")
    assert curve.steps == (0, 1, 2, 4)
    assert curve.mean == pytest.approx((9.1, 8.1, 7.1, 6.1))
    assert read_table(study).ranked[0].by_position("test").steps == ()


def test_a_hundred_runs_are_analysed_in_seconds(tmp_path):
    losses = {f"v{place}": steady(5 + place / 100, place) for place in range(20)}
    write_study(tmp_path, losses, baseline="v0")
    start = time.process_time()
    found = analyse(tmp_path)
    assert time.process_time() - start < 15  # on a busy machine
    assert len(found.pairs) == 20 * 19
    assert found.diverged["v3"] == (0, 5)


def test_diverged_and_failed_runs_are_counted_of_those_planned(tmp_path):
    losses = {"mha": [5.0, 5.1, None], "wild": ["loss is nan", "failed: no memory", 5.0]}
    assert analyse(write_study(tmp_path, losses)).diverged == {"mha": (0, 3), "wild": (2, 3)}


def test_analysis_and_report_do_without_torch():
    import subprocess
    import sys

    modules = "attnlab.reporting.figures.comparison, attnlab.reporting"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_of_unlike_runs_is_reported_as_no_fair_comparison(tmp_path):
    losses = {"mha": steady(5.0, 1), "identity": steady(4.5, 2)}
    fair = analyse(str(write_study(tmp_path / "fair", losses)))
    assert fair.table.unfair == ()
    folder = write_study(tmp_path / "unlike", losses)
    for run in StudyRecord.read(folder).runs(folder)["identity"]:
        edit(run.path / "config.json", train={**run.config()["train"], "steps": 200})
    unlike = analyse(folder)
    assert unlike.table.unfair == ("training steps: not recorded in mha; 200 in identity",)
    text = markdown(unlike, None)
    assert text.index("Not a fair comparison. The runs differ in:") < text.index(unlike.headline[0])


def in_memory(folder, variants, seeds):
    """A table of many variants without a file."""
    draw = random.Random(0)
    runs = {
        f"v{v}": tuple(
            Run(
                seed=seed,
                status="finished",
                reason=None,
                summary={
                    "status": "finished",
                    "final_loss": 5 + v / 200 + draw.gauss(0, 0.02),
                    "step_time": 0.001 * (1 + v % 7) + draw.gauss(0, 1e-5),
                    "state_bytes": 1000 * (1 + v % 11),
                    "parameters": {"total": 10**6 + 1000 * v},
                },
                config={"model": {"mechanisms": [{"kind": f"m{v}", "kernel": "x"}] * 12}},
                environment={},
                metrics=(),
            )
            for seed in range(seeds)
        )
        for v in range(variants)
    }
    study = StudyRecord(
        name="many",
        question="Which?",
        baseline="v0",
        variants=tuple(runs),
        seeds=tuple(range(seeds)),
        command="attnlab run many",
        attnlab_version="0.1.0",
    )
    return Table(
        path=folder,
        study=study,
        variants=tuple(variant_of(name, folder / name, of) for name, of in runs.items()),
    )


def test_two_hundred_variants_are_analysed_in_seconds(tmp_path):
    table = in_memory(tmp_path, 200, 3)
    began = time.process_time()
    found = analysis_of(table)
    assert time.process_time() - began < 10
    assert len(found.pairs) == 200 * 199
    assert found.pairs["v199", "v0"].separable
    assert found.fronts[0].front


def falling(*by_seed):
    """A curve of evaluations every 100 steps, from step 100; one list of losses per seed."""
    runs = {
        seed: [{"step": 100 * (i + 1), "loss": loss} for i, loss in enumerate(losses)]
        for seed, losses in enumerate(by_seed)
    }
    return Curve.of(runs, "loss")


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        # a line from 5 at step 100 to 3 at step 300 is at 4 at step 200, at 3.5 at step 250
        (falling([5, 4, 3]), [4], (200, None, None)),
        (falling([5, 4, 3]), [3.5], (250, None, None)),
        (falling([5, 4, 3]), [2.9], (None, None, None)),  # not reached; one seed has no interval
        (falling([5, 4, 3]), [6], (100, None, None)),
        (falling([5, 3, 4, 2]), [3.5], (175, None, None)),  # the first time
        # equal curves leave no doubt
        (falling([5, 4, 3], [5, 4, 3]), [3.5, 3.5], (250, 250, 250)),
        # each seed against its own target: what the seeds share cancels
        (falling([5, 4, 3], [6, 5, 4]), [3.5, 4.5], (250, 250, 250)),
        # differences to the target of 1.5, 0.5, -0.5 with ± t(0.975, 2) 0.1 / sqrt(3) = 0.2484:
        # the ends cross 0 at 250 -+ 24.84
        (falling([5, 4, 3], [4.9, 3.9, 2.9], [5.1, 4.1, 3.1]), [3.5] * 3, (250, 225.16, 274.84)),
        # the mean is reached, the upper end is not
        (falling([5, 4, 3], [4.9, 3.9, 2.9], [5.1, 4.1, 3.1]), [3.1] * 3, (290, 265.16, None)),
        # the lower end alone
        (falling([5, 4, 3], [4.9, 3.9, 2.9], [5.1, 4.1, 3.1]), [2.8] * 3, (None, 295.16, None)),
    ],
)
def test_when_a_known_curve_reaches_a_target(curve, target, expected):
    found = first_reached(curve, dict(enumerate(target)))
    assert (found.value, found.low, found.high) == pytest.approx(expected, abs=0.01)
    assert found.at_most == (found.value == 100)  # at the first evaluation or before


def test_more_comparisons_at_once_widen_the_interval():
    curve = falling([5, 4, 3], [4.9, 3.9, 2.9], [5.1, 4.1, 3.1])
    alone, of_three = (first_reached(curve, dict.fromkeys(range(3), 3.5), n) for n in (1, 3))
    assert of_three.low < alone.low < alone.high < of_three.high
    assert Span(value=2.0, low=1.0).times(3) == Span(value=6.0, low=3.0)


@pytest.fixture
def three_curves(tmp_path):
    """A baseline, a variant that is twice as fast, and one that does not get there."""
    slopes = {"mha": 1.0, "fast": 2.0, "slow": 0.5}
    write_study(tmp_path, {name: [0.0] * 3 for name in slopes})
    for name, slope in slopes.items():
        for seed in range(3):
            run, own = RunFolder(tmp_path, name, seed), 0.01 * seed
            lines = [
                {"step": s, "eval_loss": 9 + own - slope * s / 100, "train_seconds": s * (1 + own)}
                for s in (100, 200, 300, 400)
            ]
            (run.path / "metrics.jsonl").write_text("".join(json.dumps(it) + "\n" for it in lines))
            edit(run.path / "summary.json", final_loss=5 + own, steps=400, tokens=4000)
    return tmp_path


def test_steps_tokens_and_seconds_to_the_loss_of_the_baseline_are_in_the_report(three_curves):
    found = analyse(three_curves).efficiency
    assert (found.of, found.target, found.last) == ("mha", pytest.approx(5.01), 400)
    fast, slow, own = (found.variants[name] for name in ("fast", "slow", "mha"))
    assert (fast.steps.value, fast.tokens.value) == pytest.approx((200, 2000))
    assert fast.seconds.value == pytest.approx(202, rel=1e-3)
    # t(1 - 0.05 / 8, 2) 2 / sqrt(3): the spread of the times over the seeds, for two variants
    width = stats.t.ppf(1 - 0.05 / 8, 2) * 2 / 3**0.5
    assert math.log(fast.seconds.high / 202) == pytest.approx(width / 202, rel=0.01)
    assert (fast.speedup, own.speedup, own.steps) == (2, 1, Span(value=400, low=400, high=400))
    assert slow.steps == Span(value=None)
    written = {name: of["to_target"] for name, of in results(analyse(three_curves)).items()}
    exact, never = written["mha"]["steps"], written["slow"]["tokens"]
    assert [exact[end] for end in ("value", "low", "high")] == [400] * 3
    assert [never[end] for end in ("value", "low", "high")] == [None] * 3
    text = markdown(analyse(three_curves), "comparison.png")
    assert "Until 5.0100 nats/token, the validation loss with which mha ends" in text
    assert "| fast | 200 | 2.00 K | 202 \\[" in text
    assert "| slow | not reached in 400 | not reached | not reached | – |" in text


def test_a_target_of_ones_own_is_kept(three_curves, monkeypatch):
    monkeypatch.setattr(files, "write_comparison", lambda analysis: None)  # draws, for seconds
    found = files.report(three_curves, target_loss=8.01).efficiency
    assert (found.of, found.target) == (None, 8.01)
    assert found.variants["mha"].steps.value == pytest.approx(100)
    assert found.variants["slow"].steps.value == pytest.approx(200)
    assert analyse(three_curves).efficiency == found
    assert "≤ 100" in markdown(analyse(three_curves), "comparison.png")
    record = StudyRecord.read(three_curves)  # a study that names none keeps it
    assert replace(record, target_loss=None).joined(three_curves).target_loss == 8.01
    with pytest.raises(ValueError, match="target loss: must not be negative or infinite, got nan"):
        files.report(three_curves, target_loss=math.nan)


def test_a_ladder_is_compared_within_a_size_and_length_and_what_is_missing_is_said(tmp_path):
    sizes, budgets = {"small": 1e6, "middle": 3e6, "large": 9e6}, {"short": 1e6, "long": 1e7}
    rungs = {
        f"{family}_{size}_{budget}": Rung(family, size, budget)
        for family in ("mha", "delta", "other")
        for size in sizes
        for budget in budgets
    }
    StudyRecord(
        name="ladder",
        question="?",
        baseline="mha_large_long",
        variants=tuple(rungs),
        seeds=(0, 1, 2),
        command="",
        attnlab_version="0",
        ladder=rungs,
    ).write(tmp_path)
    for name, (family, size, budget) in rungs.items():
        parameters, tokens = sizes[size], budgets[budget]
        flops = 6 * parameters * tokens
        for seed in range(3) if name != "other_large_long" else ():
            run = RunFolder(tmp_path, name, seed)
            run.open({"identity": f"{name}{seed}", "train": {"steps": int(tokens / 1e4)}}, {})
            loss = 2 + 4 * (flops / 1e12) ** -0.2 - 0.1 * (family == "delta") + 0.002 * seed
            parts = {"embedding": 100, "total": int(parameters) + 100}
            run.finish(
                {
                    "status": "finished",
                    "final_loss": loss,
                    "tokens": int(tokens),
                    "training_flops": flops,
                    "train_time": flops / 1e13,
                    "parameters": parts,
                }
            )
    found = analyse(tmp_path)
    assert set(found.order) == {"mha_large_long", "delta_large_long"}
    assert len(found.scaling.cells) == 6
    assert found.scaling.missing == {"other": ("other_large_long",)}
    assert set(found.scaling.along) == {"flops", "parameters", "tokens", "seconds"}
    assert found.scaling.along["parameters"].fits["mha"].range == (1e6, 9e6)
    faster = found.scaling.along["flops"].speedups["delta"]
    assert 1 < faster.interval[0] < faster.ratio < faster.interval[1]
    report = markdown(found, None)
    assert "## Scaling" in report
    assert "other has no loss that is compared of other_large_long." in report


@pytest.fixture(scope="module")
def worked_ladder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    study = ladder("mha", "delta", seeds=3, baseline="mha_64_long")
    work(make(study, folder), law_on_ladder)
    study.record(command="", checked=True).write(folder)
    return study, read_table(folder)


@pytest.fixture
def part(worked_ladder):
    study, table = worked_ladder

    def of(*names, seeds=3):
        """The analysis of `--only` these variants (all without names), with these seeds."""
        record = (study.only(names) if names else study).record(command="", checked=True)
        variants = [
            variant_of(v.name, v.folder, v.runs[:seeds])
            for v in table.variants
            if v.name in record.variants
        ]
        record = replace(record, seeds=tuple(range(seeds)))
        return analysis_of(replace(table, study=record, variants=tuple(variants)))

    def names(*families, sizes=(16, 32, 64), lengths=("short", "long")):
        return [f"{f}_{size}_{length}" for f in families for size in sizes for length in lengths]

    of.names = names
    return of


def test_the_rates_of_a_ladder_stand_beside_those_of_the_plain_rule(part):
    found = part()
    by_place = {(it.family, it.size): it for it in found.scaling.rates}
    # m is 2 at the smallest size, 4 at the next, and 2^1.5 with q = 0, the geometric mean
    for size, own, m, searched in (
        ("2x16", 0.01, 2, ("short",)),
        ("2x32", 0.005, 4, ("short",)),
        ("2x64", 0.0025, 8, ()),
    ):
        it = by_place["delta", size]
        assert (it.budgets, it.searched) == (("short", "long"), searched)
        assert (it.rate, it.own, it.factor) == pytest.approx((0.02, own, m), rel=1e-4)
        assert (it.exponent, it.plain) == pytest.approx((0.5, own * 2**1.5), rel=1e-4)
    text = markdown(found, None)
    assert "| delta | 2x64 | short, long | carried | 0.02 | 8 | +0.500 | 0.00707 | 2.83x |" in text
    assert "Carried rates are 2.83 to 2.83 times those with q = 0" in text
    assert "Learning rates: carried along the ladder for 2 variants, from the searches of" in text


def test_a_ladder_without_a_search_has_no_table_of_rates(worked_ladder, part, monkeypatch):
    monkeypatch.setattr("attnlab.analysis.rates.read_tuning_choice", lambda *_: {})
    monkeypatch.setattr("attnlab.analysis.rates.tuning_runs", lambda *_: [])
    found = part()
    assert found.headline[0].startswith("At this recipe, delta scales better than mha")
    text = markdown(found, None)
    assert "Peak learning rates along the ladder" not in text
    assert "not tuned: each variant trained with the rate in its settings" in text
    assert "the intervals of one row hold at once, of seeds. n.s.:" in text


def test_a_family_that_lacks_a_size_is_fitted_to_the_others(part):
    found = part(*part.names("mha"), *part.names("delta", sizes=(16, 32)))
    assert found.scaling.along["parameters"].fits["delta"].range == (2 * 16**2, 2 * 32**2)
    assert found.order == ("mha_64_long",)
    text = markdown(found, None)
    assert "| 2x64 | long | 3.3930 | – |" in text
    assert "No error for delta, and nothing at ten times the largest run: without one size" in text
    assert found.scaling.along["parameters"].fits["delta"].extrapolated is None
    assert found.scaling.along["parameters"].fits["mha"].extrapolated[0] == 10 * 2 * 64**2


def test_a_family_without_the_baselines_is_shown_by_its_losses(part):
    found = part(*part.names("delta"))
    assert (found.scaling.families, found.scaling.baseline) == (("delta",), "mha")
    assert set(found.scaling.along["flops"].fits) == {"delta"}
    assert found.scaling.along["flops"].speedups == {}
    assert "(loss): there is no mha to compare with." in markdown(found, None)


def test_one_cell_of_a_ladder_is_a_study_like_any_other(part):
    found = part("mha_16_short", "delta_16_short")
    assert found.scaling is None
    assert (found.baseline, set(found.to_baseline)) == ("mha_16_short", {"delta_16_short"})
    waiting = part("mha_16_short", seeds=1)
    assert "--seeds 4" in waiting.headline[1]
    begun = replace(waiting.whole, study=replace(waiting.whole.study, seeds=(0, 1, 2)))
    assert "--seeds" not in analysis_of(begun).headline[1]  # more are planned
    alone = part("delta_16_short")
    assert (alone.scaling, alone.order) == (None, ("delta_16_short",))


def test_a_ladder_of_one_size_has_a_law_along_tokens_and_one_length_along_parameters(part):
    wide = part(*part.names("mha", "delta", sizes=(64,))).scaling.along
    assert "parameters" not in wide
    assert wide["tokens"].fits["mha"].error is None
    short = part(*part.names("mha", "delta", lengths=("short",))).scaling.along
    assert "tokens" not in short
    assert short["parameters"].fits["mha"].error is not None


def test_one_seed_of_a_ladder_has_no_intervals_and_says_so(part):
    found = part(seeds=1)
    for along in found.scaling.along.values():
        assert {fit.exponent for fit in along.fits.values()} == {None}
        assert {fit.extrapolated for fit in along.fits.values()} == {None}
        assert {gained.interval for gained in along.speedups.values()} == {None}
        assert not any(it.shown or it.excluded for it in along.crossovers)
    text = markdown(found, None)
    assert "one seed per variant gives no intervals, so that no difference is shown" in text
    assert "No intervals, and nothing at ten times the largest run: some have one seed." in text
    assert "Without intervals, no crossover is shown or excluded." in text


def test_every_file_of_a_ladder_has_all_sizes_and_lengths_and_compares_within_each(
    part, empty_charts
):
    found = part()
    said = "delta scales better than mha, by effective speedup in training FLOPs: delta 1."
    assert found.headline[0].startswith(said)
    assert found.headline[1].startswith("At 2x64, long, delta_64_long")
    assert "Against mha, of 6 sizes and lengths: delta better in 6." in found.headline[1]
    panels = ("scaling", "scaling_differences", "speedup")
    assert tuple(panel_pdfs(found))[:3] == panels  # before those of the largest size
    shown = page(found)
    assert shown.index("Effective speedup in training FLOPs") < shown.index('id="answer"')
    assert not set(panels) & set(panel_pdfs(part("mha_16_short", "delta_16_short")))
    written = results(found)
    assert set(written) == set(part.names("mha", "delta"))
    for name, of in written.items():
        assert (of["size"], of["length"]) == tuple(found.whole.study.ladder[name][1:])
        assert of["rank"] == (1 if name.startswith("delta") else 2)
    assert csv_table(found).count("\n") == 1 + 12
    tables = latex(found)
    assert tables.count(r"\begin{table}") == 6
    assert r"\label{tab:2x16-short}" in tables.replace("tab:-", "tab:")
    assert "loss at 2x16, short of 2 variants" in tables
    alone = part("mha_16_short", "delta_16_short")
    assert (alone.scope, len(alone.groups)) == ("", 1)


def test_every_family_of_a_ladder_has_its_line_whatever_the_largest_size_holds(part):
    found = part(*part.names("mha"), *part.names("delta", sizes=(16, 32)))
    styles, along = styles_in(found), found.scaling.along["flops"]
    with matplotlib_style():
        left, right = Figure().subplots(1, 2)
        scaling_laws(left, along, styles, str)
        scaling_differences(right, along, "mha", styles, str)
    assert [text.get_text() for text in left.texts] == ["mha", "delta"]
    assert [text.get_text() for text in right.texts] == ["delta"]
    low, high = right.get_ylim()
    assert low < -0.1 < 0 < high  # delta is a tenth better at every size and length
    assert {axes.get_xscale() for axes in (left, right)} == {"log"}
    assert min(len(axes.get_xticks()) for axes in (left, right)) >= 3
    open_end = replace(along.speedups["delta"], ratio=1.2, interval=(0.5, math.inf))
    speedups(below := Figure().subplots(), replace(along, speedups={"delta": open_end}), styles)
    assert [text.get_text() for text in below.texts] == ["1.20 [0.50, ∞]"]
