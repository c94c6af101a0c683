"""`attnlab.plan` returns what `attnlab.run` would take and could find, and runs nothing.

Before a run: the forecast of its time, and the parts that work on this machine.
"""

import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from support import fake_workers, tiny_study

import attnlab
from attnlab.analysis.statistics.seeds import detectable
from attnlab.config import ConfigError
from attnlab.data import DataError, Places
from attnlab.data.arithmetic import Arithmetic
from attnlab.device.machine import Slot, usable_cores
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import MechanismConfig
from attnlab.runner import doctor, plan, trial
from attnlab.runner import forecast as forecasting
from attnlab.runner.events import Activity
from attnlab.runner.forecast import WORKER_START, Forecast, RunTime, time_run
from attnlab.runner.schedule import StudySchedule
from attnlab.runner.workers import ray_cluster
from attnlab.study.targets import load_study
from attnlab.training.checkpoint import Best, Checkpoint, save

STUDY = fake_workers.TUNED


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(tmp_path, monkeypatch, cache):
    """The arguments of a plan that takes little time, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecasting, "TIMED_SECONDS", 0.02)
    monkeypatch.setattr(plan, "TrialProcess", fake_workers.trial_here)
    return {"check": False, "trial_seconds": 60, "cache": cache, "device": "cpu", "out": "out"}


@pytest.mark.parametrize(
    ("name", "only", "variants", "shared"),
    [
        ("quickstart", [], 11, ""),
        ("texts", [], 5, " that read the same text"),
        ("ladder", [], 6, " of the same size and training length"),
        (
            "ladder",
            ["mla_8x160_long", "delta_8x160_long", "mla_8x256_long"],
            2,
            " of the same size",
        ),
        ("ladder", ["mla_8x160_long", "mla_8x160_short"], 1, " of the same training length"),
        ("ladder", ["mla_8x160_long", "delta_8x160_long"], 2, ""),
    ],
)
def test_the_power_is_about_variants_that_are_compared(tmp_path, name, only, variants, shared):
    study = load_study(name)
    power = plan._power(study.only(only) if only else study, tmp_path, 0.01)
    assert (power.variants, power.shared) == (variants, shared)
    assert (power.standard_deviations is None) == (variants < 2)


def test_the_power_of_a_ladder_is_that_of_noise_from_all_of_its_places(tmp_path):
    ladder = load_study("ladder")
    together = plan._power(ladder, tmp_path, None).standard_deviations
    assert together == pytest.approx(detectable(1, variants=6, seeds=3, prior=3.0))
    assert together < 0.85 * detectable(1, variants=6, seeds=3)
    few = ladder.only([name for name in ladder.variants if name.endswith("_long")])  # four places
    alone = plan._power(few, tmp_path, None).standard_deviations
    assert alone == pytest.approx(detectable(1, variants=6, seeds=3))


def test_the_power_is_that_of_the_verdict_where_there_are_runs(tmp_path):
    study = fake_workers.ladder("mha", "delta")
    fake_workers.work(fake_workers.make(study, tmp_path), loss=fake_workers.law_on_ladder)
    study.record(command="", checked=True).write(tmp_path)
    verdicts, power = attnlab.analyse(tmp_path).groups, plan._power(study, tmp_path, None)
    largest = max(verdicts, key=lambda verdict: verdict.detectable)
    assert (len(verdicts), power.nats) == (6, pytest.approx(largest.detectable))
    assert power.residual_sd == largest.residual_sd
    assert power.allowance == pytest.approx(median(largest.tuning.allowance.values()))


def test_a_plan_has_runs_time_disk_memory_and_power(quick, tmp_path):
    events = []
    study = STUDY.only(["mha", "mqa"]).override(["train.eval_batch_size=8"])
    found = attnlab.plan(study, **quick, seeds=3, residual_sd=0.01, watch=events.append)
    assert found.tuning_runs == (0, 12, 14, 60)
    assert found.verdict_runs == (0, 6, 6, 6)
    assert found.seconds[2] > found.seconds[1] > found.seconds[0] > WORKER_START
    assert found.workers == min(20, usable_cores())
    assert (found.devices, found.measured) == (("cpu",), True)
    assert found.checkpoint_bytes > 0
    assert found.record_bytes > 0
    assert found.power.standard_deviations == pytest.approx(detectable(1, variants=2, seeds=3))
    assert found.power.nats == pytest.approx(0.01 * found.power.standard_deviations)
    assert found.power.residual_sd_source == "given"
    mha = found.variants["mha"]
    assert mha.parameters == tiny_study.base.cost().params
    assert mha.tuning_runs == (0, 6, 7, 30)
    assert 0 < mha.step_seconds < mha.run_seconds
    assert found.not_timed == {}
    names = ["reading the data", "timing mha", "timing mqa"]
    assert events == [Activity(name) for name in names]
    assert found.problems == found.notes == ()
    assert not list(tmp_path.iterdir())
    json = found.to_json()
    assert json["seconds"] == dict(
        zip(("at_least", "expected", "at_most"), found.seconds, strict=True)
    )
    assert json["runs"]["tuning"] == {"done": 0, "at_least": 12, "expected": 14, "at_most": 60}
    assert json["variants"]["mha"]["run_seconds"] == mha.run_seconds


def test_a_variant_that_cannot_be_timed_is_reported_and_the_others_are(quick, monkeypatch):
    def fail(config, *_):
        if config == STUDY.variants["mqa"]:
            raise RuntimeError("no kernel")
        return RunTime(0, 1, 1, 1, 1, 1)

    monkeypatch.setattr(trial, "time_run", fail)
    found = attnlab.plan(replace(STUDY, tuning=None), **quick)
    assert found.not_timed == {"mqa": "RuntimeError: no kernel"}
    assert found.problems == ("mqa: RuntimeError: no kernel",)
    assert found.seconds is None
    assert found.variants["mha"].run_seconds is not None
    assert found.variants["mqa"].run_seconds is None


@pytest.mark.parametrize("error", [DataError("no text"), TimeoutError("not in 4 s")], ids=repr)
def test_without_the_data_runs_of_other_settings_are_not_counted_as_done(quick, monkeypatch, error):
    def unread(self):
        raise error

    study = tiny_study.study.only(["mha"])
    fake_workers.work(fake_workers.make(study, Path("out")))
    study.record(command="", checked=True).write(Path("out"))
    monkeypatch.setattr(trial.Trial, "read", unread)
    found = attnlab.plan(study, **quick)
    assert found.verdict_runs == (2, 2, 2, 2)
    with pytest.raises(ValueError, match="existing runs were made with different settings"):
        attnlab.plan(study, overrides=["train.learning_rate=0.5"], **quick)
    other = tiny_study.study.only(["identity"])
    with pytest.raises(ValueError, match=r"not comparable with those in out.*\n.*training steps"):
        attnlab.plan(other, steps=10, **quick)


def test_a_plan_without_its_data_has_runs_and_no_times(quick):
    found = attnlab.plan("mechanisms", data="nowhere", **quick)
    assert found.tuning_runs == (0, 77, 88, 385)
    assert found.challenge_runs == (0, 0, 5, 110)  # 4 % of 11 variants, on average
    assert found.verdict_runs == (0, 55, 55, 55)
    assert found.seconds is None
    assert found.not_timed.keys() == found.variants.keys()
    assert "ATTNLAB_DATA" in found.not_timed["mha"]
    assert found.problems == (found.not_timed["mha"],)


def test_the_residual_standard_deviation_is_that_of_existing_runs(quick, monkeypatch):
    study = tiny_study.study.only(["mha", "identity"])
    fingerprint = tiny_study.base.data.load(Places(None, quick["cache"])).fingerprint
    losses = {("mha", 0): 4.1, ("mha", 1): 4.2, ("identity", 0): 5.0, ("identity", 1): 5.3}
    schedule = fake_workers.make(study, Path("out"), fingerprint)
    fake_workers.work(schedule, loss=lambda run: losses[run.variant, run.seed])
    study.record(command="", checked=True).write(Path("out"))
    monkeypatch.setattr(trial, "time_run", lambda *_: RunTime(0, 1, 1, 1, 1, 1))
    found = attnlab.plan(study, seeds=5, **quick)
    assert found.verdict_runs == (4, 10, 10, 10)
    # variances 0.005 and 0.045; two seeds do not show that runs of one seed are alike
    assert found.power.residual_sd == pytest.approx(0.025**0.5)
    assert found.power.residual_sd_source == "of the runs in out"


def test_invalid_arguments_are_errors(quick):
    with pytest.raises(ValueError, match="residual_sd: must be positive, got 0"):
        attnlab.plan(STUDY, residual_sd=0, **quick)
    with pytest.raises(ConfigError, match="no field 'stepz'"):
        attnlab.plan(STUDY, overrides=["train.stepz=1"], **quick)


def test_a_mechanism_that_violates_a_property_is_a_problem(quick, monkeypatch):
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    bugs = import_module("support.planted_bugs")
    fake_workers.judge_few(monkeypatch)
    study = STUDY.only(["mha"])
    leaky = study.variants["mha"].with_mechanisms(bugs.MaskOffByOne(n_heads=2, n_kv_heads=2))
    found = attnlab.plan(replace(study, variants={"mha": leaky}), **{**quick, "check": True})
    assert any(problem.startswith("mha: violates ") for problem in found.problems)


def test_what_no_time_is_left_for_is_a_lower_bound_and_said(quick, monkeypatch):
    found = attnlab.plan(STUDY.only(["mha", "mqa"]), **{**quick, "trial_seconds": 0})
    assert not found.measured
    assert found.variants["mha"].step_seconds > 0
    assert found.problems == ()
    assert found.notes == (
        "the time of mha and mqa is a lower bound from FLOPs, not measured in the 0 s of a plan; "
        "--trial-seconds gives it more time",
    )


def slow_study(path, seconds):
    """Write a study whose training steps take some seconds each."""
    path.write_text(
        "import time\n"
        "from support.tiny_study import base, study as tiny\n"
        "from dataclasses import replace\n"
        "from attnlab.model.feedforward import Dense\n"
        "class Slow(Dense):\n"
        "    def build(self, *given, **more):\n"
        f"        time.sleep({seconds})\n"
        "        return super().build(*given, **more)\n"
        "slow = replace(base, model=replace(base.model, feedforward=Slow(d_ff=32)))\n"
        "study = replace(tiny, baseline='slow', variants={'slow': slow})\n"
    )
    return path


def test_a_plan_ends_in_time_whatever_its_trial_does(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    study = slow_study(tmp_path / "slow.py", 60)
    found = attnlab.plan(study, cache=cache, device="cpu", check=False, trial_seconds=2)
    assert time.monotonic() - began < 13
    assert found.problems == ()
    if found.variants["slow"].step_seconds is not None:  # the data was read in time
        assert not found.variants["slow"].measured
    assert found.notes or "the data was not read in the 2 s" in found.not_timed["slow"]


def test_data_that_takes_too_long_leaves_runs_and_a_lower_bound_of_time(quick, monkeypatch):
    def late(self):
        raise TimeoutError("the data was not read in the 4 s of a plan")

    monkeypatch.setattr(trial.Trial, "read", late)
    found = attnlab.plan(STUDY.only(["mha", "mqa"]), **quick)
    assert found.verdict_runs.at_least == 4
    assert found.seconds[0] > WORKER_START
    assert not found.measured
    assert (found.problems, found.not_timed) == ((), {})
    said = "the data was not read in the 4 s of a plan; --trial-seconds gives it more time"
    assert found.notes[0] == said
    assert found.notes[1].startswith("the time of mha and mqa is a lower bound from FLOPs")


def test_a_process_that_starts_late_has_no_more_time(monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "START_SECONDS", 0.05)
    began = time.monotonic()
    slot, places = Slot(("cpu",), 1), Places(None, tmp_path)
    late = trial.TrialProcess(STUDY, places, slot, check=False, seconds=0.05)
    with late, pytest.raises(TimeoutError, match=r"was not read in the 0\.05 s"):
        late.read()
    assert late.bounds().keys() == STUDY.variants.keys()
    assert time.monotonic() - began < 2


def test_a_variant_that_the_trial_did_not_reach_is_said(quick, monkeypatch):
    monkeypatch.setattr(trial.Trial, "results", lambda *_: iter(()))
    found = attnlab.plan(STUDY.only(["mha"]), **quick)
    assert "not reached in the 60 s of a plan" in found.not_timed["mha"]
    assert (found.seconds, found.problems) == (None, ())


class FakeCluster(ray_cluster.Cluster):
    """A Ray cluster of two nodes with a GPU each, and one without."""

    def __init__(self, address=None):
        if address == "auto":
            raise ValueError("no Ray cluster")
        has = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]
        alive = {"Alive": True, "NodeManagerAddress": "", "NodeManagerHostname": "n"}
        nodes = [
            alive | {"Resources": each, "NodeID": f"{n}", "NodeName": f"n{n}"}
            for n, each in enumerate(has)
        ]
        total = {"CPU": 16.0, "GPU": 2.0}
        self.ray = SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: total)
        self._own = False


@pytest.mark.parametrize(
    ("options", "workers", "note"),
    [
        ({"device": "auto"}, 2, "a run takes 1 GPU and 1 CPU: 2 fit now, and others wait for"),
        ({}, 4, "a run takes 1 CPU: 16 fit now"),  # the study has four runs
        ({"cpus_per_run": 8}, 1, "a run takes 8 CPUs: 1 fit now"),
        ({"device": "cuda", "gpus_per_run": 2}, 1, "a run takes 2 GPUs and 2 CPUs: none fits now"),
    ],
    ids=str,
)
def test_a_plan_on_ray_says_what_the_cluster_has_and_what_fits(
    quick, monkeypatch, options, workers, note
):
    monkeypatch.setattr(ray_cluster, "Cluster", FakeCluster)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: "installed")
    study = replace(STUDY.only(["mha", "mqa"]), tuning=None)
    options = quick | {"address": "head:6379", "trial_seconds": 0} | options
    monkeypatch.setattr("attnlab.runner.request.worker_slots", lambda *_: [Slot(("cpu",), 1)])
    found = attnlab.plan(study, engine="ray", **options)
    assert found.workers == workers
    assert f"Ray: the cluster has 3 nodes with 16 CPUs and 2 GPUs; {note}" in " ".join(found.notes)
    assert "times are those of this machine, not of a node of the cluster" in found.notes


def test_a_plan_on_ray_without_a_cluster_says_that_one_starts(quick, monkeypatch):
    monkeypatch.setattr(ray_cluster, "Cluster", FakeCluster)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: "installed")
    found = attnlab.plan(replace(STUDY, tuning=None), engine="ray", **quick | {"trial_seconds": 0})
    assert "the command starts one of this machine alone" in " ".join(found.notes)


CPU = torch.device("cpu")
STUDY = fake_workers.TUNED
TIME = RunTime(first_run=3.0, start=1.0, step=0.5, validation=2.0, test=4.0, save=0.25)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_study.base.data.load(Places(None, tmp_path_factory.mktemp("cache")))


def forecast(study_dir, workers=1, study=STUDY):
    return Forecast(
        schedule=StudySchedule(study, study_dir, dict.fromkeys(study.variants, "data")),
        workers=workers,
        run_times=dict.fromkeys(study.variants, TIME),
        tokenizer_bytes=dict.fromkeys(study.variants, 1000),
    )


def test_the_time_is_that_of_the_runs_that_remain(tmp_path):
    one_run = 1 + 12 * 0.5 + 2 * 2 + 3 * 0.25 + 4  # 12 steps, 2 evaluations, 3 checkpoints
    assert TIME.seconds(tiny_study.base) == one_run
    least, expected, most = forecast(tmp_path).seconds()
    tuning_run = one_run - 0.25  # its last checkpoint is not written
    assert least == pytest.approx(WORKER_START + 18 * tuning_run + 6 * one_run + 3 * 3)
    assert expected == pytest.approx(least + 3 * tuning_run)
    assert most == pytest.approx(WORKER_START + 90 * tuning_run + 6 * one_run + 3 * 3)
    assert forecast(tmp_path, workers=3).seconds()[0] == pytest.approx(
        WORKER_START + (least - WORKER_START) / 3
    )
    fake_workers.work(forecast(tmp_path).schedule, runs=27)
    assert forecast(tmp_path).seconds()[1] < least
    fake_workers.work(fake_workers.make(STUDY, tmp_path))
    assert forecast(tmp_path).seconds() == (0, 0, 0)
    assert forecast(tmp_path).checkpoint_bytes() == 0


@pytest.mark.parametrize(
    ("gpus_per_run", "peaks", "capacity", "note"),
    [
        (1, (9, 20), None, None),  # a CPU
        (2, (9, 20), None, "estimated from a measured step, of the largest variant: 20.0 GiB on 1"),
        (1, (9, 20), 24, "a GPU has 24.0 GiB: the fewest are --gpus-per-run 1"),
        (1, (9, 20), 12, "a GPU has 12.0 GiB: the fewest are --gpus-per-run 2"),
        (1, (9, 80), 12, "a GPU has 12.0 GiB, and none of these fit"),  # of two sequences
        (1, (9, None), 24, "estimated from the settings, of the largest variant: "),
    ],
)
def test_a_plan_says_the_memory_per_gpu_and_the_fewest_that_fit(
    tmp_path, gpus_per_run, peaks, capacity, note
):
    study = replace(STUDY.only(["mha", "mqa"]), tuning=None)
    found = forecast(tmp_path, study=study)
    times = {
        name: TIME._replace(peak_memory_bytes=peak and peak * 2**30)
        for name, peak in zip(study.variants, peaks, strict=True)
    }
    said = replace(found, run_times=times).memory_note(gpus_per_run, capacity and capacity * 2**30)
    assert (said is None) if note is None else (note in said)


def test_a_plan_says_that_times_on_several_gpus_are_not_measured(tmp_path):
    assert forecast(tmp_path).time_note(1) is None
    assert "on 4 they are not measured, and at best 1/4" in forecast(tmp_path).time_note(4)


def test_the_disk_space_is_that_of_the_checkpoints(tmp_path):
    study = replace(STUDY.only(["mha"]), tuning=None)
    model = tiny_study.base.model.build(256)
    weights = model.state_dict()
    moments = {
        f"{moment}.{name}": torch.zeros_like(parameter)
        for moment in ("exp_avg", "exp_avg_sq")
        for name, parameter in model.named_parameters()
    }
    save(tmp_path / "one", Checkpoint(4, weights, moments, {}, Best(2, 5.0, weights), 1), "x")
    one = sum(p.stat().st_size for p in tmp_path.glob("one/*/*.safetensors"))
    stated = forecast(tmp_path / "none", study=study).checkpoint_bytes()
    assert stated == pytest.approx((2 * 2 + 1) * one, rel=0.1)  # two seeds, two each, one more


def test_a_run_that_keeps_no_checkpoint_takes_disk_space_only_in_progress(tmp_path):
    study = STUDY.only(["mha"]).override(["train.keep=none"])
    one = 12 * tiny_study.base.cost().params
    assert forecast(tmp_path, study=study).checkpoint_bytes() == 2 * one  # at steps 4 and 8 of 12
    short = study.override(["train.checkpoint_every=12"])
    assert forecast(tmp_path, study=short).checkpoint_bytes() == 0
    assert TIME.seconds(short.variants["mha"]) == 1 + 12 * 0.5 + 2 * 2 + 4


def test_real_steps_are_timed(corpus, monkeypatch):
    monkeypatch.setattr(forecasting, "TIMED_SECONDS", 0.2)
    base = replace(tiny_study.base, train=replace(tiny_study.base.train, eval_batch_size=8))
    found = time_run(base, corpus, CPU)
    parts = (found.start, found.step, found.validation, found.test, found.save)
    assert all(seconds > 0 for seconds in parts)
    assert found.first_run >= 0
    assert found.measured
    assert found.seconds(base) < 60
    slow = replace(base.model, feedforward=replace(base.model.feedforward, d_ff=20_000))
    slower = time_run(replace(base, model=slow), corpus, CPU)
    assert slower.step > 2 * found.step
    if slower.peak_memory_bytes is not None:
        weights = 16 * slow.cost(256, base.train.seq_len).params  # with gradient and moments
        assert slower.peak_memory_bytes > 0.9 * weights


def test_a_step_that_takes_too_long_is_computed_from_flops_and_not_run(corpus, monkeypatch):
    base = tiny_study.base
    large = replace(base, train=replace(base.train, batch_size=10**9))
    flops = 3 * base.model.forward_flops(256, 16) * 10**9 * 32
    monkeypatch.setattr(forecasting, "matrix_rate", lambda *_, **__: flops / 1000)
    found = time_run(large, corpus, CPU)
    assert (found.measured, found.step) == (False, pytest.approx(1000))
    share = len(corpus.valid) / (3 * 10**9 * 32)  # of the tokens, and forward alone
    assert found.validation == pytest.approx(1000 * share)


@pytest.mark.gpu
def test_steps_are_timed_as_they_run_on_a_gpu(corpus):
    """The steps are recorded, so that the first ones take longer than those that are timed."""
    train = replace(tiny_study.base.train, steps=100, warmup_steps=2)
    config = replace(tiny_study.base, train=train)
    found = time_run(config, corpus, torch.device("cuda", 0))
    assert 0 < found.step < found.start
    assert found.step < 0.1
    assert found.seconds(config) < 60


def examined(tmp_path: Path, data: Path | None = None) -> dict[str, doctor.Finding]:
    findings = attnlab.doctor(out=tmp_path / "results", data=data, cache=tmp_path / "cache")
    return {finding.part: finding for finding in findings}


PLACES = ("ATTNLAB_DATA", "ATTNLAB_FLA_PATH")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


def data_of(study: str, findings: dict[str, doctor.Finding]) -> doctor.Finding:
    (found,) = (
        finding
        for part, finding in findings.items()
        if part.startswith("data of ") and study in part.removeprefix("data of ").split(", ")
    )
    return found


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> dict[str, doctor.Finding]:
    """The findings here, where there is no text of the user's; the doctor leaves no file."""
    folder = tmp_path_factory.mktemp("doctor")
    with pytest.MonkeyPatch.context() as patch:
        for name in PLACES:
            patch.delenv(name, raising=False)
        found = examined(folder)
    assert not list(folder.iterdir())
    return found


