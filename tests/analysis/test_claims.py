"""What was published is confirmed, refuted, or not separable at this budget."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.hypotheses.claim import Alike, AmongBest, AmongWorst, InRange, Ordered, Within
from attnlab.config import ConfigError
from attnlab.reporting.pages import markdown, page
from attnlab.reporting.tables.text_tables import published_tables

SAID = {"text": "So it is.", "source": "Somebody 2020"}
OPEN = "not separable at this budget"
LOSSES = {
    "mha": steady(5.1, 1),
    "window": steady(5.1003, 2),
    "delta": steady(5.0, 3),
    "identity": steady(5.4, 4),
}


def judged(folder, claim, losses=LOSSES, **more):
    study = write_study(folder, losses, claims=[claim.to_dict()], **more)
    (found,) = analyse(study).judgements
    assert (found.claim, found.source) == (claim.text, claim.source)
    return found.ruling, " ".join(found.found)


@pytest.mark.parametrize(
    ("names", "ruling", "words"),
    [
        (("delta", "mha"), "confirmed", "delta is better than mha by 0.100 nats [0.09"),
        (("delta", "mha", "identity"), "confirmed", "mha is better than identity by 0.300 nats ["),
        (("identity", "mha"), "refuted", "identity is worse than mha by 0.300 nats ["),
        (("mha", "window"), OPEN, "difference -0.000 nats [-0."),
        (("delta", "mha", "window"), OPEN, "Of 3 pairs 2 can be told apart"),
        (("mha", "window", "delta"), "refuted", "window is worse than delta"),
        (("delta", "gone"), "not judged", "gone is not compared: the study has no such variant"),
        (("mha", "delta", "gone"), "refuted", "gone is not compared"),
    ],
)
def test_an_order_is_confirmed_by_every_pair_and_refuted_by_one(tmp_path, names, ruling, words):
    found = judged(tmp_path, Ordered(**SAID, variants=names))
    assert found[0] == ruling
    assert words in found[1]


def test_what_is_not_separable_says_which_difference_would_have_been_found(tmp_path):
    study = write_study(
        tmp_path, LOSSES, claims=[Ordered(**SAID, variants=("mha", "window")).to_dict()]
    )
    analysis = analyse(study)
    assert analysis.detectable is not None
    said = analysis.judgements[0].found[-1]
    assert said == (
        f"Of differences under {analysis.detectable:.3f} nats most go unseen with 5 seeds."
    )


@pytest.mark.parametrize(
    ("claim", "ruling"),
    [
        (AmongBest(**SAID, variant="delta"), "confirmed"),
        (AmongBest(**SAID, variant="mha"), "refuted"),
        (AmongBest(**SAID, variant="mha", places=2), OPEN),  # window may be as good
        (AmongBest(**SAID, variant="mha", places=3), "confirmed"),
        (AmongWorst(**SAID, variant="identity"), "confirmed"),
        (AmongWorst(**SAID, variant="delta", places=3), "refuted"),
        (AmongWorst(**SAID, variant="window", places=2), OPEN),
        (AmongWorst(**SAID, variant="window", places=3), "confirmed"),
    ],
)
def test_a_place_is_refuted_by_as_many_as_are_separably_before_it(tmp_path, claim, ruling):
    assert judged(tmp_path, claim)[0] == ruling


def test_what_is_not_compared_might_have_any_place(tmp_path):
    losses = LOSSES | {"window": ["loss is nan"] * 5}
    best = AmongBest(**SAID, variant="delta")
    ruling, words = judged(tmp_path / "a", best, losses)
    assert ruling == "not judged"
    assert "window is not compared: diverged with seeds 0, 1, 2, 3, 4" in words
    assert judged(tmp_path / "b", AmongBest(**SAID, variant="delta", places=2), losses)[0] == (
        "confirmed"
    )
    assert judged(tmp_path / "c", AmongBest(**SAID, variant="mha"), losses)[0] == "refuted"
    assert judged(tmp_path / "d", Within(**SAID, spread=0.5), losses)[0] == "not judged"


def test_names_of_one_function_share_a_place(tmp_path):
    losses = {**LOSSES, "delta_again": steady(5.0, 3)}
    claim = AmongBest(**SAID, variant="delta")
    ruling, words = judged(tmp_path, claim, losses, delta_again={"function": "delta"})
    assert ruling == "confirmed"
    assert "place 1 of 4 by mean loss: none separably better, 3 separably worse" in words


@pytest.mark.parametrize(
    ("spread", "names", "ruling"),
    [
        (0.5, (), "confirmed"),
        (0.3, (), "refuted"),
        (0.4, (), OPEN),  # the interval of 0.4 has it inside
        (0.05, ("mha", "window"), "confirmed"),
        (0.05, ("mha", "gone"), "not judged"),
    ],
)
def test_a_spread_is_held_against_the_intervals_of_all_pairs(tmp_path, spread, names, ruling):
    assert judged(tmp_path, Within(**SAID, spread=spread, variants=names))[0] == ruling


def test_what_is_said_to_be_alike_must_lie_within_the_margin(tmp_path):
    claim = Alike(**SAID, variants=("mha", "window"))
    assert judged(tmp_path / "a", claim)[0] == "confirmed"
    apart = LOSSES | {"window": steady(5.15, 2)}
    assert judged(tmp_path / "b", claim, apart)[0] == "refuted"
    noisy = {"mha": [5.0, 5.3, 5.1], "window": [5.3, 5.0, 5.2]}
    ruling, words = judged(tmp_path / "c", claim, noisy)
    assert ruling == OPEN
    assert "One run's noise is 0.216 nats, the margin 0.010 nats." in words


def test_a_cost_is_held_against_the_range_to_the_digits_published(tmp_path):
    sizes = {"mha": 1.5e9, "window": 1.54e9, "delta": 1.6e9, "identity": 1.2e9}
    more = {name: {"peak_memory_bytes": size} for name, size in sizes.items()}
    published = {"cost": "peak_memory_bytes", "low": 1.2e9, "high": 1.5e9}
    exact, rounded = (InRange(**SAID, **published, resolution=digit) for digit in (0.0, 0.05e9))
    ruling, words = judged(tmp_path / "a", exact, **more)
    assert ruling == "refuted"
    assert "Here from 1.2 GB (identity) to 1.6 GB (delta)." in words
    assert "2 of 4 lie inside; outside: window (1.5 GB) and delta (1.6 GB)." in words
    assert "3 of 4 lie inside" in judged(tmp_path / "b", rounded, **more)[1]
    more["delta"]["peak_memory_bytes"] = 1.3e9
    assert judged(tmp_path / "c", rounded, **more)[0] == "confirmed"
    assert judged(tmp_path / "d", rounded)[0] == "not judged"
    far = {name: {"peak_memory_bytes": 3e9} for name in sizes}
    assert judged(tmp_path / "e", rounded, **far)[1].endswith("None lies inside.")


def test_one_seed_judges_no_loss(tmp_path):
    losses = {name: found[:1] for name, found in LOSSES.items()}
    ruling, words = judged(tmp_path, Ordered(**SAID, variants=("delta", "mha")), losses)
    assert ruling == "not judged"
    assert "one seed" in words


def test_a_claim_of_an_unknown_kind_does_not_stop_the_report(tmp_path):
    study = write_study(tmp_path, LOSSES, claims=[{"kind": "newer", "text": "So it is."}])
    (found,) = analyse(study).judgements
    assert (found.claim, found.ruling) == ("So it is.", "not judged")
    assert "unknown kind 'newer'" in found.found[0]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Ordered(**SAID, variants=("a",)), "variants: name at least 2"),
        (lambda: Alike(**SAID, variants=("a", "a")), "variants: name each once"),
        (lambda: AmongBest(**SAID, variant="a", places=0), "places: must be at least 1, got 0"),
        (lambda: Within(**SAID, spread=0.0), "spread: must be positive"),
        (lambda: InRange(**SAID, cost="parameters", low=2.0, high=1.0), "low: must not be above"),
        (lambda: Ordered(text=" ", source="x", variants=("a", "b")), "text: say the claim"),
    ],
)
def test_a_claim_that_says_nothing_is_refused(make, problem):
    with pytest.raises(ConfigError, match=problem):
        make()


@pytest.mark.parametrize(("published", "holds"), [(3.4, "yes"), (3.25, "no")])
def test_a_published_difference_is_held_against_the_interval_of_the_one_found(
    tmp_path, published, holds
):
    """Delta is better than mha by 0.1000 nats here, to a part of a thousandth or so."""
    numbers = (("delta", published), ("mha", 3.5), ("gone", 4.0))
    claim = Ordered(**SAID, variants=("delta", "mha"), published=numbers)
    (table,) = published_tables(
        analyse(write_study(tmp_path, LOSSES, claims=[claim.to_dict()], baseline="mha"))
    )
    assert table.heading[4:6] == ["published Δ mha", "Δ mha here"]
    delta, mha, gone = (line[4:] for line in table.lines)
    assert delta[0] == f"{published - 3.5:+.3g}"
    assert delta[1].startswith("-0.1000 ± 0.0")
    assert delta[2] == holds
    assert mha == ["0", "0", ""]
    assert gone == ["+0.5", "–", "–"]


def test_of_what_is_no_loss_no_differences_are_shown(tmp_path):
    numbers = (("delta", 30.0), ("mha", 33.0))
    claim = Ordered(
        **SAID, variants=("delta", "mha"), published=numbers, measure="perplexity a word"
    )
    study = write_study(tmp_path, LOSSES, claims=[claim.to_dict()])
    (table,) = published_tables(analyse(study))
    assert len(table.heading) == len(table.lines[0]) == 4


def test_published_and_found_stand_side_by_side_in_the_reports(tmp_path):
    claim = Ordered(
        **SAID, variants=("delta", "mha"), published=(("delta", 3.25), ("mha", 3.5), ("gone", 4.0))
    )
    analysis = analyse(write_study(tmp_path, LOSSES, claims=[claim.to_dict()]))
    (table,) = published_tables(analysis)
    assert table.heading[1:3] == [
        "published loss, nats a token",
        "validation loss here",
    ]
    assert [line[:2] for line in table.lines] == [["delta", "3.25"], ["mha", "3.5"], ["gone", "4"]]
    assert table.lines[0][2].startswith("5.0000 ± ")
    assert [line[3] for line in table.lines] == ["1", "2", "–"]
    text, html = markdown(analysis, None), page(analysis)
    for shown in (text, html):
        assert "What was published, and what was found" in shown
        assert "Somebody 2020" in shown
        assert "order and spread are judged" in shown
    assert "| So it is. | Somebody 2020 | **confirmed** | delta is better than mha by " in text
    assert "| delta | 3.25 | 5.0000 ± " in text
    assert '<strong class="ruling confirmed">confirmed</strong>' in html
