"""Malformed options end at once: one line that says what to do, exit code 2, no traceback.

`attnlab check`, and the check before `attnlab run`: what is refused, shown and recorded.
"""

import errno
import inspect
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import get_args, get_type_hints
from unittest.mock import Mock

import pytest
import torch
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PLANTED_BUGS, SOURCE, TESTS, tiny_study

import attnlab as api
from attnlab.checks import table
from attnlab.checks.targets import of_study, targets
from attnlab.cli.app import app, decimal, stored
from attnlab.cli.console import errors
from attnlab.config import ConfigError, override, own_code
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.modules.rope_scaling import Linear
from attnlab.record import StudyRecord, WriteError
from attnlab.study import Activity
from attnlab.study.targets import load_study

HUGE = "9" * 30
MALFORMED = {
    "--out|": "--out: no folder is named",
    "--out| ": "--out: no folder is named",
    "--out|/dev/null": "out: /dev/null is a file, not a folder",
    "--out|/dev/null/x": "out: /dev/null is a file, not a folder",
    f"--out|{__file__}": f"out: {__file__} is a file, not a folder",
    "--out|a\0b": "--out: a path has no zero byte",
    f"--out|{'x' * 300}": "is no possible name of a folder",
    "--only|": "only: no variant is named",
    "--only|,": "--only: no variant is named",
    "--only|mhx": "no variant 'mhx'; did you mean 'mha'?",
    "--workers|0": "workers: must be at least 1",
    "--workers|-1": "workers: must be at least 1",
    "--seeds|0": "seeds: must be at least 1, and at most 1000; got 0",
    f"--seeds|{HUGE}": "--seeds: must have at most 18 digits",
    "--steps|0": "train.steps: must be at least 1",
    f"--steps|{HUGE}": "--steps: must have at most 18 digits",
    "--device|tpu": "unknown device 'tpu'",
    "--device|cuda:99": "no device 'cuda:99'",
    "--length|x": "no length 'x'",
    "--add|x=": "'x=' names no variant with a mechanism",
    "--add|": "'' names no variant with a mechanism",
    "--add|x=mla:n_heads=": "n_heads: expected a whole number, got '' (in --add x=mla:n_heads=)",
    "--track|x": "no tracking tool 'x'",
    "--plan|--track|x": "no tracking tool 'x'",
    "train.steps=10|train.steps=20": "train.steps: is given twice, as 10 and 20; give it once",
    "--steps|10|train.steps=20": "train.steps: is given twice, as 10 and 20; give it once",
    "--plan|--residual-sd|nan": "--residual-sd: expected a finite number",
    "--plan|--residual-sd|0": "--residual-sd: must be positive",
    "--plan|--trial-seconds|inf": "--trial-seconds: expected a finite number",
    "--plan|--trial-seconds|-1": "--trial-seconds: must not be negative",
    "--seeds|1k": "seeds: must be at least 1, and at most 1000; got 1024",
    "foo": "foo: no value is given; write section.key=value",
    "train.steps": "train.steps: no value is given; write section.key=value",
    "=3": "no field ''",
    "train.=3": "train: no field ''",
    ".=": "no field ''",
    "train.steps.x=3": "train.steps: is one value; it has no field 'x'",
    "train.optimizer.momentum=0": "while it is none; set train.optimizer=KIND before it",
    "train.optimizer=muon:momentum=0": "SETTING=muon SETTING.momentum=0",
    "train.stpes=3": "train: no field 'stpes'; did you mean 'steps'?",
    "model.mechanisms.9.window=3": "model.mechanisms: no item '9'; known: 0",
    "model.mechanisms=3": "unknown kind '3'",
    "model.mechanisms=null": "model.mechanisms",
    f"model.n_layers={HUGE}": "model.n_layers: must have at most 18 digits",
    "model.mechanisms.².window=3": "model.mechanisms: no item '²'; known: 0",
    f"model.mechanisms.{HUGE}.window=3": "model.mechanisms: no item",
    "model.feedforward=" + '{"a":' * 9999: "model.feedforward: not JSON: maximum recursion depth",
    "model.n_layers=100m": "model.n_layers: must be at least 1, and at most",
    "model.d_model=1000g": "model.d_model: must be at least 1, and at most",
    "data=nothing": "data: unknown kind 'nothing'",
    "data.max_bytes=0": "data.max_bytes: must be at least",
    "train.learning_rate=nan": "train.learning_rate: expected a finite number",
    "train.keep=some": "train.keep: expected one of",
    "[bold]=[/red]": "no field '[bold]'",
    ":b:=1": "no field ':b:'",
}


