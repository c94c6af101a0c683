"""`attnlab run --plan` prints the plan."""

import json
from pathlib import Path

import pytest
from support import fake_workers, tiny_study
from typer.testing import CliRunner

from attnlab.analysis.statistics.power import Power
from attnlab.cli import app
from attnlab.cli.console import console
from attnlab.cli.plan import show_plan
from attnlab.runner import plan as planning
from attnlab.runner.decisions import RunCount
from attnlab.runner.plan import Plan, VariantPlan


@pytest.fixture
def printed(monkeypatch):
    monkeypatch.setattr(console, "width", 140)

    def text(**changes):
        with console.capture() as shown:
            show_plan(plan(**changes), as_json=False)
        return " ".join(shown.get().split())

    return text


def plan(*, measured=True, not_timed=None, nats_known=True, **changes):
    variant = VariantPlan(
        parameters=118_000,
        tuning_runs=RunCount(0, 3, 4, 6),
        verdict_runs=RunCount(1, 2, 2, 2),
        step_seconds=None if not_timed else 0.012,
        run_seconds=None if not_timed else 90.0,
        peak_memory_bytes=None if not_timed else 3 * 2**30,
        measured=measured,
        not_timed=not_timed,
    )
    whole = {
        "study": "mine",
        "question": "Does it work?",
        "study_dir": Path("results/mine"),
        "seeds": 2,
        "tuning_runs": RunCount(0, 9, 12, 18),
        "verdict_runs": RunCount(1, 6, 6, 6),
        "challenge_runs": RunCount(0, 0, 4, 8),
        "workers": 2,
        "devices": ("cuda:0", "cuda:1"),
        "seconds": None if not_timed else (60.0, 600.0, 5400.0),
        "checkpoint_bytes": 2**30,
        "record_bytes": 2**30,
        "power": Power(
            standard_deviations=3.25,
            residual_sd=0.01 if nats_known else None,
            residual_sd_source="given" if nats_known else None,
        ),
        "variants": {"mha": variant, "mqa": variant},
    }
    return Plan(**{**whole, **changes})


def test_the_plan_is_printed(printed):
    text = printed()
    assert "Does it work?" in text
    assert "mha 118 K 12.0 1 min 30 s 3.00 GiB 4 expected, 3 to 6 2 (1 done)" in text
    assert (
        "runs 12 expected, 9 to 18 to search recipes, then 6 (1 done) for the verdict, then 4 "
        "expected, 0 to 8 to challenge"
    ) in text
    assert (
        "time about 10 min 0 s expected, 1 min 0 s to 1 h 30 min, 2 workers on cuda:0, cuda:1"
        in text
    )
    assert "disk 2.00 GiB, 1.00 GiB of it checkpoints" in text
    assert (
        "power minimum detectable difference (80 % power): 0.0325 nats/token, between any two of "
        "2 variants (residual standard deviation per run 0.0100 nats/token, given)"
    ) in text


def test_an_unknown_residual_standard_deviation_is_the_unit(printed):
    assert "3.2 residual standard deviations per run, between any" in printed(nats_known=False)
    power = Power(standard_deviations=None, residual_sd=None, residual_sd_source=None)
    assert "it needs at least two variants and two seeds" in printed(power=power)


def test_lower_bounds_are_marked(printed):
    text = printed(measured=False)
    assert "≥ 12.0 ≥ 1 min 30 s" in text
    assert "time at least 1 min 0 s, 2 workers" in text


def test_a_plan_without_times_gives_the_reason(printed):
    assert "time not timed: mha: RuntimeError: [no] kernel" in printed(
        not_timed="RuntimeError: [no] kernel"
    )


def test_the_command_plans_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planning, "TrialProcess", fake_workers.trial_here)
    arguments = ("run", tiny_study.__file__, "--plan", "--device", "cpu", "--seeds", "3")
    arguments += ("--trial-seconds", "0", "--no-check")
    done = CliRunner().invoke(app, [*arguments, "--residual-sd", "0.01"])
    assert done.exit_code == 0, done.output
    assert "minimum detectable difference (80 % power)" in " ".join(done.output.split())
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["runs"]["verdict"] == {
        **{"done": 0, "at_least": 12, "expected": 12, "at_most": 12}
    }
    assert found["variants"]["mha"]["measured"] is False
    assert not (tmp_path / "results").exists()
    nowhere = CliRunner().invoke(app, [*arguments, "data=text", "data.paths=nowhere.txt"])
    assert nowhere.exit_code == 1
    assert "nowhere.txt" in nowhere.output
    wrong = CliRunner().invoke(app, [*arguments, "--residual-sd", "0"])
    assert wrong.exit_code == 2
    assert "residual_sd: must be positive" in wrong.stderr
