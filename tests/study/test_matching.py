"""Variants get the size of the baseline before a model is built, or an error with the reason."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_study import base

from attnlab.config import ConfigError
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.study.matching import Match
from attnlab.study.study import Study


def study(match, **others):
    return Study(question="?", variants={"mha": base, **others}, match=match)


SLIDING = base.with_mechanisms(SlidingWindow(n_heads=2, n_kv_heads=2, window=4))
DELTA = base.with_mechanisms(GatedDeltaNet(n_heads=2, head_dim=4))


@pytest.mark.parametrize("what", ["params", "flops"])
@pytest.mark.parametrize("step", [1, 8])
def test_the_built_models_have_the_size_of_the_baseline(what, step):
    matched = study(
        Match(what=what, step=step),
        mqa=base.with_mechanisms(GroupedQuery(n_heads=2, n_kv_heads=1)),
        identity=base.with_mechanisms(Identity()),
        delta=DELTA,
    )
    assert matched.variants["mha"] == base
    assert len({config.model.feedforward.d_ff for config in matched.variants.values()}) > 2
    one_step = {"params": 2 * 2 * 16 * step, "flops": 2 * 2 * 2 * 16 * step}[what]
    target = getattr(base.cost(), what)
    for name, config in matched.variants.items():
        mismatch = matched.mismatch()[name]
        assert abs(mismatch) <= one_step / 2 / target + 1e-12
        assert mismatch == pytest.approx(getattr(config.cost(), what) / target - 1)
        if what == "params":
            built = sum(p.numel() for p in config.model.build(256).parameters())
            assert built == round(target * (1 + mismatch))


def test_state_is_matched_by_a_knob_that_changes_it():
    knob = "model.mechanisms.0.window"
    matched = study(Match(what="state_bytes", knob=knob, step=1), sliding=SLIDING)
    assert matched.variants["sliding"].model.mechanisms[0].window == base.train.seq_len
    assert matched.mismatch() == {"mha": 0, "sliding": 0}


@pytest.mark.parametrize(
    ("match", "other", "message"),
    [
        (Match(what="state_bytes"), SLIDING, "d_ff does not change state_bytes"),
        (
            Match(what="params", knob="model.d_fff"),
            DELTA,
            "model.d_fff is not a setting: there",
        ),
        (Match(what="params", knob="model.dropout"), DELTA, r"model.dropout is 0\.1, not a whole"),
        (
            Match(what="params", knob="model.mechanisms.0.window"),
            DELTA,
            "not a setting: there is no 'window'",
        ),
        (
            Match(what="params"),
            DELTA.with_mechanisms(GatedDeltaNet(n_heads=8, head_dim=16)),
            r"d_ff leaves params at [\d,]+ even at 8; the baseline has 8,272",
        ),
        (
            Match(what="params", knob="model.d_model", step=7),
            SLIDING,
            "model.d_model cannot be 7: .* does not divide",
        ),
    ],
)
def test_what_cannot_be_matched_says_why_and_for_which_variant(match, other, message):
    with pytest.raises(ConfigError, match=message) as error:
        study(match, other=other)
    assert "(in other)" in str(error.value)


def test_a_knob_that_stops_to_count_is_impossible_not_endless():
    long = replace(base, train=replace(base.train, seq_len=256))
    wide = SLIDING.with_mechanisms(SlidingWindow(n_heads=2, n_kv_heads=1))
    match = Match(what="state_bytes", knob="model.mechanisms.0.window")
    with pytest.raises(ConfigError, match="however large it is; the baseline has"):
        study(match, sliding=replace(wide, train=long.train), mha=long)


@given(target=st.integers(1, 10**6), slope=st.integers(1, 1000), offset=st.integers(0, 10**6))
def test_the_nearest_multiple_is_found(target, slope, offset):
    def size(config):
        return offset + slope * config.model.feedforward.d_ff

    match = Match(what="params", step=4)
    sizes = [offset + slope * 4 * k for k in range(1, 2 + max(1, target // (4 * slope)))]
    if sizes[0] - target >= 4 * slope:
        with pytest.raises(ConfigError, match="even at 4"):
            match.solve(base, size, target)
    else:
        found = size(match.solve(base, size, target))
        assert abs(found - target) == min(abs(size - target) for size in sizes)


def test_what_is_left_out_or_changed_is_still_matched_to_the_baseline():
    whole = study(Match(what="params", step=1), delta=DELTA, sliding=SLIDING)
    alone = whole.only(["delta"])
    assert alone.variants["delta"] == whole.variants["delta"]
    assert alone.mismatch()["delta"] == whole.mismatch()["delta"]
    wider = ["model.d_model=32", "model.feedforward.d_ff=100"]
    assert alone.override(wider).variants["delta"] == whole.override(wider).variants["delta"]
    assert whole.override(wider).variants["delta"] != whole.variants["delta"]


def test_the_record_says_what_is_alike_and_what_is_left():
    whole = study(Match(what="params", step=8), delta=DELTA)
    record = whole.record(command="attnlab run x", checked=True)
    assert record.match == {
        "what": "params",
        "knob": "model.feedforward.d_ff",
        "step": 8,
        "mismatch": whole.mismatch(),
    }
    assert study(None, delta=DELTA).record(command="", checked=True).match is None
