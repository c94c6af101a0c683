"""The command line's work as functions: what they return, write and refuse, in scripts as well."""

import dataclasses
import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer.main
from support import SOURCE, TESTS, fake_workers, tiny_study

import attnlab
from attnlab.analysis.profile import Accuracy
from attnlab.benchmarking.bench import Measured
from attnlab.cli import app
from attnlab.config import ConfigError
from attnlab.mechanism import MechanismConfig
from attnlab.runner.events import Activity, Ended, Progress, RunEvent, Started
from attnlab.runner.probe import FULL, QUICK, probe_study
from attnlab.runner.request import Request

SCRIPT = """
from pathlib import Path
import attnlab
import pytest
from attnlab import Identity
from support.fake_workers import draw_nothing
from support.tiny_study import study

with Path("executed").open("a") as file:
    print(__name__, file=file)
draw_nothing(pytest.MonkeyPatch())
analysis = attnlab.run(study, only=["identity"], seeds=1, device="cpu", out="out", check=False)
print(*(variant.name for variant in analysis.table.variants))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(tmp_path, cache, monkeypatch):
    """What makes a call quick, and keeps it here."""
    fake_workers.draw_nothing(monkeypatch)
    fake_workers.judge_few(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return {"device": "cpu", "workers": 1, "seeds": 1, "cache": cache}


@pytest.fixture
def bugs(monkeypatch):
    """A file of mechanisms, imported as one's own; its kinds are forgotten afterwards."""
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    return import_module("support.planted_bugs")


