"""How much the learning rate matters, from the runs that tuned it."""

import json
import math

import pytest
from support.written_study import steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.rates import rate_curves
from attnlab.analysis.table import read_table
from attnlab.record import TUNING_SEED, RunFolder, write_tuning_choice
from attnlab.reporting.pages import markdown
from attnlab.reporting.tables.data_files import csv_table, results


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
