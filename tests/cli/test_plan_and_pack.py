"""`attnlab run --plan` prints the plan; `pack` and `unpack` make a study one file, and back."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import fake_workers, reported_study, tiny_study
from typer.testing import CliRunner

from attnlab.analysis.statistics.seeds import Power
from attnlab.cli.app import app
from attnlab.cli.console import Output, console
from attnlab.cli.plan import show_plan, show_variants
from attnlab.record import RunFolder
from attnlab.record.packed_file import PACKED
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
            nats=0.0325 if nats_known else None,
            residual_sd=0.01 if nats_known else None,
            residual_sd_source="given" if nats_known else None,
            variants=2,
        ),
        "variants": {"mha": variant, "mqa": variant},
    }
    return Plan(**{**whole, **changes})


def test_the_plan_is_printed(printed):
    text = printed()
    assert "Does it work?" in text
    assert "mha 118 K 12.0 1 min 30 s 3.00 GiB 4 (3 to 6) 2 (1 done)" in text
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
    power = Power(standard_deviations=None, variants=1)
    assert "it needs at least two variants, and two seeds" in printed(power=power)


def test_what_tuning_may_miss_is_part_of_the_power(printed):
    known = {"standard_deviations": 3.0, "variants": 2, "tuned": True}
    assert "2 variants; what tuning may miss adds to it" in printed(power=Power(**known))
    found = {"nats": 0.04, "residual_sd": 0.01, "residual_sd_source": "of runs", "allowance": 0.02}
    text = printed(power=Power(**known, **found, shared=" of the same size"))
    assert ": up to 0.0400 nats/token, between any two of 2 variants of the same size" in text
    assert "of runs, and 0.0200 nats/token that tuning may have missed)" in text


def test_lower_bounds_are_marked(printed):
    text = printed(measured=False)
    assert "≥ 12.0 ≥ 1 min 30 s" in text
    assert "time at least 1 min 0 s, 2 workers" in text


def test_a_plan_without_times_gives_the_reason_and_no_empty_columns(printed):
    text = printed(not_timed="RuntimeError: [no] kernel")
    assert "time not timed: mha: RuntimeError: [no] kernel" in text
    assert "mha 118 K 4 (3 to 6) 2 (1 done)" in text
    assert "memory" not in text


CELLS = {
    "parameters": "118 K",
    "ms/step": "≥ 12.0",
    "time/run": "≥ 1 min 30 s",
    "memory": "3.00 GiB",
    "tuning runs": "8 (7 to 21, 3 done)",
    "verdict runs": "3 (3 to 10, 1 done)",
}


@pytest.mark.parametrize(
    ("terminal", "width", "dropped"),
    [
        (False, 80, []),
        (True, 160, []),
        (True, 80, ["ms/step", "parameters", "memory"]),
        (True, 60, ["ms/step", "parameters", "memory", "tuning runs"]),
    ],
)
def test_a_number_stays_with_its_unit_at_every_width(terminal, width, dropped):
    output = Output(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    runs = {"tuning_runs": RunCount(3, 7, 8, 21), "verdict_runs": RunCount(1, 3, 3, 10)}
    variant = replace(plan(measured=False).variants["mha"], **runs)
    names = ("memorization_attention", "sliding_window_of_a_name_that_is_long")
    show_variants(plan(variants=dict.fromkeys(names, variant)), output)
    shown = output.file.getvalue().splitlines()
    for cell in (cell for title, cell in CELLS.items() if title not in dropped):
        assert sum(cell in line for line in shown) == len(names), cell
    assert shown[1].startswith(f"{names[0]}  ")
    assert any(line.startswith(names[1]) for line in shown) != (terminal and width < 160)
    assert ("not shown at this width: " + ", ".join(dropped) in shown[-1]) == bool(dropped)
    assert not terminal or max(map(len, shown[:-1])) <= width


def test_a_range_without_an_expectation_is_a_range(printed):
    text = printed(verdict_runs=RunCount(0, 12, 12, 30), challenge_runs=RunCount(0, 0, 0, 0))
    assert "then 12 to 30 for the verdict (more seeds while it is open)" in text
    assert "12 expected, 12 to 30" not in text


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
    until = CliRunner().invoke(app, [*arguments, "--until", "decided", "--most-seeds", "5"])
    assert "12 to 20 for the verdict (more seeds while it is open)" in " ".join(
        until.output.split()
    )
    nowhere = CliRunner().invoke(app, [*arguments, "data=text", "data.paths=nowhere.txt"])
    assert nowhere.exit_code == 1
    assert "nowhere.txt" in nowhere.output
    wrong = CliRunner().invoke(app, [*arguments, "--residual-sd", "0"])
    assert wrong.exit_code == 2
    assert "--residual-sd: must be positive" in wrong.stderr


def attnlab(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def study(tmp_path, monkeypatch):
    fake_workers.draw_nothing(monkeypatch)
    reported_study.complete(tmp_path / "toy", seeds=(0, 1))
    return tmp_path / "toy"


def test_a_study_is_packed_reported_and_unpacked(study):
    commands = [["report", study], ["list", study], ["list", study / "mha" / "seed-1"]]
    commands += [["compare", study / "mha", study / "mqa", "--out", study.with_name("out")]]

    def shown():
        return [json.loads(attnlab(*command, "--json").stdout) for command in commands]

    before = shown()
    done = attnlab("pack", study)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{study / PACKED}: 12 runs, ")
    alone = study.with_name("alone")
    alone.mkdir()
    shutil.copy(study / PACKED, alone)
    shutil.rmtree(study)
    alone.rename(study)
    assert shown() == before
    assert not {"mha", "study.json"} & {path.name for path in study.iterdir()}
    done = attnlab("unpack", study)
    assert done.stdout == f"{study}: 12 runs restored\n"
    assert RunFolder(study, "mha", 0).in_folder()
    assert not (study / PACKED).exists()
    attnlab("report", study)
    assert {path.name for path in (study / "mha").glob("*.json")} == {"config.json", "metrics.json"}


def test_a_study_with_weights_is_refused_until_they_may_be_deleted(study):
    weights = RunFolder(study, "mha", 0).checkpoints / "step-000001" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    refused = attnlab("pack", study)
    assert refused.exit_code == 2
    said = " ".join(refused.stderr.split())
    assert "1 run has checkpoints" in said
    assert "attnlab export, then use --drop-checkpoints" in said
    assert weights.exists()
    assert attnlab("pack", study, "--drop-checkpoints").exit_code == 0


def test_a_damaged_file_is_one_line(study):
    attnlab("pack", study)
    (study / PACKED).write_bytes((study / PACKED).read_bytes()[:50])
    done = attnlab("report", study)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "runs.jsonl.gz is damaged at line 1" in done.stderr


def test_a_packed_run_has_no_weights_and_says_so(study):
    attnlab("pack", study)
    done = attnlab("generate", study / "mha" / "seed-0", "--prompt", "x")
    assert done.exit_code == 2
    assert "is packed, and packed runs have no weights" in " ".join(done.stderr.split())


def test_packing_imports_no_torch(study):
    code = (
        "import sys, attnlab; "
        f"attnlab.pack({str(study)!r}); attnlab.load_results({str(study)!r}); "
        f"attnlab.unpack({str(study)!r}); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
