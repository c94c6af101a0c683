"""The verdict in two sentences that a newcomer understands."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse


def headline(folder, losses, **more):
    return analyse(write_study(folder, losses, **more)).headline


def test_a_winner_is_named_with_its_lead_and_the_others_with_theirs(tmp_path):
    losses = {"mha": steady(5.2, 1), "mla": steady(5.2003, 2), "delta": steady(5.0, 3)}
    first, second = headline(tmp_path, losses)
    assert first.startswith("delta predicts this text best: 5.000 nats/token on the validation")
    assert "0.200 ± 0.00" in first
    assert "better than the next, mha." in first
    assert second == "Behind it: mha and mla (0.200 nats/token behind)."


def test_a_shared_lead_is_no_winner(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.0003, 2), "delta": steady(5.3, 3)}
    first, second = headline(tmp_path, losses)
    assert first.startswith("mha and mla share the lead")
    assert second == "Behind them: delta (0.300 nats/token behind)."


def test_who_cannot_be_told_from_the_best_for_its_own_noise_shares_no_lead(tmp_path):
    losses = {
        "mha": steady(5.0, 1),
        "mla": steady(5.0003, 2),
        "delta": steady(5.3, 3),
        "wild": [4.9, 6.4, 5.2, 5.9, 5.1],
    }
    first, second = headline(tmp_path, losses)
    assert first.startswith("mha and mla share the lead: 5.000 nats/token")
    assert first.endswith(
        "wild, 0.500 nats/token behind, is also not distinguishable from mha, because the losses "
        "vary too much between seeds."
    )
    assert second == "Behind them: delta (0.300 nats/token behind)."


def test_variants_that_are_not_distinguishable_have_no_winner(tmp_path):
    first, second = headline(tmp_path, {"mha": steady(5.0, 1), "mla": steady(5.0003, 2)})
    assert first.startswith("No winner: the 2 variants are not distinguishable (lowest mean: ")
    assert second == ""


def test_one_seed_is_no_verdict(tmp_path):
    first, second = headline(tmp_path, {"mha": [5.0], "mla": [5.1]})
    assert first.startswith("mha has the lowest loss (5.000 nats/token on the validation text)")
    assert first.endswith("but that is no verdict.")
    assert second.endswith("Run it with --seeds 3 or more for error bars.")


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
