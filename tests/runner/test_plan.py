"""What a study would take and could find is said before anything is spent."""

import json
from dataclasses import replace

import pytest
import torch
from support import fake_workers, tiny_study
from typer.testing import CliRunner

from attnlab.analysis.statistics.power import detectable
from attnlab.cli import app
from attnlab.data import Places
from attnlab.runner import timing
from attnlab.runner.forecast import WORKER_START, Forecast
from attnlab.runner.schedule import StudySchedule
from attnlab.runner.timing import Pace, time_run
from attnlab.training.checkpoint import Best, Checkpoint, save

TINY = tiny_study.__file__
STUDY = fake_workers.TUNED
PACE = Pace(once=3.0, start=1.0, step=0.5, validation=2.0, test=4.0, save=0.25)


@pytest.fixture
def attnlab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ATTNLAB_DATA", raising=False)

    def call(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    return call


def forecast(study_dir, workers=1, study=STUDY):
    schedule = StudySchedule(study, study_dir, dict.fromkeys(study.variants, "data"))
    return Forecast(
        schedule=schedule,
        workers=workers,
        paces=dict.fromkeys(study.variants, PACE),
        tokenizer_bytes=dict.fromkeys(study.variants, 1000),
    )


def test_the_time_is_that_of_the_runs_that_are_left(tmp_path):
    one_run = 1 + 12 * 0.5 + 2 * 2 + 3 * 0.25 + 4  # 12 steps, 2 evaluations, 3 checkpoints
    assert PACE.seconds(tiny_study.base) == one_run
    least, most = forecast(tmp_path).seconds()
    tuning_run = one_run - 0.25  # its last checkpoint is not wanted
    assert least == pytest.approx(WORKER_START + 9 * tuning_run + 6 * one_run + 3 * 3)
    assert most == pytest.approx(WORKER_START + 18 * tuning_run + 6 * one_run + 3 * 3)
    assert forecast(tmp_path, workers=3).seconds()[0] == pytest.approx(
        WORKER_START + (least - WORKER_START) / 3
    )
    schedule = forecast(tmp_path).schedule
    fake_workers.work(schedule, runs=15)
    assert forecast(tmp_path).seconds()[1] < least
    fake_workers.work(fake_workers.make(STUDY, tmp_path))
    assert forecast(tmp_path).seconds() == (0, 0)
    assert forecast(tmp_path).checkpoint_bytes() == 0


def test_runs_that_tune_at_fewer_steps_are_forecast_to_take_less(tmp_path):
    short = replace(STUDY, learning_rates=replace(STUDY.learning_rates, steps=6))
    whole, fewer = (forecast(tmp_path, study=study).seconds()[0] for study in (STUDY, short))
    saved = [PACE.seconds(s.tuning_run("mha", 1e-3).config) for s in (STUDY, short)]
    tuned = len(STUDY.variants) * len(STUDY.learning_rates.multiples)
    assert whole - fewer == pytest.approx(tuned * (saved[0] - saved[1]))


def test_the_disk_is_what_checkpoints_take(tmp_path):
    study = replace(STUDY.only(["mha"]), learning_rates=None)
    model = tiny_study.base.model.build(256)
    weights = model.state_dict()
    moments = {
        f"{moment}.{name}": torch.zeros_like(parameter)
        for moment in ("exp_avg", "exp_avg_sq")
        for name, parameter in model.named_parameters()
    }
    save(tmp_path / "one", Checkpoint(4, weights, moments, {}, Best(2, 5.0, weights)), "x")
    one = sum(p.stat().st_size for p in tmp_path.glob("one/*/*.safetensors"))
    stated = forecast(tmp_path / "none", study=study).checkpoint_bytes()
    assert stated == pytest.approx((2 * 2 + 1) * one, rel=0.1)  # two seeds, two each, one more


def test_a_run_that_keeps_none_takes_disk_while_it_is_under_way_alone(tmp_path):
    study = STUDY.only(["mha"]).override(["train.keep=none"])
    one = 12 * tiny_study.base.cost().params
    assert forecast(tmp_path, study=study).checkpoint_bytes() == 2 * one  # at steps 4 and 8 of 12
    short = study.override(["train.checkpoint_every=12"])
    assert forecast(tmp_path, study=short).checkpoint_bytes() == 0
    assert PACE.seconds(short.variants["mha"]) == 1 + 12 * 0.5 + 2 * 2 + 4


def test_a_few_real_steps_are_timed(tmp_path):
    corpus = tiny_study.base.data.load(Places(None, tmp_path))
    pace = time_run(tiny_study.base, corpus, torch.device("cpu"))
    assert all(seconds > 0 for seconds in pace[1:])
    assert pace.seconds(tiny_study.base) < 60
    slow = replace(
        tiny_study.base.model, feedforward=replace(tiny_study.base.model.feedforward, d_ff=20_000)
    )
    slower = time_run(replace(tiny_study.base, model=slow), corpus, torch.device("cpu"))
    assert slower.step > 2 * pace.step


def test_a_step_that_would_take_too_long_is_reckoned_and_not_run(tmp_path, monkeypatch):
    base = tiny_study.base
    corpus = base.data.load(Places(None, tmp_path))
    large = replace(base, train=replace(base.train, batch_size=10**9))
    flops = 3 * base.model.forward_flops(256, 16) * 10**9 * 32
    monkeypatch.setattr(timing, "matrix_rate", lambda *_, **__: flops / 1000)
    pace = time_run(large, corpus, torch.device("cpu"))
    assert (pace.timed, pace.step) == (False, pytest.approx(1000))
    share = len(corpus.valid) / (3 * 10**9 * 32)  # of the tokens, and forward alone
    assert pace.validation == pytest.approx(1000 * share)


def test_the_plan_says_where_it_only_reckons(attnlab):
    arguments = ("run", TINY, "--plan", "--device", "cpu", "train.batch_size=1000000000")
    done = attnlab(*arguments)
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "time at least" in words
    assert "by arithmetic alone, a step being too long to be timed" in words
    assert json.loads(attnlab(*arguments, "--json").stdout)["variants"]["mha"]["timed"] is False


@pytest.mark.gpu
def test_steps_are_timed_as_they_run_on_a_gpu(tmp_path):
    """Recorded, so that the first steps take longer than those that are timed."""
    config = replace(
        tiny_study.base, train=replace(tiny_study.base.train, steps=100, warmup_steps=2)
    )
    corpus = config.data.load(Places(None, tmp_path))
    pace = time_run(config, corpus, torch.device("cuda", 0))
    assert 0 < pace.step < pace.start
    assert pace.step < 0.1
    assert pace.seconds(config) < 60


def test_the_plan_says_runs_time_disk_and_what_can_be_found(attnlab, tmp_path):
    (tmp_path / "tuned.py").write_text("from support.fake_workers import TUNED as study")
    arguments = ("run", "tuned.py", "--plan", "--device", "cpu", "--workers", "1")
    done = attnlab(*arguments, "--spread", "0.01")
    assert done.exit_code == 0, done.output
    found = detectable(0.01, variants=3, seeds=2)
    words = " ".join(done.output.split())
    assert "9 to 18 to tune learning rates, then 6 for the verdict" in words
    assert "1 at a time on cpu" in words
    assert f"differences from {found:.4f} nats between any two of 3 variants" in words
    assert "a run's loss spreads by 0.0100, as given" in words
    assert not (tmp_path / "results").exists()
    arguments += ("--json", "--no-tune", "--seeds", "3", "--only", "mha,mqa")
    said = json.loads(attnlab(*arguments).stdout)
    assert said["runs"]["tuning"] == {"done": 0, "at_least": 0, "at_most": 0}
    assert said["runs"]["verdict"] == {"done": 0, "at_least": 6, "at_most": 6}
    assert said["seconds"]["at_least"] > WORKER_START
    assert said["disk_bytes"]["checkpoints"] > 0
    assert said["detectable"]["nats"] is None
    assert said["detectable"]["spreads"] == pytest.approx(detectable(1, variants=2, seeds=3))
    assert said["variants"]["mha"]["parameters"] == tiny_study.base.cost().params


def test_a_plan_without_its_data_says_so_and_the_rest(attnlab):
    done = attnlab("run", "mechanisms", "--plan", "--device", "cpu")
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "44 to 77 to tune learning rates, then 55 for the verdict" in words
    assert "not timed: mha: WikiText-2" in words
    assert "ATTNLAB_DATA" in words


def test_the_spread_of_earlier_runs_is_taken(attnlab, tmp_path):
    arguments = ("run", TINY, "--only", "mha,identity", "--device", "cpu", "--no-check")
    assert attnlab(*arguments).exit_code == 0
    said = json.loads(attnlab(*arguments, "--seeds", "5", "--plan", "--json").stdout)
    assert said["runs"]["verdict"] == {"done": 4, "at_least": 10, "at_most": 10}
    assert said["detectable"]["spread"] > 0
    assert said["detectable"]["spread_source"] == "as that of the runs in results/tiny_study"
    wrong = attnlab(*arguments, "--plan", "--spread", "0")
    assert wrong.exit_code == 2
    assert "--spread must be positive" in wrong.stderr
