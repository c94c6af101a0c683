"""How much the learning rate matters, from the runs that tuned it."""

import math

import pytest
from support.written_study import write_run, write_study

from attnlab.analysis.rates import rate_curves
from attnlab.analysis.table import read_table
from attnlab.record import TUNING_SEED, RunFolder


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
