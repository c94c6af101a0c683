"""The models of a bench: a study's variants at their sizes, mechanisms at the given sizes."""

import re

import pytest
from support import tiny_study

from attnlab.benchmarking.point import Point, points
from attnlab.benchmarking.targets import Sizes, only_named, setups_of
from attnlab.config import ConfigError
from attnlab.mechanisms.mla import MLA
from attnlab.model.feedforward import Dense
from attnlab.study.targets import named

SIZES = Sizes(d_model=32, n_layers=2, n_heads=4, vocab_size=50)


def found(words, assignments=()):
    return setups_of(named(words, assignments), SIZES)


def test_a_study_has_its_own_sizes():
    variants = found([tiny_study.__file__], ["model.n_layers=3"])
    assert list(variants) == list(tiny_study.study.variants)
    for name, setup in variants.items():
        run = tiny_study.study.variants[name]
        assert setup.model.mechanisms == run.model.mechanisms
        assert (setup.model.d_model, setup.model.n_layers) == (16, 3)
        assert (setup.vocab_size, setup.train) == (256, run.train)


def test_a_kind_takes_the_heads_of_the_model_and_keeps_its_other_settings():
    words = ["grouped_query", "mla", "gated_delta_net", "deepseek_sparse"]
    mha, mla, delta, sparse = found(words).values()
    (heads,) = mha.model.mechanisms
    assert (heads.n_heads, heads.n_kv_heads) == (4, 4)
    (latent,) = mla.model.mechanisms
    assert (latent.n_heads, latent.qk_nope_head_dim, latent.v_head_dim) == (4, 8, 8)
    assert latent.kv_lora_rank == type(latent)().kv_lora_rank
    assert delta.model.mechanisms[0].head_dim == 8
    assert sparse.model.mechanisms[0].index_head_dim == 64
    assert (mha.model.n_layers, mha.model.feedforward, mha.vocab_size) == (2, Dense(d_ff=128), 50)


def test_settings_are_of_all_of_one_target_or_of_a_section():
    words = ["sliding_window:window=8,n_kv_heads=2", "sliding_window"]
    assignments = ["window=32", "train.precision=float32"]
    setups_by_name = found(words, assignments)
    assert list(setups_by_name) == words
    narrow, wide = setups_by_name.values()
    assert narrow.model.mechanisms[0].window == 8
    assert narrow.model.mechanisms[0].n_kv_heads == 2
    assert wide.model.mechanisms[0].window == 32
    assert {setup.train.precision for setup in (narrow, wide)} == {"float32"}
    of_setting = ["rope_scaling=linear", "rope_scaling.factor=4", "model.n_layers=1"]
    (setup,) = found(["grouped_query"], of_setting).values()
    assert (setup.model.mechanisms[0].rope_scaling.factor, setup.model.n_layers) == (4.0, 1)


def test_a_config_is_measured_as_given_except_for_the_assignments():
    config = MLA(n_heads=2, kv_lora_rank=8)
    (setup,) = found([config], ["q_lora_rank=4", "train.precision=float32"]).values()
    (mechanism,) = setup.model.mechanisms
    assert (mechanism.n_heads, mechanism.kv_lora_rank, mechanism.q_lora_rank) == (2, 8, 4)
    assert (setup.model.d_model, setup.train.precision) == (32, "float32")


def test_only_some_of_the_models_are_kept():
    all_of_them = found(["mla", "identity", "grouped_query"])
    assert list(only_named(all_of_them, "identity, mla")) == ["mla", "identity"]
    assert list(only_named(all_of_them, ["mla"])) == ["mla"]
    assert only_named(all_of_them, None) == all_of_them
    with pytest.raises(ConfigError, match="no variant 'mlb'; did you mean 'mla'"):
        only_named(all_of_them, "mlb")


@pytest.mark.parametrize(
    ("words", "assignments", "message"),
    [
        (["mla", "mla"], [], "two models are called 'mla'"),
        (["mla"], ["n_haeds=2"], "no field 'n_haeds'; did you mean 'n_heads'?"),
        (["mla"], ["train.stpes=2"], "no field 'stpes'; did you mean 'steps'?"),
        (["grouped_query:n_kv_heads=3"], [], "3 does not divide n_heads 4"),
    ],
)
def test_a_mistake_is_said(words, assignments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        found(words, assignments)


def test_heads_must_divide_the_model_width():
    with pytest.raises(ConfigError, match="5 heads do not divide d_model 32"):
        Sizes(d_model=32, n_heads=5)


def test_contexts_grow_from_the_sequence_length_where_none_are_named():
    grown = list(points([("a", 1024), ("b", 20_000)], ["decode"], None, [8, 1]))
    assert [point.context for point in grown if point.variant == "a"][::2] == [
        1024,
        4096,
        16_384,
        65_536,
    ]
    assert [point for point in grown if point.variant == "b"] == [
        Point("b", "decode", 20_000, 1),
        Point("b", "decode", 20_000, 8),
    ]
    named = list(points([("a", 1024)], ["train", "decode"], [64, 16], [1]))
    assert [(point.what, point.context) for point in named] == [
        ("train", 16),
        ("train", 64),
        ("decode", 16),
        ("decode", 64),
    ]
