"""Names of mechanisms and studies, as `check` and `bench` read them."""

import re
from dataclasses import replace

import pytest
from support import tiny_study

from attnlab.config import ConfigError
from attnlab.mechanisms.mla import MLA
from attnlab.study.load import load_study
from attnlab.study.targets import NamedConfig, NamedKind, named, split_assignments


def test_a_name_is_a_kind_a_class_or_a_study():
    kind, study, own, config, cls = named(
        ["mla", "mechanisms", tiny_study.__file__, MLA(kv_lora_rank=8), MLA]
    )
    assert kind == NamedKind("mla", MLA, [])
    assert study == load_study("mechanisms")
    assert own == replace(tiny_study.study, name="tiny_study")
    assert config == NamedConfig("mla", MLA(kv_lora_rank=8), [])
    assert cls == kind


def test_settings_of_a_name_come_after_those_of_all_names():
    (kind,) = named(["mla:kv_lora_rank=8,n_heads=2"], ["n_heads=4"])
    assert kind.name == "mla:kv_lora_rank=8,n_heads=2"
    assert kind.assignments == ["n_heads=4", "kv_lora_rank=8", "n_heads=2"]
    (study,) = named(["mechanisms:train.steps=200"], ["train.batch_size=3"])
    train = study.variants["mha"].train
    assert (train.steps, train.batch_size) == (200, 3)


def test_a_value_may_have_commas_and_colons():
    (study,) = named(["mechanisms:train.betas=0.8,0.9,train.steps=200"])
    assert study.variants["mha"].train.betas == (0.8, 0.9)
    (kind,) = named(['grouped_query:rope_scaling={"kind":"linear","factor":2},n_heads=2'])
    assert kind.assignments == ['rope_scaling={"kind":"linear","factor":2}', "n_heads=2"]


def test_words_of_a_command_line_are_names_or_assignments():
    words = ["mla:kv_lora_rank=8", "train.seq_len=512", "own.py:Mine", "path=a:b=c", "window=3"]
    names, assignments = split_assignments(words)
    assert names == ["mla:kv_lora_rank=8", "own.py:Mine"]
    assert assignments == ["train.seq_len=512", "path=a:b=c", "window=3"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("mlaa", "no mechanism or study 'mlaa'; did you mean 'mla'?"),
        ("mlaa:n_heads=2", "no mechanism or study 'mlaa'; did you mean 'mla'?"),
        ("quikstart", "did you mean 'quickstart'?"),
        ("nowhere.py:Mine", "no file nowhere.py"),
        ("nowhere.py", "no file nowhere.py"),
    ],
)
def test_an_unknown_name_is_an_error_that_suggests_another(word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        named([word])


def test_no_name_is_an_error():
    with pytest.raises(ValueError, match="name at least one mechanism or study"):
        named([], ["window=3"])


def test_a_study_with_impossible_settings_is_an_error():
    with pytest.raises(ConfigError, match="no field 'stpes'; did you mean 'steps'"):
        named(["mechanisms:train.stpes=1"])
