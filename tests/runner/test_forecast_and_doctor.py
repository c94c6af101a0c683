"""Before a run: the forecast of its time, and the parts that work on this machine."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import fake_workers, tiny_study

import attnlab
from attnlab.data import Places
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import MechanismConfig
from attnlab.runner import doctor
from attnlab.runner import forecast as forecasting
from attnlab.runner.forecast import WORKER_START, Forecast, RunTime, time_run
from attnlab.runner.schedule import StudySchedule
from attnlab.training.checkpoint import Best, Checkpoint, save

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
    assert most == pytest.approx(WORKER_START + 54 * tuning_run + 6 * one_run + 3 * 3)
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


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("ATTNLAB_DATA", "ATTNLAB_FLA_PATH"):
        monkeypatch.delenv(name, raising=False)


def data_of(study: str, findings: dict[str, doctor.Finding]) -> doctor.Finding:
    (found,) = (
        finding
        for part, finding in findings.items()
        if part.startswith("data of ") and study in part.removeprefix("data of ").split(", ")
    )
    return found


def test_the_default_study_can_run_here(tmp_path):
    findings = examined(tmp_path)
    assert doctor.can_run(list(findings.values()))
    assert findings["data of quickstart"].ok
    assert not list(tmp_path.iterdir())


def test_every_mechanism_names_its_kernel(tmp_path):
    findings = examined(tmp_path)
    assert MechanismConfig.kinds.keys() <= findings.keys()
    if not torch.cuda.is_available():
        assert findings["grouped_query"].found == "kernel sdpa on cpu; with dropout blocked"
        assert findings["gated_delta_net"].found == "kernel chunked on cpu"


def test_missing_data_has_a_remedy_and_does_not_stop_the_default_study(tmp_path):
    findings = examined(tmp_path)
    missing = data_of("mechanisms", findings)
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
