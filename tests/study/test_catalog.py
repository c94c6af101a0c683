"""The catalog that is read from source files equals the classes that Python makes of them."""

import dataclasses

import pytest

from attnlab.config import Config, is_own
from attnlab.data import DataConfig
from attnlab.data.tokenizer import Tokenizer
from attnlab.mechanism import MechanismConfig
from attnlab.model.feedforward import FeedForward
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.study.catalog import catalog
from attnlab.study.load import shipped
from attnlab.training.run import RunConfig

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
