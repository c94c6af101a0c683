"""Conditions under which flash-linear-attention may run, decided from a machine's facts.

flash-linear-attention from a local clone is what is imported, and the record says so.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import fake_workers, tiny_study
from typer.testing import CliRunner

from attnlab.cli import app
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels import flash_linear_attention_clone as fla_clone
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
        (facts(triton="3.6.0"), "faulty on Hopper with Triton 3.6.0"),
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


def test_only_layers_with_a_gate_a_head_are_faulty_on_hopper(monkeypatch):
    monkeypatch.setattr(fla, "facts", lambda: facts(triton="3.6.0"))
    assert fla.layer_unusable_because("GatedLinearAttention") is None
    assert "issue 640" in fla.layer_unusable_because("GatedDeltaNet")
    monkeypatch.setattr(fla, "facts", facts)
    assert fla.layer_unusable_because("GatedDeltaNet") is None


def test_tilelang_helps_the_delta_rule_alone(monkeypatch):
    with_tilelang = facts(triton="3.6.0", tilelang=True, nvcc=True)
    assert problem(with_tilelang) is None
    assert "even through TileLang: use Triton 3.7.1" in problem(with_tilelang, "chunk_simple_gla")
    assert problem(facts(triton="3.7.1"), "chunk_simple_gla") is None
    monkeypatch.setattr(fla, "facts", lambda: with_tilelang)
    assert fla.layer_unusable_because("GatedDeltaNet") is None
    for layer in ("SimpleGatedLinearAttention", "MultiScaleRetention"):
        assert "even through TileLang" in fla.layer_unusable_because(layer)


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


# like the real package, it searches the whole import path for modules that it lacks
START = """from pkgutil import extend_path
__path__ = extend_path(__path__, __name__)
__version__ = "0.9.1"
"""


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    done = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(done, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clone(tmp_path):
    """Return a git repository with a package `fla` and another module beside it."""
    folder = tmp_path / "flash-linear-attention"
    (folder / "fla" / "layers").mkdir(parents=True)
    (folder / "fla" / "__init__.py").write_text(START)
    (folder / "fla" / "layers" / "__init__.py").write_text("WHERE = 'the clone'\n__all__ = []\n")
    (folder / "beside_the_clone.py").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    return folder


@pytest.fixture
def fresh(monkeypatch):
    """Hide all imports of `fla` in this process, and restore them afterwards."""
    kept = {name: it for name, it in sys.modules.items() if name.split(".")[0] == "fla"}
    for name in kept:
        del sys.modules[name]
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.delenv("ATTNLAB_FLA_PATH", raising=False)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fla"]:
        del sys.modules[name]
    sys.modules.update(kept)
    fla.facts.cache_clear()


def test_what_is_imported_is_the_clone_and_nothing_else_of_it(clone, fresh):
    fla.use_fla(clone)
    assert fla_clone.imported("fla.layers").WHERE == "the clone"
    assert Path(sys.modules["fla"].__file__) == clone / "fla" / "__init__.py"
    assert importlib.util.find_spec("beside_the_clone") is None
    fla.use_fla(clone / ".." / clone.name)  # the same clone again is accepted


def test_the_record_says_which_clone_at_which_commit_and_whether_it_was_changed(clone, fresh):
    assert fla.version()["fla_source"] in ("installed", None)
    fla.use_fla(clone)
    known = {"fla_source": "local_clone", "fla_version": "0.9.1"}
    commit = git(clone, "rev-parse", "HEAD")
    assert fla.version() == {**known, "fla_commit": commit, "fla_dirty": False}
    assert (fla.facts().fla, fla.facts().layers) == ("0.9.1", "0.9.1")


def test_a_changed_clone_is_dirty_and_one_without_git_has_no_commit(clone, fresh, monkeypatch):
    (clone / "fla" / "__init__.py").write_text(START + "# changed\n")
    assert fla_clone.use(clone).dirty is True
    shutil.rmtree(clone / ".git")
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[1:])
    assert (fla_clone.use(clone).commit, fla_clone.in_use().dirty) == (None, None)


def test_a_module_that_the_clone_lacks_is_not_taken_from_another_unseen(clone, fresh, monkeypatch):
    other = clone.parent / "site-packages"
    (other / "fla").mkdir(parents=True)
    (other / "fla" / "__init__.py").write_text(START)
    (other / "fla" / "extra.py").write_text("")
    (clone / "fla" / "ops.py").write_text("import fla.extra\n")
    monkeypatch.syspath_prepend(str(other))
    fla.use_fla(clone)
    assert fla_clone.imported("fla.layers").WHERE == "the clone"
    with pytest.raises(ValueError, match=r"fla\.extra was imported from .*site-packages"):
        fla_clone.imported("fla.ops")


@pytest.mark.parametrize(
    ("spoil", "named", "message"),
    [
        (lambda clone: None, "nowhere", "there is no such folder"),
        (lambda clone: None, "fla", "has no package fla: give the folder of the clone, .*tion$"),
        (lambda clone: shutil.rmtree(clone / "fla"), "", "has no package fla: .* contains fla/"),
        (
            lambda clone: (clone / "fla" / "__init__.py").write_text(""),
            "",
            "has no __version__: is it flash-linear-attention's",
        ),
    ],
)
def test_a_path_that_holds_no_such_package_is_refused(clone, fresh, spoil, named, message):
    spoil(clone)
    with pytest.raises(ValueError, match=message):
        fla.use_fla(clone / named)
    assert fla_clone.in_use() is None


def test_a_second_one_is_refused_once_the_first_was_loaded(clone, fresh, monkeypatch):
    other = shutil.copytree(clone, clone.parent / "other")
    fla.use_fla(clone)
    with pytest.raises(
        ValueError, match=f"already uses .* from {clone}, .* start another process for {other}"
    ):
        fla.use_fla(other)
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[1:])
    monkeypatch.syspath_prepend(str(other))
    importlib.import_module("fla")
    with pytest.raises(ValueError, match=r"other/fla/__init__\.py before .* start a new process"):
        fla.use_fla(clone)


def test_the_environment_names_the_clone_where_no_option_does(clone, fresh, monkeypatch):
    monkeypatch.setenv("ATTNLAB_FLA_PATH", str(clone.parent / "nowhere"))
    with pytest.raises(ValueError, match="no such folder"):
        fla.use_fla()
    fla.use_fla(clone)
    assert fla.clone_path() == clone


@pytest.mark.parametrize(
    "command",
    [
        ("run", tiny_study.__file__),
        ("check", "identity"),
        ("bench", "identity"),
        ("doctor",),
        ("generate", "some/run", "--prompt", "x"),
    ],
)
def test_every_command_that_may_import_it_refuses_a_wrong_clone(tmp_path, fresh, command):
    done = CliRunner().invoke(app, [*command, "--fla-path", str(tmp_path)])
    assert done.exit_code == 2
    assert "has no package fla" in " ".join(done.output.split())


def attnlab(folder, *arguments):
    command = [sys.executable, "-c", fake_workers.UNDRAWN, *arguments]
    places = {"ATTNLAB_CACHE": str(folder / "cache")}
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **places}, capture_output=True, text=True
    )


def test_the_doctor_shows_the_clone(clone, fresh, monkeypatch):
    monkeypatch.setenv("ATTNLAB_FLA_PATH", str(clone))
    done = CliRunner().invoke(app, ["doctor", "--json"])
    found = {finding["part"]: finding["found"] for finding in json.loads(done.stdout)}
    commit = git(clone, "rev-parse", "HEAD")[:12]
    said = found["flash-linear-attention"]
    assert said.startswith(f"0.9.1 from the local clone {clone}, commit {commit};")


def test_workers_use_the_clone_and_their_record_says_so(clone, tmp_path):
    asked = ("--only", "identity", "--seeds", "1", "--device", "cpu", "--out", "out", "--no-check")
    done = attnlab(tmp_path, "run", tiny_study.__file__, *asked, "--fla-path", str(clone))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/identity/seed-0/environment.json").read_text())
    assert (record["fla_source"], record["fla_version"]) == ("local_clone", "0.9.1")
    assert (record["fla_commit"], record["fla_dirty"]) == (git(clone, "rev-parse", "HEAD"), False)
    assert "local_clone" in (tmp_path / "out/report.md").read_text()


@pytest.mark.gpu
def test_a_layer_of_a_clone_trains_on_a_gpu(tmp_path):
    """The clone is a copy of the installed package."""
    if reason := fla.layer_unusable_because("GatedLinearAttention"):
        pytest.skip(reason)
    installed = importlib.util.find_spec("fla").submodule_search_locations[0]
    folder = tmp_path / "clone"
    shutil.copytree(installed, folder / "fla")
    (folder / "fla" / "__init__.py").write_text(
        re.sub("__version__ = .*", '__version__ = "99.0"', (folder / "fla/__init__.py").read_text())
    )
    asked = ("--only", "identity", "--seeds", "1", "--out", "out", "--no-check")
    changes = ("model.d_model=256", "model.mechanisms.0=fla:GatedLinearAttention")
    named = ("--fla-path", str(folder))
    done = attnlab(tmp_path, "run", tiny_study.__file__, *asked, *named, *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out/identity/seed-0/environment.json").read_text())
    assert (record["fla_source"], record["fla_version"]) == ("local_clone", "99.0")
