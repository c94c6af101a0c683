"""Controls tie, and how much the learning rate matters follows from the tuning runs."""

import json
import math

import pytest
from support.reported_study import steady, write_run, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.controls import controls_of
from attnlab.analysis.rates import rate_curves
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.record import TUNING_SEED, RunFolder, write_tuning_choice
from attnlab.reporting.pages import markdown
from attnlab.reporting.tables.data_files import csv_table, results

SAME = {"function": "gqa_1"}
MATH = {"function": "low_rank", "kernel": "math", "step_time": 0.005, "peak_memory_bytes": 4 << 30}
FLASH = MATH | {"kernel": "flash", "step_time": 0.004, "peak_memory_bytes": 3 << 30}


def controls(folder, losses, **more):
    return controls_of(verdict_of(read_table(write_study(folder, losses, **more))))


def test_variants_that_differ_in_name_alone_are_recognised(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert (control.names, control.same_rate) == (("gqa_1", "mqa"), True)
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


def test_a_control_tuned_to_another_rate_is_told_from_one_that_was_not(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": [None] * 5}
    write_study(tmp_path, losses)
    for seed, loss in enumerate(steady(5.3, 3)):
        write_run(RunFolder(tmp_path, "mqa", seed), loss, rate=6e-4, function="gqa_1")
    (control,) = controls_of(verdict_of(read_table(tmp_path)))
    assert control.same_rate is False
    assert "different learning rates" in control.note


def test_without_a_verdict_a_control_is_not_judged(tmp_path):
    (control,) = controls(tmp_path, {"mha": [5.0], "gqa_1": [5.1], "mqa": [5.1]}, mqa=SAME)
    assert (control.ties, control.largest_difference) == (None, 0)


def test_variants_that_differ_in_the_kernel_alone_are_one_function_at_two_prices(tmp_path):
    losses = {"mha": steady(5.0, 1), "lora": steady(5.1, 2), "flash": steady(5.1, 3)}
    analysis = analyse(write_study(tmp_path, losses, lora=MATH, flash=FLASH))
    (control,) = analysis.controls
    assert (control.names, control.kernels) == (("lora", "flash"), ("math", "flash"))
    assert (control.same_rate, control.ties) == (True, True)
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
