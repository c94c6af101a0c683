"""The doctor says what runs here and what would make the rest run."""

from pathlib import Path
from types import SimpleNamespace

import torch

from attnlab.data import Places
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import MechanismConfig
from attnlab.runner import doctor


def examined(tmp_path: Path, **changes: object) -> dict[str, doctor.Finding]:
    places = Places(data=None, cache=tmp_path / "cache")._replace(**changes)
    return {finding.what: finding for finding in doctor.examine(places, tmp_path / "results")}


def data_of(study: str, findings: dict[str, doctor.Finding]) -> doctor.Finding:
    (found,) = (
        finding
        for what, finding in findings.items()
        if what.startswith("data of ") and study in what.removeprefix("data of ").split(", ")
    )
    return found


def test_the_default_study_can_run_here(tmp_path):
    findings = examined(tmp_path)
    assert doctor.can_run(list(findings.values()))
    assert findings["data of quickstart"].well
    assert not list(tmp_path.iterdir())


def test_every_mechanism_names_its_kernel(tmp_path):
    findings = examined(tmp_path)
    assert MechanismConfig.kinds.keys() <= findings.keys()
    if not torch.cuda.is_available():
        assert findings["grouped_query"].found == "kernel sdpa on cpu; with dropout blocked"
        assert findings["gated_delta_net"].found == "kernel chunked on cpu"


def test_missing_data_is_told_with_its_remedy_and_does_not_stop_the_default_study(tmp_path):
    findings = examined(tmp_path)
    missing = data_of("mechanisms", findings)
    assert missing is data_of("deepseek", findings)  # one source is one line
    assert missing is not data_of("hybrids", findings)
    assert not missing.well
    assert "ATTNLAB_DATA" in missing.remedy
    assert doctor.can_run(list(findings.values()))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("some text\n")
    assert data_of("mechanisms", examined(tmp_path, data=tmp_path)).well


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
    assert examined(tmp_path)["flash-linear-attention"].well == (not torch.cuda.is_available())
