"""Settings that every test needs."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from support import SOURCE, TESTS

from attnlab.data import Places


def gpu_of_worker(worker: str, gpus: list[str]) -> str:
    """Return the GPU that a worker of pytest-xdist (`gw0`, `gw1`, ...) uses: they take turns.

    >>> [gpu_of_worker(f"gw{n}", ["0", "1", "3"]) for n in range(4)]
    ['0', '1', '3', '0']
    """
    return gpus[int(worker.removeprefix("gw")) % len(gpus)]


def use_own_gpu() -> None:
    """Show this worker one GPU only, before CUDA is initialised; its subprocesses inherit it."""
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
    hypothesis.settings.register_profile("any_time", deadline=None)
    hypothesis.settings.load_profile("any_time")


def make_source_importable() -> None:
    """Let subprocesses import this source tree, whatever their working directory."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [path for path in inherited if Path(path).is_absolute()]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), str(TESTS), *absolute])


use_own_gpu()
receive_interrupts()
make_source_importable()
wait_on_a_busy_machine()

# importing a planted bug adds its kind to the zoo: only the tests that want them do
collect_ignore = ["support/planted_bugs.py"]


@pytest.fixture(autouse=True, scope="session")
def one_thread_per_worker() -> None:
    """The suite runs in as many processes as there are cores; more threads would only compete."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def disk_is_not_waited_for() -> Iterator[None]:
    """Flush no file to disk: 60,000 times a few milliseconds. Commands in processes flush theirs.

    Tests that count or refuse flushes put their own function in its place.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """The data cache that tests share, so that the text is read once per process."""
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
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
