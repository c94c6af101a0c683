"""All variants together, families against each other, and what is gained for the size."""

import random
from dataclasses import replace

import pytest
from support import tiny_study
from support.reported_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.families import dominating, range_by_chance
from attnlab.config import ConfigError
from attnlab.record import StudyRecord
from attnlab.reporting.pages import markdown, page
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


def test_the_tables_stand_in_the_reports_of_a_study_with_families_alone(tmp_path):
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
