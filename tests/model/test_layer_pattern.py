"""Layers have a pattern, by name or tiled; a model of another size keeps it, and what it is."""

import pickle
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support import tiny_study

from attnlab.analysis.settings import same_settings
from attnlab.checks.targets import of_study
from attnlab.config import ConfigError, override
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.model.layer_pattern import (
    ByLayer,
    every_nth,
    first_middle_last,
    first_n,
    last_n,
    spread_evenly,
)
from attnlab.model.scale import scaled
from attnlab.study.shorter_runs import override_run
from attnlab.study.study import Study
from attnlab.study.sweep import sweep
from attnlab.study.targets import load_study
from attnlab.training.run import RunConfig

attention, delta = GroupedQuery(n_heads=2, n_kv_heads=2), GatedDeltaNet(n_heads=2, head_dim=8)
base = replace(tiny_study.base, model=replace(tiny_study.base.model, n_layers=4))
hybrid = base.with_mechanisms(delta, layers={1: attention, 3: Identity()})


def kinds(config):
    return [mechanism.kind() for mechanism in config.model.per_layer()]


def problems(change):
    with pytest.raises(ConfigError) as error:
        change()
    return [str(problem) for problem in error.value.problems]


def test_each_layer_has_its_own_mechanism_or_the_default():
    assert kinds(hybrid) == ["gated_delta_net", "grouped_query", "gated_delta_net", "identity"]
    model = hybrid.model.build(vocab_size=16)
    assert [type(mix) for mix in model.mechanisms()] == [
        type(mechanism.build(16)) for mechanism in hybrid.model.per_layer()
    ]
    assert sum(p.numel() for p in model.parameters()) == hybrid.model.parts(16).total
    assert model.logits(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 16)


def test_without_a_default_every_layer_is_named():
    every = base.with_mechanisms(layers=dict.fromkeys(range(4), delta))
    assert kinds(every) == ["gated_delta_net"] * 4
    assert problems(lambda: base.with_mechanisms(layers={1: delta})) == [
        "mechanisms.default: needed for the layers that `layers` leaves out: 0, 2, 3"
    ]


def test_no_exceptions_leave_the_default_alone():
    assert base.with_mechanisms(delta, layers={}) == base.with_mechanisms(delta)


def test_it_is_readable_json_and_comes_back():
    written = hybrid.to_dict()["model"]["mechanisms"]
    assert written == {
        "default": delta.to_dict(),
        "layers": {"1": attention.to_dict(), "3": {"kind": "identity"}},
    }
    assert RunConfig.from_dict(hybrid.to_dict()) == hybrid
    assert pickle.loads(pickle.dumps(hybrid)) == hybrid
    assert hash(RunConfig.from_dict(hybrid.to_dict())) == hash(hybrid)


def test_a_tuple_keeps_its_json_and_one_mechanism_is_a_tuple_of_one():
    assert base.with_mechanisms(delta, Identity()).to_dict()["model"]["mechanisms"] == [
        delta.to_dict(),
        {"kind": "identity"},
    ]
    assert ModelConfig(mechanisms=delta) == ModelConfig(mechanisms=(delta,))
    written = {"mechanisms": delta.to_dict()}
    assert ModelConfig.from_dict(written) == ModelConfig(mechanisms=(delta,))


def test_the_same_layers_are_the_same_run_however_they_are_written():
    ways = [
        base.with_mechanisms(delta, attention),
        base.with_mechanisms(delta, attention, delta, attention),
        base.with_mechanisms(delta, layers={3: attention, 1: attention}),
        base.with_mechanisms(attention, layers={0: delta, 2: delta}),
        base.with_mechanisms(layers={0: delta, 1: attention, 2: delta, 3: attention}),
    ]
    assert len({way.identity("data") for way in ways}) == 1
    others = [hybrid, base.with_mechanisms(delta, layers={3: attention}), base]
    assert len({way.identity("data") for way in [ways[0], *others]}) == 4


