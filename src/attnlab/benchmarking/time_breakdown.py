"""The time of a decoded token by cause: memory reads, kernel launches, and the rest.

A step is hundreds of kernels, and at small batches most of them have little to do: each costs what
starting and ending a kernel costs, even inside a CUDA graph. So a step should take

    bound + kernels x seconds of an empty kernel

The rest is due to kernels that read more than once, or slower than a copy.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from attnlab.benchmarking.point import Conditions, Point, random_tokens, release
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.workloads import served, states_at, warm_decoder
from attnlab.device.measuring import time_calls, wait_for_device
from attnlab.inference.decoder import Decoder
from attnlab.record import Json

NEAR = 1.5  # times its bound: no breakdown is made
_EMPTY_KERNELS = 200  # per graph
_LONGEST = 8  # kernels that are listed


def without_breakdown(points: Iterable[Json]) -> list[Json]:
    """Return the decode points that need a breakdown: per variant the one farthest from its bound,
    if it is far and has none yet.
    """
    farthest = dict[str, Json]()
    for point in points:
        if point.get("times_bound", 0.0) > NEAR:
            most = farthest.setdefault(point["variant"], point)
            if point["times_bound"] > most["times_bound"]:
                farthest[point["variant"]] = point
    return [point for point in farthest.values() if "time_breakdown" not in point]


def with_breakdown(result: Json, setup: Setup, under: Conditions) -> Json:
    """Return `result`, a decode point on CUDA, with its "time_breakdown".

    Raises RuntimeError if the profiler sees no kernels, or memory does not suffice for it.
    """
    point = Point.of(result)
    found = _kernels(setup, point, under)
    release(under)
    empty = _empty_kernel_seconds(under)
    explained = result["bound_seconds"] + found["kernels"] * empty
    return {
        **result,
        "time_breakdown": {
            **found,
            "empty_kernel_seconds": empty,
            "explained_seconds": explained,
            "unexplained_seconds": result["seconds"] - explained,
        },
    }


def _kernels(setup: Setup, point: Point, under: Conditions) -> Json:
    """Return the kernels of one step, from torch's profiler."""
    model = served(setup, under)
    tokens_B = random_tokens(setup, (point.batch,), under.device)
    decoder = warm_decoder(model, states_at(model, setup, point), under, tokens_B)
    _profiled(decoder, tokens_B)  # the first profile of a process misses some kernels
    seconds = defaultdict[str, list[float]](list)
    for event in _profiled(decoder, tokens_B).events() or ():
        if event.device_type == DeviceType.CUDA:
            seconds[event.name].append(event.time_range.elapsed_us() / 1e6)
    if not seconds:
        raise RuntimeError("torch's profiler sees no kernels; CUPTI may lack permission")
    longest = sorted(seconds, key=lambda name: -sum(seconds[name]))[:_LONGEST]
    return {
        "kernels": sum(map(len, seconds.values())),
        "kernel_seconds": sum(map(sum, seconds.values())),
        "longest": [
            {"name": name, "calls": len(seconds[name]), "seconds": sum(seconds[name])}
            for name in longest
        ],
    }


def _profiled(decoder: Decoder, tokens_B: Tensor) -> profile:
    wait_for_device(tokens_B.device)
    both = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=both, acc_events=True) as profiled:
        decoder.step(tokens_B)
        wait_for_device(tokens_B.device)
    return profiled


def _empty_kernel_seconds(under: Conditions) -> float:
    """Return the seconds of a kernel that adds one to one number, inside a CUDA graph."""
    number, graph = torch.zeros(1, device=under.device), torch.cuda.CUDAGraph()
    number += 1  # loads the kernel before recording
    with torch.cuda.graph(graph):
        for _ in range(_EMPTY_KERNELS):
            number += 1
    return time_calls(graph.replay, under.device, under.seconds / 10).seconds / _EMPTY_KERNELS
