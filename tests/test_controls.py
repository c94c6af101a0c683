"""The same function twice must tie, and a report that separates the two is wrong."""

from written_study import steady, write_run, write_study

from attnlab.analysis.controls import controls_of
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.record import RunFolder

SAME = {"function": "gqa_1"}


def controls(folder, losses, **more):
    return controls_of(verdict_of(read_table(write_study(folder, losses, **more))))


def test_variants_that_differ_in_name_alone_are_recognised(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert (control.names, control.same_rate) == (("gqa_1", "mqa"), True)
    assert (control.largest_difference, control.ties) == (0, True)
    assert "equal to the last bit" in control.note


def test_different_settings_are_no_control_even_with_equal_losses(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 2)}
    assert controls(tmp_path, losses) == ()


def test_a_control_within_the_noise_ties(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.1, 2), "mqa": steady(5.1, 3)}
    (control,) = controls(tmp_path, losses, mqa=SAME)
    assert control.ties is True
    assert control.largest_difference > 0
    assert "within the noise" in control.note


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