@pytest.mark.parametrize("words", MALFORMED)
def test_a_malformed_option_is_a_line_and_exit_code_2(attnlab, monkeypatch, tmp_path, words):
    monkeypatch.setattr(errors, "width", 1000)
    begin = time.monotonic()
    done = attnlab("run", tiny_study.__file__, "--no-check", *words.split("|"))
    assert done.exit_code == 2, done.output
    assert MALFORMED[words] in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 2
    assert time.monotonic() - begin < 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ("", "no study ''"),
        ("nothing", "no study 'nothing'"),
        ("exp[bold].py", "no file exp[bold].py"),
        ("mla", "mla is a mechanism, not a study. attnlab check mla checks it"),
        ("mla:kv_lora_rank=8", "model.mechanisms.0=mla model.mechanisms.0.kv_lora_rank=8"),
        ("mine.py:Mine", "--only mha model.mechanisms.0=mine.py:Mine trains it"),
    ],
)
def test_what_is_no_study_is_explained_in_a_line(attnlab, study, said):
    done = attnlab("run", study)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "error: here: No space left on device; free disk space, or write to"),
        (errno.EACCES, "error: here: Permission denied; change its permissions, or name another"),
        (errno.EROFS, "error: here: Read-only file system; change its permissions, or name"),
        (errno.EISDIR, "error: here: Is a directory; a folder stands where a file belongs"),
        (errno.ENAMETOOLONG, "error: here: File name too long; use a shorter name"),
        (errno.EMFILE, "error: here: Too many open files; end other programs, use fewer --workers"),
        (errno.EFBIG, "error: here: File too large; raise the limit of ulimit -f, or write to"),
    ],
)
def test_what_the_system_refuses_is_a_line_with_a_remedy(attnlab, monkeypatch, number, said):
    refused = OSError(number, os.strerror(number), "here")
    written = WriteError.of(Path("here"), refused)
    for error in (refused, written):
        monkeypatch.setattr(api, "report", Mock(side_effect=error), raising=False)
        done = attnlab("report", "anywhere")
        assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
        assert done.stderr.replace(" could not be written", "").startswith(said)


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (MemoryError(), "error: not enough memory; end other programs, or raise the limit"),
        (torch.OutOfMemoryError("CUDA out of memory"), "error: CUDA out of memory; end other"),
        (RuntimeError("can't start new thread"), "error: can't start new thread; end other"),
        (
            UnicodeEncodeError("ascii", "a" * 50 + "é" + "b" * 50, 50, 51, "ordinal not in range"),
            f"error: '{'a' * 40}é{'b' * 40}' has characters that ascii cannot write; use other",
        ),
    ],
)
def test_a_limit_of_the_system_is_a_line_with_a_remedy(attnlab, monkeypatch, refused, said):
    monkeypatch.setattr(api, "report", Mock(side_effect=refused), raising=False)
    done = attnlab("report", "anywhere")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(said)


