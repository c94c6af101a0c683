"""Settings that every test needs, the command line in a folder of its own, and a trained study.

What takes seconds to import is imported where it is used: the process of pytest-xdist that only
hands the tests out imports this module, too.
"""

import gc
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from support import SOURCE, TESTS


def gpu_of_worker(worker: str, gpus: list[str]) -> str:
    """Return the GPU that a worker of pytest-xdist (`gw0`, `gw1`, ...) uses: they take turns.

    >>> [gpu_of_worker(f"gw{n}", ["0", "1", "3"]) for n in range(4)]
    ['0', '1', '3', '0']
    """
    return gpus[int(worker.removeprefix("gw")) % len(gpus)]


def use_own_gpu() -> None:
    """Show this worker one GPU only, before CUDA is initialised; its subprocesses inherit it."""
    import torch

    worker, visible = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if worker is not None and len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of_worker(worker, gpus)


def receive_interrupts() -> None:
    """Undo what a shell does to a command in the background: SIGINT would be ignored, inherited."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_on_a_busy_machine() -> None:
    """Let an example of hypothesis take the time that it takes: tests of time measure it."""
    import hypothesis

    hypothesis.settings.register_profile("any_time", deadline=None)
    hypothesis.settings.load_profile("any_time")


def make_source_importable() -> None:
    """Let subprocesses import this source tree, whatever their working directory."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [path for path in inherited if Path(path).is_absolute()]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), str(TESTS), *absolute])


def write_to_memory() -> None:
    """Keep the files of tests in memory where there is room, until a test has passed.

    A run of all makes 28,000 folders, and to remove one takes 3 ms on some disks.
    """
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(memory))


receive_interrupts()
make_source_importable()
write_to_memory()
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# importing a planted bug adds its kind to the zoo: only the tests that want them do
collect_ignore = ["support/planted_bugs.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Prepare a process that collects and runs tests, before it imports their modules."""
    if not getattr(config.option, "numprocesses", None):
        use_own_gpu()
        wait_on_a_busy_machine()
        gc.disable()  # all that is collected and imported lives to the end


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def one_thread_per_worker() -> None:
    """The suite runs in as many processes as there are cores; more threads would only compete.

    Those of numpy are set before its import.
    """
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def disk_is_not_waited_for() -> Iterator[None]:
    """Flush no file to disk: 60,000 times a few milliseconds. Commands in processes flush theirs.

    Tests that count or refuse flushes put their own function in its place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_cut() -> Iterator[int]:
    """Trained models are searched for a look ahead from one cut; yield how many there are else.

    All of them take longer than the training. Tests of this search take them.
    """
    from attnlab.training import plausibility

    with pytest.MonkeyPatch.context() as patch:
        cuts = plausibility.CUTS
        patch.setattr(plausibility, "CUTS", 1)
        yield cuts


@pytest.fixture
def unprinted(monkeypatch) -> None:
    """Draw panels for papers and write no file: most of the time goes into its fonts."""
    monkeypatch.setattr("attnlab.reporting.figures.comparison.pdf", lambda _: b"")


@pytest.fixture
def empty_charts(monkeypatch, unprinted) -> None:
    """Draw nothing in the charts of pages: four fifths of the time that a page takes."""
    module = "attnlab.reporting.figures.svg"
    monkeypatch.setattr(f"{module}.SvgCharts.svg", lambda *_, **__: "<svg></svg>")


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory):
    """The data cache that tests share, so that the text is read once per process."""
    from attnlab.data import Places

    return Places(None, tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="module")
def imported_objects_are_no_garbage() -> None:
    """Each run collects garbage first: a third of a small one, if all imports are searched."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a CUDA device is skipped where there is none.

    Where there is one, what the compilers of its kernels warn of is no error of ours.
    """
    import torch

    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def attnlab(tmp_path, monkeypatch, cache):
    """Call the command line in an empty folder; user-defined kinds are forgotten afterwards.

    It trains in this process, judges few properties and draws no figure; `first_run` draws its
    page.
    """
    from support import fake_workers
    from typer.testing import CliRunner

    from attnlab.cli import app
    from attnlab.cli.console import console, errors
    from attnlab.mechanism import MechanismConfig

    monkeypatch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
    fake_workers.draw_nothing(monkeypatch)
    fake_workers.judge_few(monkeypatch)
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
    """Folder and output of `attnlab run` of two variants with one seed each.

    It trains in this process: a worker takes seconds to import torch.
    """
    from support import fake_workers, tiny_study
    from typer.testing import CliRunner

    from attnlab.cli import app
    from attnlab.cli.console import console, errors

    folder = tmp_path_factory.mktemp("first_run")
    with pytest.MonkeyPatch.context() as patch:
        fake_workers.draw_nothing(patch, page=True)
        fake_workers.judge_few(patch)
        patch.setattr("attnlab.runner.run.LocalWorkers", fake_workers.InProcess)
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
