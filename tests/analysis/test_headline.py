"""The verdict in two sentences that a newcomer understands."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse


def headline(folder, losses, **more):
    return analyse(write_study(folder, losses, **more)).headline


def test_a_winner_is_named_with_its_lead_and_the_others_with_theirs(tmp_path):
    losses = {"mha": steady(5.2, 1), "mla": steady(5.2003, 2), "delta": steady(5.0, 3)}
    first, second = headline(tmp_path, losses)
    assert first.startswith(
        "At this recipe, delta predicts this text best: 5.000 nats/token on the validation"
    )
    assert "0.200 ± 0.00" in first
    assert "better than the next, mha." in first
    assert second == "Worse than the best: mha and mla (0.200 nats/token behind)."


def test_what_is_equal_within_the_margin_of_the_best_makes_no_winner(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.0003, 2), "delta": steady(5.3, 3)}
    first, second = headline(tmp_path, losses)
    assert first == (
        "At this recipe, no winner: mha, which has the lowest mean (5.000 nats/token on the "
        "validation text), and mla are equivalent within the margin of 0.01 nats/token."
    )
    assert second == "Worse than the best: delta (0.300 nats/token behind)."


def test_a_separable_lead_within_the_margin_is_no_lead(tmp_path):
    exact = [1e-5 * x for x in (0, 1, -1, 2, -2)]
    losses = {"mha": [5.0 + x for x in exact], "mla": [5.002 - x for x in exact]}
    analysis = analyse(write_study(tmp_path, losses))
    assert analysis.pairs["mha", "mla"].separable
    assert "no winner: mha" in analysis.headline[0]
    assert "equivalent within the margin" in analysis.headline[0]


WIDE = {  # of ten noisy variants, one is clearly worse
    **{f"v{i}": [5 + i / 100 + x for x in (0.05, -0.04, 0.02, -0.06, 0.03)] for i in range(3)},
    "far": [9.0, 9.1, 9.05, 8.9, 9.0],
}


def test_variants_that_may_be_the_best_are_named_and_the_seeds_that_would_decide(tmp_path):
    first, second = headline(tmp_path, WIDE, baseline="v0")
    assert first.startswith("At this recipe, no winner: v0, v1 and v2 may each be the best (lowest")
    assert "Worse than the best: far (" in second
    assert "Undecided between v0 and v1 with 5 seeds" in second


def test_a_spiked_seed_is_named(tmp_path):
    spiked = [*steady(5.1, 2)[:4], 7.5]
    losses = {"mha": steady(5.0, 1), "mla": spiked, "gqa": steady(5.2, 3)}
    _, second = headline(tmp_path, losses)
    assert "Seed 4 of mla is set aside as an outlier: 7.500, where its other seeds" in second


def test_one_seed_is_no_verdict(tmp_path):
    first, second = headline(tmp_path, {"mha": [5.0], "mla": [5.1]})
    assert first.startswith("mha has the lowest loss (5.000 nats/token on the validation text)")
    assert first.endswith("but that is no verdict.")
    assert second.endswith("Run it with --seeds 4 or more for error bars.")


def test_nothing_finished_is_said(tmp_path):
    first, second = headline(tmp_path, {"mha": [None], "mla": ["loss is nan"]})
    assert first == "No run that can be compared has finished yet."
    assert "mla" in second


def test_who_was_left_out_is_in_the_headline(tmp_path):
    losses = {"mha": steady(5.2, 1), "mla": steady(5.0, 2), "wild": ["loss is nan"] * 5}
    _, second = headline(tmp_path, losses)
    assert "Not compared: wild (diverged with seeds 0, 1, 2, 3, 4 (of 5): loss is nan)." in second


def test_a_control_that_does_not_tie_is_the_headline(tmp_path):
    losses = {
        name: steady(loss, place)
        for place, (name, loss) in enumerate(
            {"mha": 5.0, "gqa_1": 5.1, "mqa": 5.2, "mla": 5.0}.items()
        )
    }
    _, second = headline(tmp_path, losses, mqa={"function": "gqa_1"})
    assert "do not trust this verdict" in second


@pytest.mark.parametrize("losses", [{"mha": [5.0]}, {"mha": [5.0, 5.1]}])
def test_a_single_variant_stands_alone(tmp_path, losses):
    assert headline(tmp_path, losses)[0].startswith("mha is the only variant compared (5.0")