def python(*arguments, cwd, cache):
    environment = {**os.environ, "ATTNLAB_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(SOURCE)])
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory, cache):
    """A study that ran: its analysis, and what its watcher was told."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
        fake_workers.draw_nothing(patch)
        fake_workers.judge_few(patch)
        analysis = attnlab.run(
            tiny_study.__file__,
            only=["mha", "identity"],
            seeds=1,
            steps=6,
            out=tmp_path_factory.mktemp("results") / "tiny",
            device="cpu",
            workers=1,
            cache=cache,
            watch=said.append,
        )
    return analysis, said


def test_a_study_runs_to_its_verdict_and_the_record_has_the_call(done):
    analysis, _ = done
    assert {variant.name for variant in analysis.table.variants} == {"mha", "identity"}
    assert not analysis.table.failures
    folder = analysis.table.path
    assert (folder / "report.html").is_file()
    record = json.loads((folder / "study.json").read_text())
    assert record["checked"] is True
    assert record["command"] == (
        f"attnlab.run({tiny_study.__file__!r}, only=['mha', 'identity'], seeds=1, steps=6)"
    )
    assert attnlab.analyse(folder).headline == analysis.headline


def test_a_watcher_is_told_what_happens_in_order(done):
    _, said = done
    assert [word.description for word in said if isinstance(word, Activity)] == [
        "reading the data",
        "checking mha",
        "checking identity",
        "writing the report",
    ]
    begun = next(i for i, word in enumerate(said) if isinstance(word, Started))
    assert all(isinstance(word, RunEvent) for word in said[begun + 1 : -1])
    events = [word.event for word in said[begun + 1 : -1]]
    assert isinstance(events[0], Progress)
    assert isinstance(events[-1], Ended)
    assert said[begun].schedule.verdict_count().done == 2


def test_text_is_generated_from_a_run_or_a_loaded_model(done):
    run = done[0].table.path / "mha" / "seed-0"
    greedy = {"max_new_tokens": 5, "sampling": attnlab.Sampling(temperature=0)}
    pieces = []
    texts = attnlab.generate(run, "def é", samples=2, device="cpu", watch=pieces.append, **greedy)
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert texts[0].startswith("def é")
    assert texts[0].startswith("".join(pieces))
    trained = attnlab.load_run(run)
    assert attnlab.generate(trained, "def é", **greedy) == texts[:1]
    prompt_BT = torch.from_numpy(trained.codec.encode(["def é"]).astype("int64"))[None]
    tokens = [int(token) for token in attnlab.generate_tokens(trained.model, prompt_BT, **greedy)]
    assert trained.codec.decode([*prompt_BT[0].tolist(), *tokens]) == texts[0]
    for message, asked in (
        ("the prompt is empty", {"prompt": ""}),
        ("the prompt is not Unicode text .* at 1.: give it in UTF-8", {"prompt": "a\udcff"}),
        ("samples: must be at least 1, got -1", {"prompt": "a", "samples": -1}),
        ("max_new_tokens: must be at least 1, got 0", {"prompt": "a", "max_new_tokens": 0}),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            attnlab.generate(trained, **asked)
    with pytest.raises(ValueError, match="which: no weights 'worst'; known: last, best"):
        attnlab.load_run(run, which="worst")


def test_a_report_is_rebuilt_and_runs_are_compared(done, tmp_path, monkeypatch):
    fake_workers.draw_nothing(monkeypatch)
    folder = done[0].table.path
    before = (folder / "table.csv").read_text()
    (folder / "table.csv").unlink()
    assert attnlab.report(folder).headline == done[0].headline
    assert (folder / "table.csv").read_text() == before
    compared = attnlab.compare(folder / "mha", folder / "identity", out=tmp_path / "out")
    assert [variant.name for variant in compared.table.variants] == ["mha", "identity"]
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_bench_is_a_result_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 50}
    events = []
    call = {"contexts": [8], "batches": [1], "measure": ["decode"], "seconds": 0.001, **sizes}
    result = attnlab.bench(
        "identity", "mla:kv_lora_rank=8", device="cpu", watch=events.append, **call
    )
    assert [point["variant"] for point in result.points] == ["identity", "mla:kv_lora_rank=8"]
    assert {point["status"] for point in result.points} == {"ok"}
    assert not result.failures
    assert result.folder == Path("results/bench")
    assert result.files == ("bench.json", "bench-batch-1.png")
    assert sorted(path.name for path in result.folder.iterdir()) == sorted(result.files)
    assert [event.point for event in events if isinstance(event, Measured)] == result.points


def test_an_interrupt_goes_through_and_leaves_a_report_and_the_same_call_goes_on(
    quick, monkeypatch
):
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)

    def interrupt(said):
        if isinstance(said, RunEvent) and isinstance(said.event, Ended):
            raise KeyboardInterrupt

    call = {"only": ["mha", "identity"], "out": "out", "check": False, **quick}
    with pytest.raises(KeyboardInterrupt):
        attnlab.run(tiny_study.study, watch=interrupt, **call)
    assert Path("out/report.html").is_file()
    (first,) = Path("out").glob("*/seed-0/summary.json")
    written = first.stat().st_mtime_ns
    analysis = attnlab.run(tiny_study.study, **call)
    assert len(list(Path("out").glob("*/seed-0/summary.json"))) == 2
    assert first.stat().st_mtime_ns == written
    assert not analysis.table.failures


def test_what_failed_is_in_the_analysis_and_no_exception(quick, monkeypatch):
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    impossible = ["train.learning_rate=1e30", "train.clip_norm=1e30"]
    analysis = attnlab.run(
        tiny_study.study, only=["identity"], overrides=impossible, out="out", **quick
    )
    ((variant, failed),) = analysis.table.failures
    assert (variant.name, failed.status) == ("identity", "diverged")


def test_a_broken_mechanism_is_not_trained_and_the_error_has_what_is_wrong(
    quick, bugs, monkeypatch
):
    calls = []

    class Noting(fake_workers.InProcess):
        def prepare(self, runs):
            calls.append(("prepare", runs))

        def start(self, planned):
            calls.append("start")

        def stop(self):
            calls.append("stop")

    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", Noting)
    checked = attnlab.runner.run.check_targets
    monkeypatch.setattr(
        "attnlab.runner.run.check_targets",
        lambda *given, **options: (calls.append("check"), checked(*given, **options))[1],
    )
    variants = {"leaky": tiny_study.base.with_mechanisms(bugs.MeanOverTime())}
    study = replace(tiny_study.study, baseline="leaky", variants=variants)
    with pytest.raises(
        attnlab.ViolatedPropertyError, match="leaky: no position sees the future"
    ) as e:
        attnlab.run(study, out="out", **quick)
    (checked,) = e.value.checked
    assert checked.target.name == "leaky"
    assert not checked.holds
    assert not Path("out").exists()
    assert calls == [("prepare", 1), "check", "stop"]


def test_what_cannot_be_run_is_refused_before_anything_is_spent(quick, monkeypatch):
    with pytest.raises(ValueError, match="no study 'quikstart'; did you mean 'quickstart'"):
        attnlab.run("quikstart")
    with pytest.raises(ConfigError, match="no field 'stpes'"):
        attnlab.run("quickstart", overrides=["train.stpes=1"])
    with pytest.raises(ValueError, match="the study has no name"):
        attnlab.run(tiny_study.study, **quick)
    monkeypatch.setattr(attnlab.Identity, "__module__", "__main__")
    with pytest.raises(ValueError, match="Identity: is defined in a script or notebook"):
        attnlab.run(tiny_study.study, out="out", **quick)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attnlab.bench("mla", n_heads=0), "n_heads: must be at least 1, got 0"),
        (lambda: attnlab.probe("mla", d_model=0), "d_model: must be at least 1, got 0"),
        (lambda: attnlab.bench("mla", seconds=math.nan), "seconds: must be positive and finite"),
        (lambda: attnlab.bench("mla", overrides={"n_heads": 2}), "overrides: expected a list of"),
        (lambda: attnlab.check("mla", overrides="n_haeds=2"), "no field 'n_haeds'; did you mean"),
        (lambda: attnlab.run("quickstart", add=[attnlab.MLA()]), r"add: expected text, got MLA\("),
        (
            lambda: attnlab.train("q", variant=3, seed="x"),
            "variant: expected text, got 3\nseed: ",
        ),
        (lambda: attnlab.bench("mla", contexts=64), "contexts: expected a list or text, got 64"),
        (
            lambda: attnlab.check(5),
            "what: expected text or a MechanismConfig or a class or a",
        ),
        (lambda: attnlab.report(None), "study_dir: expected a path or text, got None"),
        (lambda: attnlab.generate("run", 5), "prompt: expected text, got 5"),
        (lambda: attnlab.use_fla(3), "path: expected a path or text, got 3"),
        (lambda: attnlab.compare(), "name the folders of studies, variants or runs to compare"),
        (lambda: attnlab.TrainConfig(steps=10**999), "steps: must have at most 18 digits"),
    ],
)
def test_an_argument_that_means_nothing_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("function", "name", "meant"),
    [(attnlab.run, "olny", "only"), (attnlab.check, "quik", "quick")],
)
def test_an_argument_that_is_unknown_is_named(function, name, meant):
    with pytest.raises(TypeError, match=f"no argument '{name}'; did you mean '{meant}'?"):
        function("mla", **{name: True})


def test_the_published_call_is_that_of_a_shipped_study(quick):
    """It trains on a corpus that is not here, and so ends where that is looked for."""
    with pytest.raises(ValueError, match="not found; looked in"):
        attnlab.run("deepseek", only=["baseline", "lora", "flash"], data="nowhere", **quick)


def test_a_script_needs_no_guard_and_is_executed_once(tmp_path, cache):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = python("script.py", cwd=tmp_path, cache=cache)
    assert (done.returncode, done.stdout, done.stderr) == (0, "identity\n", "")
    assert (tmp_path / "executed").read_text() == "__main__\n"
    assert len(list((tmp_path / "out").glob("*/seed-*/summary.json"))) == 1
    assert json.loads((tmp_path / "out/failures.json").read_text()) == {}


def test_check_gives_what_the_command_shows(bugs, monkeypatch):
    fake_workers.judge_few(monkeypatch)
    (kind,) = attnlab.check("sliding_window", overrides=["window=5"], quick=True)
    assert (kind.target.name, kind.target.config.window, kind.holds) == ("sliding_window", 5, True)
    (broken,) = attnlab.check(bugs.FlopsOffByThree, quick=True)
    assert broken.target.config == bugs.FlopsOffByThree()
    assert [result.name for result in broken.results if not result.holds] == [
        "FLOPs of a step are as stated"
    ]
    settings, *of_study = attnlab.check(
        attnlab.Identity(), tiny_study.study.only(["mqa", "identity"]), quick=True
    )
    assert settings.target.config == attnlab.Identity()
    assert [checked.target.name for checked in of_study] == ["mqa", "identity"]
    assert all(checked.holds for checked in (settings, *of_study))


def test_the_package_alone_does_without_torch(tmp_path, cache):
    program = (
        "import sys, attnlab\n"
        "dir(attnlab), attnlab.__version__, attnlab.catalog()\n"
        "from attnlab import Analysis, analyse, compare, report\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert python("-c", program, cwd=tmp_path, cache=cache).returncode == 0


def test_no_module_takes_the_place_of_a_function(tmp_path, cache):
    modules = [
        *("checks.targets", "inference.generate", "runner.execute", "cli", "runner.run"),
        *("reporting.files", "benchmarking.session", "benchmarking.bench"),
    ]
    program = (
        "import importlib, attnlab\n"
        f"for module in {modules}:\n"
        "    importlib.import_module('attnlab.' + module)\n"
        "    for name in attnlab.__all__:\n"
        "        assert not isinstance(getattr(attnlab, name), type(attnlab)), (module, name)\n"
    )
    done = python("-c", program, cwd=tmp_path, cache=cache)
    assert done.returncode == 0, done.stderr


def test_every_command_is_a_function():
    names = {"list": "catalog", "eval": "evaluate_tasks"}
    for command in typer.main.get_command(app).commands:
        assert callable(getattr(attnlab, names.get(command, command)))


def test_a_probe_is_a_study_of_every_task_and_mechanism():
    study = probe_study("mla:kv_lora_rank=8", "identity", tasks="recall, s5", n_layers=1, n_heads=4)
    assert list(study.variants) == [
        f"{task}_{kind}" for task in ("recall", "s5") for kind in ("mla:kv_lora_rank=8", "identity")
    ]
    for name, config in study.variants.items():
        assert config.train.seq_len == config.data.length == config.eval.lengths[0]
        assert config.eval.lengths[-1] == 4 * config.data.length
        assert (config.model.n_layers, config.model.d_model) == (1, 128)
        assert config.model.feedforward.present == name.startswith("s5")
        assert name.startswith("s5") == (config.data.kind() == "state_tracking")
    assert study.variants["s5_mla:kv_lora_rank=8"].model.per_layer()[0].kv_lora_rank == 8
    assert study.variants["recall_mla:kv_lora_rank=8"].model.per_layer()[0].n_heads == 4
    quick = probe_study("gla", quick=True, overrides=["n_heads=2", "train.learning_rate=0.5"])
    assert quick.name == "probe_quick"
    assert {config.train.learning_rate for config in quick.variants.values()} == {0.5}
    assert {config.model.per_layer()[0].n_heads for config in quick.variants.values()} == {2}
    defaults = [
        {name.split("_")[0] for name in each.variants} for each in (quick, probe_study("gla"))
    ]
    assert defaults == [four := {"recall", "copying", "parity", "s3"}, four | {"s5"}]
    for effort in (QUICK, FULL):
        assert effort.known.keys() - effort.tasks.keys() == effort.more.keys() != set()
        for task in effort.known.values():
            few = dataclasses.replace(task, train_examples=64, held_out_examples=4)
            for n in effort.longer:
                assert few.at_length(n * task.length).length == n * task.length
    for tasks, message in (("recal", "no task 'recal'; did you mean 'recall'"), ([], "at least")):
        with pytest.raises(ValueError, match=message):
            probe_study("gla", tasks=tasks)
    with pytest.raises(ValueError, match="no mechanism or study 'glaa'"):
        probe_study("glaa")
    for sizes, settings in (({"d_model": 8}, "model.d_model=16"), ({"n_heads": 4}, "n_heads=2")):
        with pytest.raises(ConfigError, match=r"(d_model|n_heads): is given twice, as [48] and "):
            probe_study("gla", overrides=[settings], **sizes)
    with pytest.raises(ConfigError, match=r"^train\.steps: is given twice, as 2 and 4; give it"):
        attnlab.probe("gla", steps=2, overrides=["train.steps=4"])
    with pytest.raises(ValueError, match="a study has its own sizes: d_model is only for mech"):
        probe_study("quickstart", d_model=8)


def test_a_probe_trains_and_tells_the_profile_against_the_state(tmp_path, quick, monkeypatch):
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    monkeypatch.setattr("attnlab.runner.run.check_targets", lambda targets, **how: [])
    analysis = attnlab.probe(
        *("identity", "grouped_query"),
        tasks=["parity", "recall"],
        quick=True,
        seeds=1,
        steps=2,
        d_model=8,
        n_layers=1,
        overrides=["data.train_examples=64", "data.held_out_examples=20"],
        out=tmp_path / "probe",
        device="cpu",
        workers=1,
    )
    found = {(of.task, of.mechanism): of for of in attnlab.profile(analysis)}
    assert list(found) == [
        (task, kind) for task in ("parity", "recall") for kind in ("identity", "grouped_query")
    ]
    recall = found["recall", "grouped_query"]
    (run,) = attnlab.load_results(tmp_path / "probe" / "recall_grouped_query")
    assert recall.accuracy == Accuracy(
        mean=run["test_accuracy"], low=None, high=None, by_seed=(run["test_accuracy"],)
    )
    two = Accuracy.of([0.5, 0.52])
    assert two.high == pytest.approx(0.51 + 12.706 * 0.02 / 2, abs=1e-4)  # t(0.975, 1)
    assert recall.chance == 1 / 8
    assert set(recall.lengths) == {16, 32}
    assert set(recall.parts) == {(n, f"{k} pairs") for n in (16, 32) for k in (2, 4)}
    assert recall.state_bytes == 2 * 2 * 8 * 16  # keys and values of 16 tokens in two bytes
    assert found["recall", "identity"].state_bytes == 0
    lines = (tmp_path / "probe" / "profile.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (1 + 2 + 2 * 2) + 2 * (1 + 2 + 2 + 3)
    report = (tmp_path / "probe" / "report.md").read_text()
    assert "## Answers on tasks" in report
    assert "| 32 tokens, 4 pairs |" in report


@pytest.mark.parametrize("function", [attnlab.run, attnlab.plan])
def test_help_shows_every_option_with_its_default(function):
    shown = inspect.signature(function).parameters
    assert not any(one.kind is one.VAR_KEYWORD for one in shown.values())
    assert shown.keys() >= {field.name for field in fields(Request)}
    assert (shown["device"].default, shown["seeds"].default) == ("auto", None)