def test_the_default_study_can_run_here(findings):
    assert doctor.can_run(list(findings.values()))
    assert findings["data of quickstart"].ok


def test_every_mechanism_names_its_kernel(findings):
    assert MechanismConfig.kinds.keys() <= findings.keys()
    if not torch.cuda.is_available():
        assert findings["grouped_query"].found == "kernel sdpa on cpu; with dropout blocked"
        assert findings["gated_delta_net"].found == "kernel chunked on cpu"


def test_no_text_is_generated_to_see_whether_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(Arithmetic, "texts", None)
    found = [finding.found for finding in examined(tmp_path).values()]
    assert "arithmetic: made by its generator" in found


def test_missing_data_has_a_remedy_and_does_not_stop_the_default_study(findings, tmp_path):
    tasks = data_of("mad", findings)
    assert (tasks.ok, tasks) == (True, data_of("mqar", findings))  # there is nothing to be missing
    missing = data_of("mechanisms", findings)
    assert missing.found.startswith("wikitext2: WikiText-2 not found; looked in ")
    assert missing.remedy.startswith("Put train.txt")
    assert missing is data_of("deepseek", findings)  # one source is one line
    assert missing is not data_of("hybrids", findings)
    assert not missing.ok
    assert "ATTNLAB_DATA" in missing.remedy
    assert doctor.can_run(list(findings.values()))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("some text\n")
    assert data_of("mechanisms", examined(tmp_path, data=tmp_path)).ok


def test_a_full_disk_stops_the_default_study(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    findings = examined(tmp_path)
    assert "1.00 MiB free" in findings["disk"].found
    assert not doctor.can_run(list(findings.values()))


def test_a_cache_that_cannot_be_written_stops_the_default_study(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    findings = examined(tmp_path)
    assert "ATTNLAB_CACHE" in findings["cache"].remedy
    assert not doctor.can_run(list(findings.values()))


def test_flash_linear_attention_is_a_remedy_only_where_there_is_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(fla, "unusable_because", lambda _: "it is not installed: pip install it")
    assert examined(tmp_path)["flash-linear-attention"].ok == (not torch.cuda.is_available())
