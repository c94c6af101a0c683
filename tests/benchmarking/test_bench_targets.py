"""What `attnlab bench` measures: a study's variants at their sizes, kinds at those named."""

import re

import pytest
from support import tiny_study

from attnlab.benchmarking.point import Point, points
from attnlab.benchmarking.targets import Sizes, study_of, targets
from attnlab.model.feedforward import Dense
from attnlab.study.study import load_study

SIZES = Sizes(d_model=32, n_layers=2, n_heads=4, vocab_size=50)


def test_a_study_has_its_own_sizes():
    found = targets([tiny_study.__file__], ["model.n_layers=3"], SIZES)
    assert [target.name for target in found] == list(tiny_study.study.variants)
    for target in found:
        run = tiny_study.study.variants[target.name]
        assert target.setup.model.mechanisms == run.model.mechanisms
        assert (target.setup.model.d_model, target.setup.model.n_layers) == (16, 3)
        assert (target.setup.vocab_size, target.setup.train) == (256, run.train)
    assert study_of(["mechanisms"]) == load_study("mechanisms")
    assert study_of(["mla"]) is study_of(["mechanisms", "mla"]) is None


def test_a_kind_takes_the_heads_of_the_model_and_keeps_its_other_settings():
    words = ["grouped_query", "mla", "gated_delta_net", "deepseek_sparse"]
    mha, mla, delta, sparse = (target.setup for target in targets(words, [], SIZES))
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
    narrow, wide = targets(words, assignments, SIZES)
    assert narrow.name == words[0]
    assert narrow.setup.model.mechanisms[0].window == 8
    assert narrow.setup.model.mechanisms[0].n_kv_heads == 2
    assert wide.setup.model.mechanisms[0].window == 32
    assert {target.setup.train.precision for target in (narrow, wide)} == {"float32"}
    of_setting = ["rope_scaling=linear", "rope_scaling.factor=4", "model.n_layers=1"]
    ((_, setup),) = targets(["grouped_query"], of_setting, SIZES)
    assert (setup.model.mechanisms[0].rope_scaling.factor, setup.model.n_layers) == (4.0, 1)


@pytest.mark.parametrize(
    ("words", "assignments", "message"),
    [
        (["mlaa"], [], "nothing to measure is called 'mlaa'; did you mean 'mla'?"),
        (["mla", "mla"], [], "two targets are called 'mla'"),
        ([], ["window=3"], "name what to measure"),
        (["mla"], ["n_haeds=2"], "no field 'n_haeds'; did you mean 'n_heads'?"),
        (["mla"], ["train.stpes=2"], "no field 'stpes'; did you mean 'steps'?"),
        (["grouped_query:n_kv_heads=3"], [], "3 does not divide n_heads 4"),
    ],
)
def test_a_mistake_is_said(words, assignments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        targets(words, assignments, SIZES)


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
