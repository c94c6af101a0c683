"""X"""

import dataclasses
import re
from dataclasses import replace

import pytest
from support import tiny_study

from attnlab.config import Config, ConfigError, is_own
from attnlab.data import DataConfig
from attnlab.data.tokenizer import Tokenizer
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.mla import MLA
from attnlab.model.feedforward import FeedForward
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.study.catalog import catalog
from attnlab.study.load import load_study, shipped
from attnlab.study.targets import NamedConfig, NamedKind, named, split_assignments
from attnlab.training.run import RunConfig


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


FAMILIES = {
    "mechanisms": MechanismConfig,
    "data": DataConfig,
    "tokenizers": Tokenizer,
    "feedforward": FeedForward,
    "rope_scalings": RopeScaling,
}


def settings(cls):
    """The fields and defaults of a dataclass, as JSON values."""

    def default(field):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is dataclasses.MISSING:
            return "required"
        value = value.to_dict() if isinstance(value, Config) else value
        return list(value) if isinstance(value, tuple) else value

    return {field.name: default(field) for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_have_the_names_settings_and_defaults_of_the_classes(family):
    read = {kind.name: dict(kind.settings) for kind in catalog().families[family]}
    kinds = {name: cls for name, cls in FAMILIES[family].kinds.items() if not is_own(cls)}
    expected = {name: settings(cls) for name, cls in kinds.items()}
    expected |= {f"{prefix}:NAME": {} for prefix in FAMILIES[family].elsewhere}
    assert read == expected
    for name, found in read.items():
        assert list(found) == list(expected[name])  # in the same order
    assert list(catalog().families) == list(FAMILIES)


def test_every_kind_has_a_summary():
    for kinds in catalog().families.values():
        for kind in kinds:
            assert len(kind.summary.split()) > 2, kind.name


def test_sections_are_those_of_a_run_and_no_kinds():
    sections = {"model", "train", "eval"}
    hints = {field.name for field in dataclasses.fields(RunConfig)}
    assert sections == hints - {"data", "seed"}
    assert set(catalog().settings) == sections
    for name, cls in RunConfig.__annotations__.items():
        if name in sections:
            assert dict(catalog().settings[name]) == settings(cls)


def test_studies_are_the_shipped_ones_with_their_question():
    studies = catalog().studies
    assert sorted(studies) == sorted(shipped())
    for name, study in shipped().items():
        assert " ".join(study.question.split()).startswith(studies[name])


def test_a_kind_is_found_by_its_name():
    assert catalog().kinds("mla")["mechanisms"].settings["n_heads"] == 4
    with pytest.raises(ValueError, match="nothing is called 'mlaa'; did you mean 'mla'"):
        catalog().kinds("mlaa")