@pytest.mark.parametrize("words", ["report|here", "run|mine.py", "list|mine.py"])
def test_what_may_not_be_read_is_a_line_with_a_remedy(attnlab, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("mine.py").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused = PermissionError(errno.EACCES, "Permission denied", "mine.py")
    monkeypatch.setattr(own_code._OwnLoader, "get_data", Mock(side_effect=refused))
    done = attnlab(*words.split("|"))
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert words.split("|")[1] in done.stderr
    assert "ermission denied; change its permissions, or name another place" in done.stderr


@pytest.mark.parametrize("words", ["run|a.py", "list|a.py", "compare|a.py", "export|a.py"])
def test_a_link_that_leads_to_itself_is_named(attnlab, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("a.py").symlink_to("a.py")
    done = attnlab(*words.split("|"))
    assert done.exit_code == 2
    assert "a.py" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("words", ["report|results/tiny_study", "compare|results/tiny_study"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_verdict_whose_report_cannot_be_written_is_printed(
    attnlab, trained, monkeypatch, words, form
):
    def full(path, *_, **__):
        raise WriteError.of(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    (trained / "report.md").unlink()
    monkeypatch.setattr("attnlab.reporting.files.replace_file", full)
    done = attnlab(*words.split("|"), *(["--json"] if form == "json" else []))
    assert done.exit_code == 2
    assert ('"mha": {' if form == "json" else " has the lowest loss (") in done.stdout
    assert "Report:" not in done.stdout
    (said,) = done.stderr.splitlines()
    assert "could not be written: No space left on device; free disk space" in said


USAGE = {
    "run": "missing argument 'STUDY' (attnlab run --help lists what it takes)",
    "run|x|--sedes|2": "no option --sedes; did you mean '--seeds'?",
    "run|x|--\x1b[31mx\x07": "no option --\\x1b[31mx\\x07 (attnlab run",
    "run|x|-z": "no option -z (attnlab run",
    "generate|x|--tokens|5": "no option --tokens; did you mean '--max-new-tokens'?",
    "run|x|--seeds": "option '--seeds' requires an argument (attnlab run",
    "list|--json=3": "option '--json' does not take a value",
    "run|x|--seeds|2|--seeds=3": "option '--seeds' is given twice, as 2 and 3; give it once",
    "bench|mla|--what|train|--what|decode": "option '--what' is given twice, as train and decode",
    "run|x|--tune|--no-tune": "options '--tune' and '--no-tune' exclude each other (attnlab run",
    "list|a|b": "error: unexpected b (attnlab list --help",
    "rnu": "no command 'rnu'; did you mean 'run'? (attnlab --help",
    "--verison": "no option --verison; did you mean '--version'? (attnlab --help",
    "generate|--prompt": "option '--prompt' requires an argument (attnlab generate",
    "generate": "missing option '--prompt' (attnlab generate",
    "generate|--prompt|x|--samples|2k": "--samples: must be at most 1,000, got 2,048",
    "bench|mla|--seconds|0": "--seconds: must be at least 0.001, got 0.0 (attnlab bench",
}


@pytest.mark.parametrize("words", USAGE)
def test_an_error_of_usage_is_a_line_without_a_box_and_exit_code_2(attnlab, words):
    done = attnlab(*words.split("|"))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert USAGE[words] in done.stderr
    assert done.stderr.isascii()
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        f"run|{tiny_study.__file__}|--out|published/old",
        f"run|{tiny_study.__file__}|--plan|--out|./results/../published/new",
        f"run|{tiny_study.__file__}|--out|link",
        "bench|identity|--out|published/old",
        "compare|published/old|--out|published",
        "extend|results/tiny_study/mha/seed-0|--by|1|--out|published/old",
        "export|results/tiny_study/mha/seed-0|--out|published/old",
    ],
)
def test_no_command_writes_into_published_results(attnlab, trained, tmp_path, words):
    shutil.copytree(trained, "published/old")
    Path("link").symlink_to("published/old")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = attnlab(*words.split("|"))
    assert (done.exit_code, done.stdout) == (2, "")
    out = words.rpartition("|")[2]
    assert done.stderr.startswith(f"error: {Path(out)}: published results are only read; choose")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def numeric_options():
    for name, command in typer.main.get_command(app).commands.items():
        hints = get_type_hints(inspect.unwrap(command.callback))
        for parameter in command.params:
            for kind in {int, float} & {hints[parameter.name], *get_args(hints[parameter.name])}:
                yield name, parameter.opts[0], kind


@pytest.mark.parametrize(("name", "option", "kind"), sorted(numeric_options(), key=str))
def test_every_option_reads_numbers_as_settings_are_read(attnlab, name, option, kind):
    required = [name, "x", *(["--prompt", "x"] * (name == "generate"))]
    word = "whole number, such as 500 or 10k" if kind is int else "number, such as 0.5"
    refused = attnlab(*required, option, "10x")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        f"error: {option}: expected a {word}; got '10x' (attnlab {name}"
    )
    if kind is int:
        accepted = attnlab(*required, option, "1k").stderr
        assert "expected a whole number" not in accepted


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_a_number_on_the_command_line_is_finite(text):
    with pytest.raises(typer.BadParameter, match="expected a finite number"):
        decimal()(text)


@settings(max_examples=150, deadline=2000)
@given(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            "{}={}".format,
            st.sampled_from(
                ["seed", "train.steps", "model.mechanisms.0.n_heads", "model.mechanisms", "eval"]
            ),
            st.one_of(
                st.text(max_size=20),
                st.integers().map(str),
                st.floats().map(str),
                st.sampled_from(["[]", "{}", "[1,2", '{"kind": "mla"}', "[[[[]]]]", "1e999"]),
            ),
        ),
    )
)
def test_no_override_fails_but_with_a_problem_per_line(text):
    with suppress(ConfigError):
        override(tiny_study.base, [text])


def test_brackets_in_paths_are_printed_as_they_are(attnlab, trained, tmp_path):
    trained.rename("exp[bold]")
    done = attnlab("report", "exp[bold]")
    assert done.exit_code == 0, done.output
    assert "Report: exp[bold]/report.html" in done.stdout


def test_a_bare_name_is_a_study_in_results_and_then_a_published_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("results/both", "published/both", "published/old/mha/seed-0", "here"):
        Path(folder).mkdir(parents=True)
    found = {
        "both": "results/both",
        "old": "published/old",
        "old/mha/seed-0": "published/old/mha/seed-0",
        "here": "here",
        "nothing": "nothing",
        str(tmp_path / "both"): str(tmp_path / "both"),
    }
    for name, expected in found.items():
        assert stored(Path(name)) == Path(expected)
        said = capsys.readouterr().err
        assert said == (f"{name}: {expected}\n" if expected.startswith(("r", "p")) else "")


def test_the_variant_that_a_mechanism_can_replace_exists():
    assert "mha" in load_study("quickstart").variants


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
    assert line.endswith(f"all {len(table.PROPERTIES)} properties hold")


def test_a_broken_one_of_ones_own_says_where_and_why_and_makes_exit_code_1(attnlab):
    done = attnlab("check", "identity", f"{PLANTED}:FlopsOffByThree", "--quick")
    assert done.exit_code == 1
    words = " ".join(done.output.split())
    assert f"identity d_model=32 all {len(table.PROPERTIES)} properties hold" in words
    assert f"1 of {len(table.PROPERTIES)} properties violated" in words
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
    assert first["property"] == table.PROPERTIES[0].name
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
        (("check", "nsa", "mla:n_heads=two"), "got 'two' (in mla:n_heads=two)"),
        (("bench", "nsa", "mla:n_heads=two"), "got 'two' (in mla:n_heads=two)"),
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