def test_every_problem_is_reported_at_once_with_its_path():
    wrong = {
        "mechanisms": {
            "layers": {
                "4": "identity",
                "-1": "identity",
                "1": {"kind": "grouped_query", "n_heads": 3, "n_kv_heads": 3},
            }
        },
        "d_model": 16,
        "dropout": 2.0,
    }
    assert problems(lambda: ModelConfig.from_dict(wrong)) == [
        "dropout: must be in [0, 1), got 2.0",
        "mechanisms.layers.-1: no such layer: layers are 0 to 3",
        "mechanisms.layers.4: no such layer: layers are 0 to 3",
        "mechanisms.default: needed for the layers that `layers` leaves out: 0, 2, 3",
        "mechanisms.layers.1.n_heads: 3 does not divide d_model 16",
    ]
    misread = {
        "default": "identty",
        "layers": {"one": "identity", "2": "identity", "02": "identity", "3": {"kind": "mlp"}},
        "tiled": True,
    }
    said = problems(lambda: ModelConfig.from_dict({"mechanisms": misread, "n_layer": 3}))
    assert said[:2] == [
        "no field 'n_layer'; did you mean 'n_layers'?",
        "mechanisms: no field 'tiled'; known: default, layers",
    ]
    assert said[2].startswith("mechanisms.default: unknown kind 'identty'; did you mean 'identity'")
    assert said[3:5] == [
        "mechanisms.layers.one: expected a whole number, got 'one'",
        "mechanisms.layers.02: 2 is given twice",
    ]
    assert said[5].startswith("mechanisms.layers.3: unknown kind 'mlp'")


def test_python_is_as_strict_as_json():
    assert problems(lambda: ByLayer(default=delta, layers={"1": delta, 1: attention})) == [
        "layers.1: 1 is given twice"
    ]
    assert problems(lambda: base.with_mechanisms(delta, attention, layers={1: delta})) == [
        "mechanisms: with layers, at most one other mechanism is used; got 2"
    ]
    with pytest.raises(TypeError):
        ByLayer(default=delta, layers={1: delta}).layers[2] = attention


def test_a_layer_and_its_settings_can_be_overridden():
    changed = override(
        hybrid,
        [
            "model.mechanisms.layers.1.n_kv_heads=1",
            "model.mechanisms.layers.2=sliding_window",
            "model.mechanisms.layers.2.n_heads=2",
            "model.mechanisms.layers.2.n_kv_heads=2",
            "model.mechanisms.layers.2.window=64",
            "model.mechanisms.default.conv_size=2",
        ],
    )
    assert changed.model.per_layer() == [
        replace(delta, conv_size=2),
        replace(attention, n_kv_heads=1),
        SlidingWindow(n_heads=2, n_kv_heads=2, window=64),
        Identity(),
    ]


def test_the_whole_pattern_can_be_overridden():
    text = '{"default": "identity", "layers": {"1": {"kind": "sliding_window", "window": 3}}}'
    for before in (hybrid, base):
        changed = override(before, [f"model.mechanisms={text}", "model.d_model=64"])
        assert kinds(changed) == ["identity", "sliding_window", "identity", "identity"]
        tiled = override(before, ["model.mechanisms=identity,gated_delta_net"])
        assert kinds(tiled) == ["identity", "gated_delta_net"] * 2
    twice = '{"default": "identity", "layers": {"1": "identity", "1": "gated_delta_net"}}'
    said = problems(lambda: override(base, [f"model.mechanisms={twice}"]))
    assert said == ["model.mechanisms: '1' is given twice"]


def test_an_override_of_what_the_pattern_does_not_have_says_what_it_has():
    assert problems(lambda: override(hybrid, ["model.mechanisms.0=identity"])) == [
        "model.mechanisms: no field '0'; known: default, layers"
    ]
    assert problems(lambda: override(hybrid, ["model.mechanisms.layers.2.window=3"])) == [
        "model.mechanisms.layers: no field '2'; known: 1, 3"
    ]
    assert problems(lambda: override(base, ["model.mechanisms.layers.2.window=3"])) == [
        "model.mechanisms: no item 'layers'; known: 0"
    ]


def test_a_study_is_checked_with_every_mechanism_of_its_layers():
    study = Study(question="?", variants={"hybrid": hybrid, "base": base})
    assert [(t.config.kind(), t.name) for t in of_study(study)] == [
        ("gated_delta_net", "hybrid"),
        ("grouped_query", "hybrid, base"),
        ("identity", "hybrid"),
    ]


