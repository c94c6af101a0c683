"""All points, one after the other, in one process; what goes wrong at one is that point's result.

A point that runs out of memory leaves the larger ones of its series untried: the same variant and
activity, with at least its context and its batch. So does one whose single call takes over ten
times the seconds that a point has.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from attnlab.benchmarking.conditions import Conditions, release
from attnlab.benchmarking.memory_check import require_room
from attnlab.benchmarking.point import Point
from attnlab.benchmarking.results_file import Ledger
from attnlab.benchmarking.serving import measure_decoding, measure_prefill
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.training import measure_training
from attnlab.benchmarking.work import stated_flops
from attnlab.device.timer import PATIENCE
from attnlab.record import Json

_MEASURE = {"train": measure_training, "prefill": measure_prefill, "decode": measure_decoding}
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def measure_all(
    points: Iterable[Point], setups: Mapping[str, Setup], under: Conditions, ledger: Ledger
) -> Iterator[Json]:
    """Measure what the ledger does not have yet; each result is in it before it is yielded."""
    known = ledger.settled()
    gc.freeze()  # the collections between points look at what points leave, in no time
    try:
        for point in points:
            if point not in known:
                setup = setups[point.variant]
                known[point] = _hopeless(point, known, under) or measure(setup, point, under)
                ledger.put(known[point])
                yield known[point]
    finally:
        gc.unfreeze()


def measure(setup: Setup, point: Point, under: Conditions) -> Json:
    """One point. An exception becomes its status and reason, and what it held is given back."""
    try:
        require_room(setup, point, under)
        found = _MEASURE[point.what](setup, point, under)
        found |= _shares(found, setup, point, under)
        result = _result(point, "ok", None, found)
    except (RuntimeError, MemoryError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        memory |= any(words in str(error) for words in _NO_MEMORY)
        result = _result(point, "out_of_memory" if memory else "failed", _said(error))
    except Exception as error:
        result = _result(point, "failed", _said(error))
    release(under)  # out here the traceback, with all it refers to, is gone
    return result


def _hopeless(point: Point, known: Mapping[Point, Json], under: Conditions) -> Json | None:
    """The result of a point that is not even tried, for what a smaller one did."""
    for smaller, result in known.items():
        if not smaller.covers(point):
            continue
        if result["status"] == "out_of_memory":
            return _result(point, "out_of_memory", f"not tried: {smaller} ran out of memory")
        if result["status"] == "ok" and result["seconds"] > PATIENCE * under.seconds:
            took = f"one {point.what} of {smaller} took {result['seconds']:.3g} s"
            return _result(point, "too_long", f"not tried: {took}; raise --seconds")
    return None


def _shares(found: Json, setup: Setup, point: Point, under: Conditions) -> Json:
    """What is reached of what the device can do."""
    stated, seconds = stated_flops(setup, point), found["seconds"]
    shares: Json = {
        "flops_stated": stated,
        "flops_exact": all(m.flops_are_exact for m in setup.model.per_layer()),  # or at least so
        "matrix_fraction": stated / seconds / under.ceilings.matrix_flops_per_second,
        "compiled": under.compiled,
    }
    if point.what == "decode":
        read = found["weight_bytes"] + found["state_bytes"]
        bound = read / (under.ceilings.copy_bytes_per_second / 2)
        shares |= {"bound_seconds": bound, "times_bound": seconds / bound}
    return shares


def _result(point: Point, status: str, reason: str | None, found: Json | None = None) -> Json:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    result: dict[str, Any] = {**point._asdict(), "status": status, "reason": reason}
    return {**result, **(found or {}), "measured": now}


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600]
