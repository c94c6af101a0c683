"""The words of a command line that name studies, their variants, and mechanisms with settings.

Variants get the size of the baseline before a model is built, or an error with the reason.
"""

import dataclasses
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_study
from support.tiny_study import base

from attnlab.config import Config, ConfigError, is_own
from attnlab.data import DataConfig
from attnlab.data.tokenizer import Tokenizer
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import FeedForward
from attnlab.modules.rope_scaling import RopeScaling
from attnlab.study.catalog import catalog as read_catalog
from attnlab.study.matching import Match
from attnlab.study.study import Study
from attnlab.study.targets import (
    NamedConfig,
    NamedKind,
    addition,
    load_study,
    named,
    shipped,
    split_assignments,
)
from attnlab.training.learning_rate import Schedule
from attnlab.training.optimizer import Optimizer
from attnlab.training.run import RunConfig

catalog = cache(read_catalog)


def test_a_name_is_a_kind_a_class_or_a_study():
    kind, study, own, config, cls = named(
        ["mla", "mechanisms", tiny_study.__file__, MLA(kv_lora_rank=8), MLA]
    )
    assert kind == NamedKind("mla", MLA, [])
    assert study == load_study("mechanisms")
    assert load_study(Path(tiny_study.__file__)) == load_study(tiny_study.__file__)
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


def test_of_a_path_that_is_no_study_and_no_checkpoint_it_is_said_what_is_there(tmp_path):
    damaged, trained, empty = (tmp_path / name for name in ("damaged", "trained", "empty"))
    for folder, text in ((damaged, "{"), (trained, '{"variant": "mha"}'), (empty, None)):
        folder.mkdir()
        if text is not None:
            (folder / "config.json").write_text(text)
    for folder, said in (
        (damaged, "config.json is damaged: "),
        (trained, "trained is a run of attnlab, no checkpoint: name its study or mechanism"),
        (empty, "empty is neither a study (a file .py) nor a folder with the config.json of a "),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            named([str(folder)])
    with pytest.raises(ValueError, match="no mechanism or study ''"):
        named([""])


RIGHT = "write 'moba:block_size=16,top_k=2'; commas without spaces separate settings"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        *(
            (f"moba:block_size=16{between}top_k=2", RIGHT)
            for between in (":", ";", " ", ", ", ",,")
        ),
        ("moba,block_size=16,top_k=2", RIGHT),
        ("moba;block_size=16;top_k=2", RIGHT),
        ("moba(block_size=16, top_k=2)", RIGHT),
        ("moba/block_size=16/top_k=2", "write 'moba:block_size=16"),
        ("moba:block_size=16,", "write 'moba:block_size=16'"),
        ("moba:block_size=16:topk=2", "write KIND:KEY=VALUE,KEY=VALUE, with one colon"),
        ("moba:block_size:16", "settings are written moba:KEY=VALUE,KEY=VALUE"),
        ("moba:16", "settings are written moba:KEY=VALUE"),
        ("moba,mla", "write names with spaces between them, moba mla"),
        ("quickstart:train.steps=2:seed=1", "write 'quickstart:train.steps=2,seed=1'"),
        (f"{__file__}:Own:width=8;depth=2", "test_targets.py has no MechanismConfig"),
    ],
)
def test_settings_in_another_form_are_an_error_with_the_right_form(word, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        named([word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:moba", "'a:moba': write --add a=moba"),
        ("a=", "'a=' names no variant with a mechanism: write --add NAME=KIND"),
        ("=mla", "write --add NAME=KIND"),
        ("a=moba:block_size=16:top_k=2", RIGHT),
    ],
)
def test_a_variant_in_another_form_is_an_error_with_the_right_form(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        addition(text)


@pytest.mark.parametrize(
    ("word", "assignments"),
    [("mla", ["n_heads=2", "n_heads=4"]), ("mla:n_heads=2,n_heads=4", ["n_heads=8"])],
)
def test_a_setting_with_two_values_is_an_error(word, assignments):
    with pytest.raises(ConfigError, match=r"^n_heads: is given twice, as 2 and 4; give it once$"):
        named([word], assignments)


def test_no_name_is_an_error():
    with pytest.raises(ValueError, match=r"name at least one .*; got only settings, window=3"):
        named([], ["window=3"])


def test_a_study_with_impossible_settings_is_an_error():
    with pytest.raises(ConfigError, match="no field 'stpes'; did you mean 'steps'"):
        named(["mechanisms:train.stpes=1"])


FAMILIES = {
    "mechanisms": MechanismConfig,
    "data": DataConfig,
    "tokenizers": Tokenizer,
    "feedforward": FeedForward,
    "optimizers": Optimizer,
    "schedules": Schedule,
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