@pytest.mark.parametrize(
    "mechanisms",
    [
        (delta, attention, delta, Identity()),
        ByLayer(layers={0: delta, 1: attention, 2: delta, 3: Identity()}),
    ],
)
def test_a_report_takes_all_forms_of_one_model_for_one_function(mechanisms):
    written = replace(base, model=replace(base.model, mechanisms=mechanisms))
    other = base.with_mechanisms(delta, layers={2: attention, 3: Identity()})
    configs = {"a": hybrid.to_dict(), "b": written.to_dict(), "c": other.to_dict()}
    assert same_settings(configs) == (("a", "b"), ("c",))
    assert written.identity("data") == hybrid.identity("data")


def test_a_report_takes_a_pattern_and_its_repeats_for_one_function():
    tiled = [base.with_mechanisms(*[delta, attention] * n).to_dict() for n in (1, 2)]
    assert same_settings(dict(zip("ab", tiled, strict=True))) == (("a", "b"),)


@pytest.mark.parametrize("place", [first_n, last_n, spread_evenly])
@pytest.mark.parametrize("n_layers", [1, 5, 12])
def test_a_place_has_as_many_layers_as_were_asked_for(place, n_layers):
    for n in range(n_layers + 1):
        layers = place(n_layers, n)
        assert len(layers) == n
        assert list(layers) == sorted(set(layers))
        assert set(layers) <= set(range(n_layers))


def test_an_even_spread_leaves_gaps_that_differ_by_one_at_most():
    for n in range(1, 13):
        ends = [-1, *spread_evenly(12, n)]
        gaps = {after - before for before, after in pairwise(ends)}
        assert max(gaps) - min(gaps) <= 1
        assert ends[-1] == 11


def test_every_nth_is_the_tile_whose_last_is_another():
    assert every_nth(12, 3) == tuple(i for i in range(12) if i % 3 == 2)
    assert (every_nth(12, 1), every_nth(3, 4)) == (tuple(range(12)), ())


def test_of_one_layer_first_middle_and_last_are_the_same():
    assert first_middle_last(1) == (0,)


@pytest.mark.parametrize("place", [first_n, last_n, spread_evenly])
@pytest.mark.parametrize("n", [-1, 13])
def test_more_layers_than_there_are_is_an_error(place, n):
    with pytest.raises(ValueError, match=f"{n} of 12 layers: must be from 0 to 12"):
        place(12, n)


def test_every_zeroth_layer_is_an_error():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        every_nth(12, 0)


SIZES = {"8x256": 2 * 4, "12x512": 3 * 16, "24x1024": 6 * 64}  # layers x width^2, of 4 x 128
KEPT = (
    "window",
    "top_k",
    "head_dim",
    "conv_size",
    "qk_rope_head_dim",
    "index_head_dim",
    "expand_v",
)


def outside(config):
    parts = config.model.parts(1)
    return parts.attention + parts.feed_forward


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", sorted(MechanismConfig.kinds))
def test_a_mechanism_stays_what_it_is_at_every_size(kind, size):
    one = RunConfig(
        data=base.data,
        model=ModelConfig(mechanisms=(MechanismConfig.kinds[kind](),), feedforward=Dense(d_ff=512)),
    )
    config = override_run(one, [f"model.size={size}"])
    (before,), (after,) = one.model.mechanisms, config.model.mechanisms
    n_layers, d_model = map(int, size.split("x"))
    assert (config.model.n_layers, config.model.d_model) == (n_layers, d_model)
    off = 0.3 if kind == "nsa" else 0.08  # the compression depends on the width of a head alone
    assert outside(config) / outside(one) == pytest.approx(SIZES[size], rel=off)
    assert config.model.feedforward == Dense(d_ff=4 * d_model)
    assert config.train == one.with_learning_rate(3e-4 * 128 / d_model).train
    assert all(getattr(before, name, None) == getattr(after, name, None) for name in KEPT)
    if hasattr(before, "n_heads"):
        assert after.n_heads * 128 == before.n_heads * d_model


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads", "expected"),
    [(4, 4, (8, 8)), (4, 2, (8, 4)), (4, 1, (8, 1)), (1, 1, (2, 2))],
)
def test_the_share_of_kv_heads_stays_and_one_stays_one(n_heads, n_kv_heads, expected):
    one = ModelConfig(mechanisms=(GroupedQuery(n_heads=n_heads, n_kv_heads=n_kv_heads),))
    (found,) = scaled(one, 8, 256).mechanisms
    assert (found.n_heads, found.n_kv_heads) == expected


