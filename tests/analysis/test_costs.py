"""Costs: decoding by the bench of a study, and times that differ beyond their noise."""

import pytest
from support.written_study import steady, write_study

from attnlab.analysis.analysis import analyse
from attnlab.analysis.costs import Cost, Serving
from attnlab.analysis.statistics.paired import Estimate
from attnlab.record import write_json


def point(variant, context, seconds, *, batch=1, state=None, what="decode", status="ok"):
    return {
        **{"variant": variant, "what": what, "context": context, "batch": batch},
        **{"status": status, "seconds": seconds, "state_bytes": state},
    }


def served(folder, *points):
    write_json(folder / "bench.json", {"points": list(points)})
    return Serving.read(folder)


def test_times_are_taken_where_the_most_variants_were_measured_at_the_longest_context(tmp_path):
    found = served(
        tmp_path,
        *(point(name, context, 0.001 * context) for name in "ab" for context in (1, 4)),
        point("a", 16, 9.0),
        point("b", 16, None, status="out_of_memory"),
        point("a", 4, 7.0, batch=8),
        point("b", 4, 7.0, batch=8),
        point("a", 4, 5.0, what="prefill"),
    )
    assert (found.context, found.batch) == (4, 1)
    assert found.decode_seconds == {"a": 0.004, "b": 0.004}


def test_the_state_of_one_sequence_grows_by_its_slope_over_the_longest_contexts(tmp_path):
    found = served(
        tmp_path,
        *(point("full", context, 1.0, batch=2, state=2 * 10 * context) for context in (4, 8, 16)),
        *(point("window", context, 1.0, state=80) for context in (8, 16)),
        point("once", 8, 1.0, state=80),
    )
    assert found.state_growth == {"full": pytest.approx(10), "window": 0}


def test_without_a_bench_nothing_is_known(tmp_path):
    found = Serving.read(tmp_path)
    assert (found.decode_seconds, found.state_growth) == ({}, {})


def timed(first, second, **more):
    estimates = {"a": Estimate.of(first), "b": Estimate.of(second)}
    return Cost(
        key="step_time",
        label="time",
        unit="seconds",
        resolution=0.05,
        of={name: estimate.mean for name, estimate in estimates.items()},
        over_runs=estimates,
        **more,
    )


@pytest.mark.parametrize(
    ("first", "second", "cheaper"),
    [
        ([1.0, 1.01, 0.99, 1.0], [2.0, 2.01, 1.99, 2.0], True),
        ([1.0, 1.8, 0.9, 1.5], [1.6, 1.2, 2.1, 1.4], False),  # within the noise over runs
        ([1.0], [2.0], False),  # one run shows no noise
        ([1.0, 1.0001], [1.02, 1.0201], False),  # within the resolution
    ],
)
def test_a_time_is_shorter_only_outside_its_noise_and_resolution(first, second, cheaper):
    assert timed(first, second).cheaper("a", "b") == cheaper
    assert not timed(first, second).cheaper("b", "a")


def test_times_of_steps_that_overlap_are_the_same():
    times = [1.0, 1.01, 0.99, 1.0], [1.2, 1.21, 1.19, 1.2]
    assert timed(*times).cheaper("a", "b")
    assert not timed(*times, quartiles={"a": (0.9, 1.15), "b": (1.1, 1.3)}).cheaper("a", "b")


def test_names_of_the_same_work_show_how_far_apart_equal_times_are(tmp_path):
    losses = {"mha": steady(5.0, 1), "gqa_1": steady(5.0, 2), "mqa": steady(5.0, 3)}
    more = {"mha": {"step_time": 0.0109}, "gqa_1": {"step_time": 0.0100}}
    same = {"function": "gqa_1", "step_time": 0.0113}
    found = analyse(write_study(tmp_path, losses, mqa=same, **more))
    pick = next(pick for pick in found.picks if "training speed first" in pick.use_cases)
    assert pick.variant is None
    assert "within its error" in pick.reason
