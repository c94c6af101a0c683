"""The Pareto front of each cost, and the variant to pick for each use case."""

import pytest
from support.reported_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.costs import Cost
from attnlab.analysis.picks import front_of
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of
from attnlab.record import write_json

MIB = 2**20


def picks(folder, losses, **more):
    found = analyse(write_study(folder, losses, **more)).picks
    return {use_case: pick for pick in found for use_case in pick.use_cases}


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


def test_variants_that_are_not_distinguishable_have_no_winner(tmp_path):
    cost = {"state_bytes": MIB}
    found = picks(tmp_path, {"mha": steady(5.0, 1), "mla": steady(5.0, 2)}, mha=cost, mla=cost)
    assert found["quality first"].variant is None
    assert found["quality first"].reason == "mha and mla are equivalent within the margin."
    assert "A smaller margin" in found["quality first"].would_change
    assert found["memory first"].variant is None
    assert "need the same" in found["memory first"].reason


def test_of_many_that_share_the_lead_the_distances_of_the_others_are_a_range(tmp_path):
    losses = {f"v{i}": [100 * (x - 5) + i / 100 for x in steady(5.0, i)] for i in range(8)}
    pick = picks(tmp_path, losses)["quality first"]
    assert pick.variant is None
    assert pick.reason.endswith(" and 5 others may be the best.")
    analysis = analyse(tmp_path)
    best, *others = analysis.order
    nearest, furthest = (analysis.to_best[name].mean for name in (others[0], others[-1]))
    behind = f"{nearest:.3f} to {furthest:.3f} nats/token behind"
    assert pick.margin == f"{best} has the lowest mean; the others are {behind}."


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
    assert len(set(found.values())) == 1  # one reason for all of them


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


LOSSES = {
    "best": steady(5.0, 1),
    "level": steady(5.0004, 2),
    "worse": steady(5.1, 3),
    "worst": steady(5.2, 4),
}


@pytest.fixture
def verdict(tmp_path):
    return verdict_of(read_table(write_study(tmp_path, LOSSES, baseline="best")))


def front(verdict, resolution=0.01, **of):
    cost = Cost(key="parameters", label="parameters", unit="", resolution=resolution, of=of)
    return front_of(cost, verdict).front


def test_a_variant_that_costs_more_and_is_not_separably_better_is_off(verdict):
    assert front(verdict, best=10, level=5, worse=7, worst=1) == ("worst", "level")


def test_cheaper_and_worse_is_another_point_of_the_front(verdict):
    assert front(verdict, best=10, worse=5, worst=1) == ("worst", "worse", "best")


def test_at_equal_cost_the_separably_better_one_stays(verdict):
    assert front(verdict, best=10, worse=10) == ("best",)
    assert set(front(verdict, best=10, level=10)) == {"best", "level"}


def test_a_difference_within_the_resolution_is_none(verdict):
    assert front(verdict, best=10, level=9.95) == ("level", "best")
    assert front(verdict, best=10, level=9.8) == ("level",)


def test_names_of_one_function_stand_and_fall_together(tmp_path):
    losses = {"mha": steady(5.2, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 2)}
    study = write_study(tmp_path, losses, mqa={"function": "gqa_1"})
    assert set(front(verdict_of(read_table(study)), mha=9, gqa_1=10, mqa=12)) == set(losses)


def test_without_a_verdict_there_are_points_and_no_front(tmp_path):
    verdict = verdict_of(read_table(write_study(tmp_path, {"mha": [5.0], "mla": [5.1]})))
    cost = Cost(key="parameters", label="", unit="", resolution=0.01, of={"mha": 2, "mla": 1})
    found = front_of(cost, verdict)
    assert found.front == ()
    assert found.points == {"mha": (2, 5.0), "mla": (1, 5.1)}
