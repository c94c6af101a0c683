"""What costs more must buy quality that the seeds can show."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.costs import Cost
from attnlab.analysis.picks import front_of
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of

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