@pytest.mark.parametrize("name", load_study("mechanisms").variants)
def test_study_1_at_other_sizes_has_the_parameters_that_the_rule_promises(name):
    study = load_study("mechanisms")
    for size, factor in SIZES.items():
        config = study.override([f"model.size={size}"]).variants[name]
        assert outside(config) / outside(study.variants[name]) == pytest.approx(factor, rel=0.05)


def test_a_scale_multiplies_layers_and_width_and_a_size_follows_the_pattern_of_layers():
    found = override_run(hybrid, ["model.scale=2", "model.feedforward.d_ff=24"])
    assert (found.model.n_layers, found.model.d_model) == (8, 2 * hybrid.model.d_model)
    assert kinds(found) == [kind for kind in kinds(hybrid) for _ in range(2)]
    assert found.model.feedforward.d_ff == 24  # settings beside a size come after it
    tiled = base.with_mechanisms(delta, attention)
    assert kinds(override_run(tiled, ["model.size=6x64"])) == kinds(tiled)[:2] * 3
    back = override_run(override_run(tiled, ["model.scale=2"]), ["model.scale=0.5"])
    assert back == tiled


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model.size=8"], "model.size: write LAYERSxWIDTH, such as 8x256; got '8'"),
        (["model.size=0x8"], "model.size: write LAYERSxWIDTH, such as 8x256; got '0x8'"),
        (["model.scale=0"], "model.scale: write a positive number, such as 2; got '0'"),
        (["model.scale=inf"], "model.scale: write a positive number, such as 2; got 'inf'"),
        (["model.scale=1.1"], "model.scale: 4 layers of width 16 times 1.1 are no whole numbers"),
        (
            ["model.size=4x20"],
            "model.size: width 20 makes model.mechanisms.default.n_heads 2.5, from 2 at width 16; "
            "choose a multiple of 8",
        ),
        (["model.size=6x16"], "model.size: 4 layers, some with mechanisms of their own, become a"),
        (
            ["model.size=4x32", "model.scale=2"],
            "model.size: give one size; got model.size=4x32 and",
        ),
        (["model.size=4000000000x16"], "model.size: at most 10,000 layers of width 1,048,576; got"),
        (["model.scale=1e300"], "model.scale: at most 10,000 layers of width 1,048,576; got 4000"),
    ],
)
def test_sizes_that_do_not_fit_say_why(changes, said):
    small = replace(hybrid, model=replace(hybrid.model, d_model=16))
    with pytest.raises(ConfigError) as error:
        override_run(small, changes)
    assert said in str(error.value)


def test_a_study_of_another_size_says_how_the_rates_moved_and_sizes_can_be_swept():
    study = load_study("mechanisms").override(["model.size=8x256"])
    (note,) = study.notes
    assert note == (
        "peak learning rate changed as 1 / width, from 0.0003 at 128 to 0.00015 at 256; "
        "train.learning_rate=RATE sets it"
    )
    own = load_study("mechanisms").override(["model.size=8x256", "train.learning_rate=1e-3"])
    assert not own.notes
    assert {config.train.learning_rate for config in own.variants.values()} == {1e-3}
    swept = sweep(load_study("mechanisms").only(["linear"]), {"model.size": ["4x128", "8x256"]})
    assert list(swept.variants) == ["size_4x128", "size_8x256"]
    assert (swept.swept, swept.baseline) == (("model.d_model",), "size_4x128")
    assert swept.notes == study.notes
    deeper = sweep(load_study("mechanisms").only(["linear"]), {"model.size": ["4x128", "8x128"]})
    assert (deeper.swept, deeper.notes) == (("model.n_layers",), ())
