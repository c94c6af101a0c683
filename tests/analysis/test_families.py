"""All variants together, families against each other, and what is gained for the size.

Controls tie, and how much the learning rate matters follows from the tuning runs.
"""

import json
import math
import random
from dataclasses import replace

import pytest
from support import tiny_study
from support.reported_study import edit, steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.controls import controls_of
from attnlab.analysis.families import dominating, range_by_chance
from attnlab.analysis.rates import rate_curves
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.config import ConfigError
from attnlab.record import TUNING_SEED, RunFolder, StudyRecord, write_tuning_choice
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.tables.data_files import csv_table, results
from attnlab.reporting.tables.text_tables import family_tables

FAMILIES = {"plain": ("mha",), "low": ("low_a", "low_b"), "wide": ("wide_a", "wide_b")}
LOSSES = {
    "mha": steady(5.1, 1),
    "low_a": steady(5.0, 2),
    "low_b": steady(5.04, 3),
    "wide_a": steady(5.0, 4),
    "wide_b": steady(5.3, 5),
}
MORE = {
    name: {
        "parameters": {"total": size, "active": size // 2},
        "peak_memory_bytes": 10 * size,
        "step_time": 0.01,
        "final_accuracy": 0.3,
    }
    for name, size in zip(LOSSES, (100e6, 80e6, 90e6, 125e6, 150e6), strict=True)
}


def analysed(folder, losses=LOSSES, families=FAMILIES, **more):
    return analyse(write_study(folder, losses, families=families, **(MORE | more)))


def cells(grid, name):
    (line,) = [line for line in grid.lines if line[0] == name]
    return dict(zip(grid.heading, line, strict=True))


def test_a_family_is_the_mean_of_its_variants(tmp_path):
    found = analysed(tmp_path).families
    assert [family.name for family in found.families] == ["low", "plain", "wide"]
    low, plain, wide = found.families
    assert low.loss == pytest.approx(5.02)
    assert found.reference == "plain"
    assert low.to_reference.mean == pytest.approx(-0.08)
    assert low.to_reference.separable
    assert low.to_reference.low < -0.08 < low.to_reference.high < 0
    assert plain.to_reference is None
    assert [family.letters for family in found.families] == [("a",), ("b",), ("c",)]
    assert wide.to_reference.separable


def test_a_family_counts_every_run_of_its_variants(tmp_path):
    losses = LOSSES | {"low_b": [*LOSSES["low_b"][:3], None, None]}
    low = next(f for f in analysed(tmp_path, losses).families.families if f.name == "low")
    assert low.loss == pytest.approx(5.02, abs=0.003)
    assert low.to_reference.separable


def test_families_within_the_noise_are_not_told_apart(tmp_path):
    draw = random.Random(1)
    losses = {name: [5 + draw.gauss(0, 0.05) for _ in range(3)] for name in LOSSES}
    analysis = analysed(tmp_path, losses)
    assert {family.letters for family in analysis.families.families} == {("a",)}
    table = family_tables(analysis)[1]
    assert cells(table, "low")["vs reference"] in ("n.s.", "not worse")
    assert cells(table, "plain")["vs reference"] == "reference"


def test_families_have_the_error_rate_of_a_look_where_seeds_are_added(tmp_path):
    fixed = {family.name: family for family in analysed(tmp_path).families.families}
    replace(StudyRecord.read(tmp_path), most_seeds=10).write(tmp_path)
    for family in analyse(tmp_path).families.families:
        if family.name != "plain":
            before = fixed[family.name].to_reference
            assert family.to_reference.half_width > 1.1 * before.half_width


def test_a_variant_that_is_not_compared_is_named_and_its_family_goes_on_without(tmp_path):
    analysis = analysed(tmp_path, LOSSES | {"low_b": ["loss is nan"] * 5})
    low = next(f for f in analysis.families.families if f.name == "low")
    assert low.variants == ("low_a",)
    assert analysis.families.left_out == {"low": ("low_b",)}
    assert "Not compared: low_b of low." in family_tables(analysis)[1].note


def test_mean_spread_and_range_of_every_number(tmp_path):
    analysis = analysed(tmp_path)
    table = family_tables(analysis)[0]
    loss = next(it for it in analysis.spreads if it.label == "loss")
    assert loss.mean == pytest.approx(5.088)
    assert loss.range == pytest.approx(0.3)
    assert loss.deviation == pytest.approx(0.1247, abs=1e-3)
    assert cells(table, "loss")["highest"] == "5.3000 (wide_b)"
    assert cells(table, "parameters")["lowest"] == "80.0 M (low_a)"
    assert cells(table, "active parameters")["range"] == "35.0 M"
    assert cells(table, "peak memory")["highest"] == "1.40 GiB (wide_b)"
    assert cells(table, "time of a training step")["mean"] == "10.0 ms"
    assert cells(table, "accuracy")["mean"] == "0.3000"
    assert "wide_b" in table.note


def test_the_range_that_noise_alone_makes_is_the_range_that_it_makes(tmp_path):
    draw, ranges = random.Random(0), []
    for _ in range(4000):
        means = [sum(draw.gauss(0, 1) for _ in range(3)) / 3 for _ in range(5)]
        ranges.append(max(means) - min(means))
    analysis = replace(analysed(tmp_path), residual_sd=1.0, runs=dict.fromkeys(LOSSES, 3))
    assert range_by_chance(analysis) == pytest.approx(sum(ranges) / len(ranges), rel=0.03)


def test_size_and_loss_are_shown_side_by_side_and_never_divided(tmp_path):
    analysis = analysed(tmp_path)
    first, *_, last = analysis.sizes
    assert (first.name, first.more, first.trade) == ("low_a", -20e6, "smaller, better")
    assert first.difference == analysis.to_baseline["low_a"]
    assert (last.name, last.trade) == ("wide_b", "larger, worse")
    row = cells(family_tables(analysis)[2], "low_a")
    assert row["Δ parameters vs mha"] == "-20.0 M"
    assert row["size and loss"] == "smaller, better"
    assert "low_a and low_b have fewer parameters than mha and are not worse" in dominating(
        analysis.sizes, analysis
    )


def test_a_size_without_a_difference_supports_nothing(tmp_path):
    draw = random.Random(1)
    losses = {name: [5 + draw.gauss(0, 0.05) for _ in range(3)] for name in LOSSES}
    analysis = analysed(tmp_path / "noise", losses)
    assert {it.trade for it in analysis.sizes} == {"smaller, n.s.", "larger, n.s."}
    said = dominating(analysis.sizes, analysis)
    assert said.startswith("No variant with fewer parameters than mha is shown not to be worse")
    assert said in markdown(analysis, None)
    one = analysed(tmp_path / "one", {name: found[:1] for name, found in LOSSES.items()})
    assert "one seed" in dominating(one.sizes, one)


def test_the_tables_stand_in_the_reports_of_a_study_with_families_alone(tmp_path, empty_charts):
    heading = "All variants and families"
    analysis = analysed(tmp_path / "with")
    for text in (markdown(analysis, None), page(analysis)):
        assert heading in text
        assert "Size and loss" in text
    without = analysed(tmp_path / "without", families=None)
    assert without.families is None
    assert heading not in markdown(without, None) + page(without)


def test_active_parameters_are_shown_where_not_all_are(tmp_path):
    assert "| parameters (M) | active parameters (M) |" in markdown(
        analysed(tmp_path / "some"), None
    )
    dense = {name: {"parameters": {"total": 5, "active": 5}} for name in LOSSES}
    assert "| active parameters" not in markdown(analysed(tmp_path / "all", **dense), None)


def test_families_name_variants_that_there_are_once_each():
    with pytest.raises(ConfigError, match=r"families\.one: no variant 'mhb'; did you mean 'mha'"):
        replace(tiny_study.study, families={"one": ("mhb",)})
    with pytest.raises(ConfigError, match=r"families\.two: mha is also in one"):
        replace(tiny_study.study, families={"one": ("mha",), "two": ("mqa", "mha")})


def test_families_are_kept_where_some_variants_are_run_again(tmp_path):
    families = {"heads": ("mha", "mqa"), "none": ("identity",)}
    study = replace(tiny_study.study, name="tiny", families=families)
    study.record(command="a", checked=True).write(tmp_path)
    assert StudyRecord.read(tmp_path).families == families
    some = study.only(["mqa"])
    assert some.families == {"heads": ("mqa",)}
    joined = some.record(command="b", checked=True).joined(tmp_path)
    assert joined.families == families


SAME = {"function": "gqa_1"}
MATH = {"function": "low_rank", "kernel": "math", "step_time": 0.005, "peak_memory_bytes": 4 << 30}
FLASH = MATH | {"kernel": "flash", "step_time": 0.004, "peak_memory_bytes": 3 << 30}


def controls(folder, losses, **more):
    return controls_of(verdict_of(read_table(write_study(folder, losses, **more))))


def test_variants_that_differ_in_name_alone_are_recognised(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert (control.names, control.same_recipe) == (("gqa_1", "mqa"), True)
    assert (control.largest_difference, control.ties) == (0, True)
    assert "equal to the last bit" in control.note


def test_many_names_of_one_function_are_a_sentence_of_a_few(tmp_path):
    names = [f"copy_{number}" for number in range(30)]
    losses = {name: steady(5.0, 1, seeds=2) for name in names}
    (control,) = controls(tmp_path, losses, **dict.fromkeys(names, SAME))
    assert control.names == tuple(names)
    assert control.note.startswith("copy_0, copy_1, copy_2 and 27 others are the same function")


def test_different_settings_are_no_control_even_with_equal_losses(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    assert controls(tmp_path, losses) == ()


def test_a_control_within_the_noise_ties(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 3)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert control.ties is True
    assert control.largest_difference > 0
    assert "and they are not distinguishable" in control.note


def test_a_control_that_is_separated_is_reported_as_an_error(tmp_path):
    losses = {
        "mha": steady(5.0, 1),
        "gqa_1": steady(5.1, 2),
        "mqa": steady(5.2, 3),
        "mla": steady(5.0, 4),
    }
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert control.ties is False
    assert "do not trust this verdict" in control.note


def test_a_control_with_another_rate_that_was_not_tuned_may_differ(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": [None] * 5}
    write_study(tmp_path, losses)
    for seed, loss in enumerate(steady(5.3, 3)):
        write_run(RunFolder(tmp_path, "mqa", seed), loss, rate=6e-4, function="gqa_1")
    (control,) = controls_of(verdict_of(read_table(tmp_path)))
    assert control.same_recipe is False
    assert "with different learning rates" in control.note
    assert not control.failed


@pytest.mark.parametrize(("loss", "fails"), [(5.3, True), (5.1, False)])
def test_a_control_that_is_tuned_can_fail_whatever_is_tuned(tmp_path, loss, fails):
    losses = {"mha": steady(5.0, 1), "gqa_1": [None] * 5, "mqa": [None] * 5}
    write_study(tmp_path, losses)
    settings = {"train.batch_size": [4, 8], "train.weight_decay": [0.0, 0.1]}
    edit(tmp_path / "study.json", tuning={"settings": settings})
    recipes = {
        "gqa_1": {"batch_size": 4, "steps": 80, "eval_every": 8, "weight_decay": 0.1},
        "mqa": {"batch_size": 8, "steps": 40, "eval_every": 4, "weight_decay": 0.0},
    }
    for place, (name, train) in enumerate(recipes.items(), start=2):
        of_name = loss if name == "mqa" else 5.1
        for seed, of_seed in enumerate(steady(of_name, place)):
            run = RunFolder(tmp_path, name, seed)
            write_run(run, of_seed, rate=place * 1e-3, function="gqa_1", train=train)
        write_tuning_choice(tmp_path, name, {"allowance": 0.002, "learning_rate": place * 1e-3})
    found = analyse(tmp_path)
    (control,) = found.controls
    assert (control.names, control.failed) == (("gqa_1", "mqa"), fails)
    assert "each tuned on a seed of its own" in control.note
    assert ("do not trust this verdict" in found.headline[1]) is fails


def test_without_a_verdict_a_control_is_not_judged(tmp_path):
    (control,) = controls(tmp_path, {"mha": [5.0], "gqa_1": [5.1], "mqa": [5.1]}, mqa=SAME)
    assert (control.ties, control.largest_difference) == (None, 0)


def test_variants_that_differ_in_the_kernel_alone_are_one_function_at_two_prices(tmp_path):
    losses = {"mha": steady(5.0, 1), "lora": steady(5.1, 2), "flash": steady(5.1, 3)}
    analysis = analyse(write_study(tmp_path, losses, lora=MATH, flash=FLASH))
    (control,) = analysis.controls
    assert (control.names, control.kernels) == (("lora", "flash"), ("math", "flash"))
    assert (control.same_recipe, control.ties) == (True, True)
    assert control.note.startswith(
        "lora and flash are the same function on different kernels (math, flash); their losses"
    )
    assert control.savings == (
        "flash (kernel flash) compared with lora (kernel math): 1.00 ms/step less (4.00 ms instead "
        "of 5.00 ms); 1.00 GiB less peak memory (3.00 GiB instead of 4.00 GiB)."
    )
    assert control.savings in markdown(analysis, None)
    assert [set(names) for names in analysis.functions] == [{"mha"}, {"lora", "flash"}]
    front = next(front for front in analysis.fronts if front.key == "step_time")
    assert front.front == ("flash",)  # mha, which costs nothing here, was not timed


def test_a_kernel_that_computes_something_else_is_reported_as_an_error(tmp_path):
    losses = {
        "mha": steady(5.0, 1),
        "lora": steady(5.1, 2),
        "flash": steady(5.2, 3),
        "mla": steady(5.0, 4),
    }
    (control,) = controls(tmp_path, losses, lora=MATH, flash=FLASH)
    assert control.ties is False
    assert "do not trust this verdict" in control.note


def test_a_kernel_that_buys_nothing_is_said_to_be_the_same(tmp_path):
    losses = {"lora": steady(5.1, 2), "flash": steady(5.1, 3)}
    alike = FLASH | {"step_time": 0.0051, "peak_memory_bytes": (4 << 30) + (1 << 20)}
    (control,) = controls(tmp_path / "a", losses, lora=MATH, flash=alike)
    assert "the same time within 5% (5.10 ms instead of 5.00 ms)" in control.savings
    assert "the same peak memory within 1%" in control.savings
    unlike = FLASH | {"device": "NVIDIA H200"}
    here = MATH | {"device": "NVIDIA H100"}
    (control,) = controls(tmp_path / "b", losses, lora=here, flash=unlike)
    assert control.savings == ""  # times of two devices compare nothing


def test_one_kernel_saves_nothing(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 3)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert (control.kernels, control.savings) == ((), "")


def test_a_window_that_covers_the_sequence_is_plain_attention(tmp_path):
    losses = {"mha": steady(5.0, 1), "wide": steady(5.0, 1), "narrow": steady(5.1, 2)}
    write_study(tmp_path, {name: [None] * 5 for name in losses})
    windows = {"wide": 1024, "narrow": 512}
    for name, of in losses.items():
        for seed, loss in enumerate(of):
            run = RunFolder(tmp_path, name, seed)
            mechanism = {"kind": "grouped_query", "n_heads": 4, "kernel": "auto"}
            if name in windows:
                mechanism |= {"kind": "sliding_window", "window": windows[name]}
            train = {"seq_len": 1024}
            run.open({"identity": "x", "model": {"mechanisms": [mechanism]}, "train": train}, {})
            run.finish({"status": "finished", "final_loss": loss, "alarms": []})
    verdict = verdict_of(read_table(tmp_path))
    assert verdict.functions == (("mha", "wide"), ("narrow",))
    (control,) = controls_of(verdict)
    assert control.note.startswith(
        "mha and wide are the same function (the window of wide covers the whole sequence), and"
    )


def curve(folder, losses, used=None):
    """`losses` by rate; the variant's own run has the rate `used`."""
    write_study(folder, {"mha": [None]})
    for rate, loss in losses.items():
        run = RunFolder(folder, "mha", TUNING_SEED, recipe=f"lr-{rate:g}")
        write_run(run, loss, rate=rate)
    if used is not None:
        write_run(RunFolder(folder, "mha", 0), 5.0, rate=used)
    return rate_curves(read_table(folder)).get("mha")


def parabola(rate):
    return 5 + 0.03 * math.log2(rate / 7e-4) ** 2


def test_the_curvature_of_a_parabola_is_found(tmp_path):
    found = curve(tmp_path, {rate: parabola(rate) for rate in (3e-4, 6e-4, 1.2e-3, 2.4e-3)})
    assert found.rates == (3e-4, 6e-4, 1.2e-3, 2.4e-3)
    assert (found.chosen, found.interior) == (6e-4, True)
    assert found.curvature == pytest.approx(0.03)
    assert found.within_factor_2 == pytest.approx(parabola(3e-4) - parabola(6e-4))


def test_the_rate_of_the_verdicts_runs_is_the_chosen_one(tmp_path):
    losses = {3e-4: 5.2, 6e-4: 5.0, 1.2e-3: 5.0, 2.4e-3: 5.1}
    assert curve(tmp_path, losses, used=1.2e-3).chosen == 1.2e-3


def test_a_rate_that_diverged_is_shown_and_bounds_the_bracket(tmp_path):
    found = curve(tmp_path, {3e-4: 5.2, 6e-4: 5.0, 1.2e-3: "loss is nan"})
    assert found.losses == (5.2, 5.0, None)
    assert found.interior
    assert found.curvature is None


def test_a_best_rate_at_the_edge_is_not_interior(tmp_path):
    found = curve(tmp_path, {3e-4: 5.2, 6e-4: 5.1, 1.2e-3: 5.0})
    assert (found.chosen, found.interior, found.curvature) == (1.2e-3, False, None)


def test_a_failed_tuning_run_says_nothing_of_the_rate(tmp_path):
    found = curve(tmp_path, {3e-4: 5.2, 6e-4: 5.1, 1.2e-3: "failed: out of memory"})
    assert found.rates == (3e-4, 6e-4)


def test_an_untuned_variant_has_no_curve(tmp_path):
    assert curve(tmp_path, {}, used=3e-4) is None


def test_the_allowance_of_a_grid_is_half_a_step_off_its_minimum(tmp_path):
    losses = {1e-4: 5.3, 2e-4: 5.0, 4e-4: 5.3}  # 0.3 log2(rate / 2e-4)^2
    write_study(tmp_path, {"mha": [None] * 3, "free": steady(5.0, 2)[:3]}, baseline="free")
    for seed, loss in enumerate(steady(5.0, 1)[:3]):
        write_run(RunFolder(tmp_path, "mha", seed), loss, rate=2e-4)
    for rate, loss in losses.items():
        write_run(RunFolder(tmp_path, "mha", TUNING_SEED, recipe=f"lr-{rate:g}"), loss, rate=rate)
    found = analyse(tmp_path)
    missed = pytest.approx(0.3 / 4, rel=1e-4)  # the noise of the runs hardly adds to it
    assert found.tuning.allowance == {"mha": missed}
    assert (found.tuning.derived, found.tuning.untuned) == (("mha",), ("free",))
    pair = found.pairs["free", "mha"]
    assert pair.high - pair.mean == pytest.approx(math.hypot(pair.half_width, 0.3 / 4), rel=1e-4)
    assert pair.low == pytest.approx(pair.mean - pair.half_width)


@pytest.mark.parametrize(("stated", "separable"), [(0.01, True), (None, False)])
def test_an_allowance_that_the_search_states_is_used(tmp_path, stated, separable):
    write_study(tmp_path, {"mha": steady(5.0, 1), "mla": steady(5.1, 2)})
    write_tuning_choice(tmp_path, "mla", {"allowance": stated, "learning_rate": 1e-3})
    found = analyse(tmp_path)
    assert found.pairs["mla", "mha"].separable == separable
    assert ("∞" in markdown(found, None)) == (stated is None)
    assert "Infinity" not in json.dumps(results(found))
    assert "inf" not in csv_table(found)
