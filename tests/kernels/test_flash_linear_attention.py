"""Conditions under which flash-linear-attention may run, decided from a machine's facts."""

import subprocess
import sys

import pytest
import torch

from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels.flash_linear_attention import Facts, problem

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def facts(**changed) -> Facts:
    hopper = {
        "capability": (9, 0),
        "fla": "0.6.0",
        "layers": "0.6.0",
        "triton": "3.7.1",
        "tilelang": False,
        "nvcc": False,
    }
    return Facts(**(hopper | changed))


@pytest.mark.parametrize(
    "usable",
    [
        facts(),
        facts(triton="3.3.1"),
        facts(triton="3.8.0"),
        facts(triton="3.10.0"),  # compared as numbers
        facts(fla="0.10.0"),
        facts(triton="3.6.0", tilelang=True, nvcc=True),
        facts(triton="3.6.0", capability=(8, 0)),
        facts(triton="3.6.0", capability=(10, 0)),
    ],
    ids=str,
)
def test_it_runs_where_its_gradients_are_right(usable):
    assert problem(usable) is None


@pytest.mark.parametrize(
    ("unusable", "remedy"),
    [
        (facts(capability=None), "needs CUDA"),
        (facts(fla=None), "pip install"),
        (facts(fla="0.5.2"), "older than 0.6.0.*--upgrade"),
        (facts(triton=None), "needs Triton"),
        (facts(triton="3.4.0"), "pip install tilelang, or use Triton 3.7.1"),
        (facts(triton="3.6.0"), "wrong gradients of gates on Hopper with Triton 3.6.0"),
        (facts(triton="3.7.0"), "pip install tilelang"),
        (facts(triton="3.7.0", nvcc=True), "pip install tilelang"),
        (facts(triton="3.7.0", tilelang=True), "put nvcc on PATH"),
    ],
)
def test_where_it_cannot_run_the_reason_says_what_would_help(unusable, remedy):
    with pytest.raises(AssertionError, match=remedy):
        raise AssertionError(problem(unusable))


def test_another_device_needs_cuda_whatever_is_installed(monkeypatch):
    monkeypatch.setattr(fla, "facts", facts)
    assert fla.unusable_because("cuda") is None
    assert "needs a CUDA device, not cpu" in fla.unusable_because("cpu")


@no_cuda
def test_without_cuda_the_reason_names_it_and_nothing_is_imported():
    assert "CUDA" in fla.unusable_because("cuda")
    assert "CUDA" in fla.unusable_because("cpu")
    with pytest.raises(ValueError, match="CUDA"):
        fla.function("chunk_gated_delta_rule")
    # in a process of its own, since other tests import other packages that import fla
    call = "flash_linear_attention.unusable_because('cuda')"
    asked = f"from attnlab.kernels import flash_linear_attention; {call}"
    script = f"import sys; {asked}; print({{'fla', 'triton'}} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout == "set()\n", said.stderr


def test_only_layers_with_a_gate_a_head_are_wrong_on_hopper(monkeypatch):
    monkeypatch.setattr(fla, "facts", lambda: facts(triton="3.6.0"))
    assert fla.layer_unusable_because("GatedLinearAttention") is None
    assert "issue 640" in fla.layer_unusable_because("GatedDeltaNet")
    monkeypatch.setattr(fla, "facts", facts)
    assert fla.layer_unusable_because("GatedDeltaNet") is None


def test_tilelang_helps_the_delta_rule_alone(monkeypatch):
    with_tilelang = facts(triton="3.6.0", tilelang=True, nvcc=True)
    assert problem(with_tilelang) is None
    assert "not even through TileLang: use Triton 3.7.1" in problem(
        with_tilelang, "chunk_simple_gla"
    )
    assert problem(facts(triton="3.7.1"), "chunk_simple_gla") is None
    monkeypatch.setattr(fla, "facts", lambda: with_tilelang)
    assert fla.layer_unusable_because("GatedDeltaNet") is None
    assert "TileLang" in fla.layer_unusable_because("SimpleGatedLinearAttention")


def test_layers_need_the_package_of_layers(monkeypatch):
    monkeypatch.setattr(fla, "facts", lambda: facts(layers=None))
    assert fla.unusable_because("cuda") is None
    assert "pip install fla-core flash-linear-attention" in fla.layer_unusable_because(
        "GatedLinearAttention"
    )


def test_the_record_says_which_version_there_is(monkeypatch):
    monkeypatch.setattr(fla, "facts", facts)
    assert fla.version() == {"fla_source": "installed", "fla_version": "0.6.0"}
    monkeypatch.setattr(fla, "facts", lambda: facts(fla=None))
    assert fla.version() == {"fla_source": None, "fla_version": None}
