"""`attnlab pack` and `unpack`: a study in one file, which every command reads, and back."""

import json
import subprocess
import sys

import pytest
from support import fake_workers, reported_study
from typer.testing import CliRunner

from attnlab.cli.app import app
from attnlab.record import RunFolder
from attnlab.record.packed_file import PACKED


def attnlab(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def study(tmp_path, monkeypatch):
    fake_workers.draw_nothing(monkeypatch)
    reported_study.complete(tmp_path / "toy", seeds=(0, 1))
    return tmp_path / "toy"


def test_a_study_is_packed_reported_and_unpacked(study):
    before = json.loads(attnlab("report", study, "--json").stdout)
    done = attnlab("pack", study)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{study / PACKED}: 12 runs, ")
    assert not (study / "mha").exists()
    assert json.loads(attnlab("report", study, "--json").stdout) == before
    assert not (study / "mha").exists()
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
