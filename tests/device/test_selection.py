"""Worker slots are the devices of this machine."""

import os

import pytest
import torch

from attnlab.device.selection import Slot, choose_device, one_worker, worker_slots


def test_slots_share_the_cores_of_the_cpu():
    cores = len(os.sched_getaffinity(0))
    assert worker_slots("cpu", 100) == [Slot(("cpu",), 1)] * cores
    assert worker_slots("cpu", 1) == [Slot(("cpu",), cores)]
    assert worker_slots("cpu", 100, workers=1) == [Slot(("cpu",), cores)]


def test_there_is_a_slot_per_gpu_and_no_more_than_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    gpus = [Slot((f"cuda:{index}",), 1) for index in range(3)]
    assert worker_slots("auto", 100) == worker_slots("cuda", 100) == gpus
    assert worker_slots("cuda", 2) == worker_slots("cuda", 100, workers=2) == gpus[:2]
    assert worker_slots("cuda:1", 100) == gpus[1:2]


@pytest.mark.parametrize(
    ("device", "workers", "message"),
    [
        ("cuda:99", None, "no device 'cuda:99': torch sees"),
        ("gpu", None, "unknown device 'gpu': use auto, cpu, cuda or cuda:1"),
        ("cpu", 0, "workers: must be at least 1, got 0"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(device, workers, message):
    with pytest.raises(ValueError, match=message):
        worker_slots(device, 1, workers)


def test_one_process_computes_on_the_first_slot():
    assert choose_device("cpu") == torch.device("cpu")
    before, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    torch.set_num_threads(cores + 1)
    try:
        with one_worker("cpu") as device:
            assert device == torch.device("cpu")
            assert torch.get_num_threads() == cores
        assert torch.get_num_threads() == cores + 1
    finally:
        torch.set_num_threads(before)
