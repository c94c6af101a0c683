"""What to take when one thing comes first, and what that gives up."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.record import write_json

MIB = 2**20


def picks(folder, losses, **more):
    return {pick.use_case: pick for pick in analyse(write_study(folder, losses, **more)).picks}


@pytest.fixture
def found(tmp_path):
    losses = {
        "mha": steady(5.1, 1),
        "window": steady(5.1003, 2),
        "delta": steady(5.0, 3),
        "identity": steady(5.4, 4),
    }
    return picks(
        tmp_path,
        losses,
        mha={"state_bytes": 8 * MIB, "step_time": 0.002, "parameters": {"total": 100}},
        window={"state_bytes": 2 * MIB, "step_time": 0.001, "parameters": {"total": 90}},
        delta={"state_bytes": MIB, "step_time": 0.004, "parameters": {"total": 110}},
        identity={"state_bytes": 0, "step_time": 0.0005, "parameters": {"total": 50}},
    )


def test_quality_first_is_the_one_that_all_others_are_worse_than(found):
    pick = found["quality first"]
    assert pick.variant == "delta"
    assert "leads the next, mha, by 0.100 nats/token [" in pick.margin
    assert "mha gaining more than 0.09" in pick.would_change


def test_memory_first_is_the_smallest_state_that_is_not_worse_than_the_baseline(found):
    pick = found["memory first"]
    assert pick.variant == "delta"
    assert "1.00 MiB, 8 times less than mha (8.00 MiB)" in pick.reason
    assert "gives up nothing" in pick.margin
    assert "identity needs 0 B, and is worse than mha by 0.300 nats/token [" in pick.would_change


def test_a_pick_that_is_worse_than_the_best_says_by_how_much(found):
    pick = found["training speed first"]
    assert pick.variant == "window"
    assert "It gives up 0.100 nats/token [0." in pick.margin
    assert "to the best, delta" in pick.margin
    assert found["smallest model"].variant == "window"


def test_no_pick_is_separably_worse_than_the_baseline(found):
    assert all(pick.variant != "identity" for pick in found.values())


def test_what_was_not_measured_has_no_winner_and_says_what_measures_it(found):
    pick = found["long context"]
    assert pick.variant is None
    assert "attnlab bench" in pick.would_change


def test_variants_that_cannot_be_told_apart_have_no_winner(tmp_path):
    cost = {"state_bytes": MIB}
    found = picks(tmp_path, {"mha": steady(5.0, 1), "mla": steady(5.0, 2)}, mha=cost, mla=cost)
    assert found["quality first"].variant is None
    assert "cannot be told apart" in found["quality first"].reason
    assert "More seeds" in found["quality first"].would_change
    assert found["memory first"].variant is None
    assert "need the same" in found["memory first"].reason


def test_of_many_that_share_the_lead_the_nearest_and_the_furthest_are_named(tmp_path):
    pick = picks(tmp_path, {f"v{i}": steady(5.0, i) for i in range(8)})["quality first"]
    assert pick.variant is None
    assert pick.reason.endswith(" and 5 others cannot be told apart.")
    best, *others, last = analyse(tmp_path).order
    assert pick.margin.startswith(
        f"{best} has the lowest mean; of the 7 others {others[0]} is nearest to it and {last} "
        "furthest. "
    )
    assert not any(name in pick.margin for name in others[1:])


def test_two_names_of_one_function_do_not_tie_with_themselves(tmp_path):
    losses = {"mha": steady(5.2, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 2)}
    cost, same = {"state_bytes": 1}, {"function": "gqa_1", "state_bytes": 1}
    found = picks(tmp_path, losses, mha={"state_bytes": 4}, gqa_1=cost, mqa=same)
    for use in ("quality first", "memory first"):
        assert found[use].variant == "gqa_1"
        assert "the same as mqa" in found[use].reason


def test_one_seed_picks_nothing(tmp_path):
    found = picks(tmp_path, {"mha": [5.0], "mla": [4.0]})
    assert {pick.variant for pick in found.values()} == {None}


def test_long_context_takes_what_grows_least(tmp_path):
    losses = {"mha": steady(5.0, 1), "delta": steady(5.0, 2)}
    write_study(tmp_path, losses)
    write_json(
        tmp_path / "bench.json",
        {
            "points": [
                {
                    **{"variant": name, "what": "decode", "status": "ok", "batch": 1},
                    **{"context": n, "seconds": 0.001, "state_bytes": 64 + growth * n},
                }
                for name, growth in (("mha", 8), ("delta", 0))
                for n in (1024, 4096)
            ]
        },
    )
    found = {pick.use_case: pick for pick in analyse(tmp_path).picks}
    assert found["long context"].variant == "delta"
    assert "0 B/token" in found["long context"].reason
    assert found["decoding speed first"].variant is None
