"""Who is compared, with which seeds; nothing is dropped without a word, and nothing flattered."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.eligibility import eligible
from attnlab.analysis.table import read_table
from attnlab.analysis.verdict import verdict_of


def entered(folder, losses, **more):
    return eligible(read_table(write_study(folder, losses, **more)))


def test_a_variant_that_diverged_with_one_seed_is_out_with_its_reason(tmp_path):
    found = entered(tmp_path, {"mha": [5.0, 5.1, 5.2], "wild": [4.0, "loss is nan", 4.0]})
    assert found.left_out == {"wild": "diverged with seed 1 (of 3): loss is nan"}
    assert list(found.losses) == ["mha"]
    assert found.seeds == (0, 1, 2)


def test_an_alarm_keeps_a_variant_out(tmp_path):
    leak = {"alarms": ["the loss is below what the text allows"]}
    found = entered(tmp_path, {"mha": [5.0, 5.1], "leak": [1.0, 1.1]}, leak=leak)
    assert found.left_out == {
        "leak": "raised an alarm with seed 0: the loss is below what the text allows"
    }


def test_a_failed_run_takes_its_seed_from_all(tmp_path):
    losses = {"mha": [5.0, 5.1, 5.2], "mla": [5.0, "failed: out of memory", 5.1]}
    found = entered(tmp_path, losses)
    assert found.seeds == (0, 2)
    assert found.incomplete == (1,)
    assert not found.left_out
    verdict = verdict_of(read_table(tmp_path))
    assert "omitted: 1." in verdict.why
    assert verdict.means["mha"] == pytest.approx(5.1)


def test_a_study_under_way_is_compared_over_the_seeds_that_are_complete(tmp_path):
    found = entered(tmp_path, {"mha": [5.0, 5.1, 5.2], "mla": [5.0, 5.1, None]})
    assert (found.seeds, found.left_out) == ((0, 1), {})


def test_a_variant_with_one_seed_does_not_take_the_verdict_from_the_others(tmp_path):
    losses = {"mha": [5.0, 5.1, 5.2], "late": [None, None, 5.1], "mla": [5.0, 5.1, 5.2]}
    found = entered(tmp_path, losses)
    assert found.seeds == (0, 1, 2)
    assert found.left_out == {"late": "finished 1 of 3 seeds, too few in common with the others"}


def test_what_never_finished_is_named(tmp_path):
    losses = {"mha": [5.0, 5.1], "big": ["failed: out of memory"] * 2, "next": [None, None]}
    assert entered(tmp_path, losses).left_out == {
        "big": "failed with 2 of 2 seeds, and finished none: out of memory",
        "next": "no seed has finished",
    }


def test_seeds_without_overlap_leave_the_variant_with_the_fewest_out(tmp_path):
    losses = {
        "mha": [5.0, 5.1, 5.2, None, None],
        "mla": [5.0, 5.1, 5.2, None, None],
        "other": [None, None, None, 5.0, 5.1],
    }
    found = entered(tmp_path, losses)
    assert found.seeds == (0, 1, 2)
    assert list(found.left_out) == ["other"]


def test_the_verdict_is_read_from_the_test_split_where_every_run_has_one(tmp_path):
    tested = {"test_loss": 6.0}
    losses = {"mha": [5.0, 5.1], "mla": [5.2, 5.3]}
    assert entered(tmp_path / "a", losses, mha=tested, mla=tested).metric == "test_loss"
    assert entered(tmp_path / "b", losses, mha=tested).metric == "final_loss"


@pytest.mark.parametrize("losses", [[None], ["loss is nan"], ["failed: no"]])
def test_a_study_with_nothing_to_compare_has_no_verdict(tmp_path, losses):
    verdict = verdict_of(read_table(write_study(tmp_path, {"mha": losses})))
    assert verdict.method == "none"
    assert verdict.order == ()
    assert list(verdict.left_out) == ["mha"]


def test_a_diverged_variant_does_not_change_what_is_said_of_the_others(tmp_path):
    losses = {"mha": steady(5.0, 1), "mla": steady(5.1, 2), "gqa": steady(5.2, 3)}
    alone = verdict_of(read_table(write_study(tmp_path / "a", losses)))
    wild = losses | {"wild": [1.0, 1.0, "loss is nan", 1.0, 1.0]}
    beside = verdict_of(read_table(write_study(tmp_path / "b", wild)))
    assert beside.pairs == alone.pairs
    assert beside.tiers == alone.tiers


SIX = {name: [5.0, 5.1, 5.2] for name in ("a", "b")} | {
    name: [5.0, 5.1, None] for name in ("c", "d", "e", "f")
}


def test_two_seeds_of_others_do_not_take_the_third_from_the_baseline_and_another(tmp_path):
    found = entered(tmp_path, SIX, baseline="a")
    assert (found.seeds, list(found.losses)) == ((0, 1, 2), ["a", "b"])
    assert found.left_out == dict.fromkeys(
        "cdef", "finished 2 of 3 seeds, too few in common with the others"
    )


@pytest.mark.parametrize("baseline", ["c", "gone"])
def test_the_baseline_is_not_left_out_for_a_third_seed_of_others(tmp_path, baseline):
    found = entered(tmp_path, SIX, baseline=baseline)
    if baseline in SIX:
        assert (found.seeds, list(found.losses)) == ((0, 1), list(SIX))
    else:
        assert (found.seeds, list(found.losses)) == ((0, 1, 2), ["a", "b"])


def test_nor_is_anything_for_a_third_seed_of_one_variant(tmp_path):
    found = entered(tmp_path, {"a": [5.0, 5.1, 5.2], "b": [5.0, 5.1, None]}, baseline="a")
    assert (found.seeds, found.left_out) == ((0, 1), {})
