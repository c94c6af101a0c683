"""What the bench of a study says of decoding."""

import pytest

from attnlab.analysis.costs import Serving
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
