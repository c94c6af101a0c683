"""Settings that every test needs."""

import pytest
import torch

# importing a planted bug adds its kind to the zoo: only the tests that want them do
collect_ignore = ["support/planted_bugs.py"]


@pytest.fixture(autouse=True, scope="session")
def one_thread_a_worker() -> None:
    """The suite runs in as many processes as there are cores; more threads would only compete."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a CUDA device is skipped where there is none.

    Where there is one, what the compilers of its kernels warn of is no error of ours.
    """
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
