"""Settings that every test needs."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread_a_worker() -> None:
    """The suite runs in as many processes as there are cores; more threads would only compete."""
    torch.set_num_threads(1)
