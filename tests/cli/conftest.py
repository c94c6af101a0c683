"""The command line in a folder of its own, and a trained study for tests that only read one."""

import shutil
from pathlib import Path

import pytest
from click.testing import Result
from support import fake_workers, tiny_study
from typer.testing import CliRunner

from attnlab.cli import app
from attnlab.cli.console import console, errors
from attnlab.mechanism import MechanismConfig


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def attnlab(tmp_path, monkeypatch, cache):
    """Call the command line in an empty folder; user-defined kinds are forgotten afterwards.

    It trains in this process and draws no figure; `first_run` starts workers and draws.
    """
    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    fake_workers.draw_nothing(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNLAB_CACHE", cache)
    monkeypatch.delenv("ATTNLAB_DATA", raising=False)
    monkeypatch.setattr(MechanismConfig, "kinds", dict(MechanismConfig.kinds))
    for printer in (console, errors):
        monkeypatch.setattr(printer, "width", 140)

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return call


@pytest.fixture(scope="session")
def first_run(tmp_path_factory, cache):
    """Folder and output of `attnlab run` of two variants with one seed each."""
    folder = tmp_path_factory.mktemp("first_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ATTNLAB_CACHE", cache)
        for printer in (console, errors):
            patch.setattr(printer, "width", 140)
        arguments = ("--seeds", "1", "--only", "mha,identity", "--device", "cpu", "--workers", "1")
        done = CliRunner().invoke(app, ["run", tiny_study.__file__, *arguments])
    return folder, done


@pytest.fixture
def trained(tmp_path, first_run) -> Path:
    """A copy of that study's folder, below the working directory."""
    folder = Path("results/tiny_study")
    shutil.copytree(first_run[0] / folder, tmp_path / folder)
    return folder
