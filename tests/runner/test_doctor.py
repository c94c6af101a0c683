"""`attnlab.doctor` finds the parts that work here, and a remedy for each of the others."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import attnlab
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import MechanismConfig
from attnlab.runner import doctor


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
