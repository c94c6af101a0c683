"""`attnlab check`, and the check before `attnlab run`: what is refused, shown and recorded."""

import json
import os

import pytest
from support import PLANTED_BUGS, SOURCE, TESTS, tiny_study

import attnlab as api
from attnlab.checks.suite import PROPERTIES
from attnlab.checks.targets import of_study, targets
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.modules.rope_scaling import Linear
from attnlab.record import StudyRecord
from attnlab.study import Activity
from attnlab.study.targets import load_study

PLANTED = PLANTED_BUGS
STUDY = """
from dataclasses import replace
from support.planted_bugs import NormOverTime
from support.tiny_study import base, study as tiny

variants = {"honest": base, "leaky": base.with_mechanisms(NormOverTime())}
study = replace(tiny, baseline="honest", variants=variants)
"""


@pytest.fixture
def leaky_study(tmp_path):
    path = tmp_path / "leaky.py"
    path.write_text(STUDY)
    return str(path)


def test_a_correct_mechanism_gets_one_line_and_exit_code_0(attnlab):
    done = attnlab("check", "sliding_window", "window=5", "n_kv_heads=2", "--quick")
    assert done.exit_code == 0, done.output
    assert "window=5" in done.output
    (line,) = done.output.splitlines()  # passes take one line
    assert line.endswith(f"all {len(PROPERTIES)} properties hold")


def test_a_broken_one_of_ones_own_says_where_and_why_and_makes_exit_code_1(attnlab):
    done = attnlab("check", "identity", f"{PLANTED}:FlopsOffByThree", "--quick")
    assert done.exit_code == 1
    words = " ".join(done.output.split())
    assert f"identity d_model=32 all {len(PROPERTIES)} properties hold" in words
    assert f"1 of {len(PROPERTIES)} properties violated" in words
    for word in (
        "FLOPs of a step",
        "8,323 FLOPs stated",
        "batch 1, context 1",
        "usual cause",
        "leaves out",
    ):
        assert word in words


def test_the_same_in_json(attnlab):
    done = attnlab("check", f"{PLANTED}:RaisesOnLongSequences", "--json")
    assert done.exit_code == 1
    (checked,) = json.loads(done.stdout)["mechanisms"]
    assert checked["config"]["kind"].endswith("support/planted_bugs.py:RaisesOnLongSequences")
    assert checked["holds"] is False
    first = checked["properties"][0]
    assert first["property"] == PROPERTIES[0].name
    assert (first["verdict"], first["how_much"]) == ("pass", "0")
    second = checked["properties"][1]
    assert (second["verdict"], second["deviation"]) == ("FAIL", None)
    assert second["how_much"].startswith("raised RuntimeError: seven is too many (at planted_bugs")


def test_a_name_may_carry_settings_of_its_own(attnlab):
    done = attnlab("check", "mla:kv_lora_rank=8", "n_heads=2", "--quick")
    assert done.exit_code == 0, done.output
    assert "mla:kv_lora_rank=8" in done.output
    assert "n_heads=2, kv_lora_rank=8" in done.output


def test_settings_of_a_setting_are_said_with_dots():
    said = ["rope_scaling=linear", "rope_scaling.factor=4", "head_dim=8"]
    (target,) = targets(["grouped_query"], said)
    assert target.config == GroupedQuery(rope_scaling=Linear(factor=4.0), head_dim=8)
    changed = ["model.mechanisms.0.n_heads=4"]
    study = tiny_study.study.only(["mha"])
    assert targets([study], changed)[0].config.to_dict()["n_heads"] == 4


def test_all_is_every_shipped_kind_and_no_kind_of_ones_own(attnlab):
    attnlab("check", f"{PLANTED}:GatedIdentity")
    names = [target.name for target in targets(["all"])]
    shipped = SOURCE / "attnlab" / "mechanisms"
    files = {path.stem for path in shipped.glob("*.py")}
    assert names == sorted(files - {"__init__", "fla_layer"})


def test_a_study_is_checked_at_its_own_settings_and_each_mechanism_once():
    found = {target.name: target for target in of_study(load_study("mechanisms"))}
    assert list(found)[:5] == ["mha", "mla", "gqa_2", "gqa_1, mqa", "sliding_512"]
    assert found["sliding_512"].config.to_dict()["window"] == 512
    assert {target.d_model for target in found.values()} == {128}
    assert [target.name for target in targets([tiny_study.__file__])] == list(
        tiny_study.study.variants
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "mlaa"), "no mechanism or study 'mlaa'; did you mean 'mla'?"),
        (("check", "mla", "n_haeds=2"), "no field 'n_haeds'; did you mean 'n_heads'?"),
        (("check", "mla", "n_heads=two"), "n_heads: expected a whole number, got 'two'"),
        (("check", "window=3"), "name at least one mechanism or study"),
        (("check", "nowhere.py:Mine"), "no file nowhere.py"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(attnlab, arguments, message):
    done = attnlab(*arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


def test_a_study_with_a_leak_is_not_trained(attnlab, leaky_study, tmp_path):
    done = attnlab("run", leaky_study, "--device", "cpu", "--seeds", "1")
    assert done.exit_code == 1, done.output
    words = " ".join(done.output.split())
    assert "FAIL no position sees the future" in words
    assert "leaky support/planted_bugs.py:NormOverTime" in words.replace(f"{TESTS}/", "")
    assert "properties are violated; nothing was trained" in words
    assert "use --no-check to train regardless" in words
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", ["run", "probe", "reproduce"])
def test_every_command_that_trains_says_alike_that_properties_are_violated(
    attnlab, monkeypatch, command
):
    def refuse(*_, watch, **__):
        watch(Activity("checking mechanisms"))
        raise api.ViolatedPropertyError([])

    monkeypatch.setattr(api, command, refuse, raising=False)
    done = attnlab(command, "mqar")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: properties are violated; nothing was trained")


def test_no_check_trains_it_and_the_record_says_so(attnlab, leaky_study, tmp_path, monkeypatch):
    whole = ("run", leaky_study, "--device", "cpu", "--seeds", "1", "--workers", "1")
    assert attnlab(*whole, "--only", "honest").exit_code == 0
    folder = tmp_path / "results" / "leaky"
    assert StudyRecord.read(folder).checked
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{SOURCE}")  # for the workers
    assert attnlab(*whole, "--no-check").exit_code == 0
    assert not StudyRecord.read(folder).checked
    # all has ended: nothing is left to check, and what was not checked does not become so
    again = attnlab(*whole)
    assert again.exit_code == 0, again.output
    assert not StudyRecord.read(folder).checked
