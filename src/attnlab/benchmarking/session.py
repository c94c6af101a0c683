"""The measurement of all points, one after the other, in one process.

An exception at a point becomes that point's result. After a point that runs out of memory, larger
ones are not measured: the same variant and workload with at least its context and its batch. The
same holds after a point of which a single call takes over ten times the `seconds` per point.
A variant without `step` has neither prefill nor decoding.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Conditions, Point, release
from attnlab.benchmarking.results import ResultsFile
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.work import check_memory, stated_flops
from attnlab.benchmarking.workloads import (
    NoStepError,
    measure_decoding,
    measure_prefill,
    measure_training,
)
from attnlab.device.measuring import PATIENCE
from attnlab.record import Json

_MEASURE = {"train": measure_training, "prefill": measure_prefill, "decode": measure_decoding}
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def measure_all(
    points: Iterable[Point], setups: Mapping[str, Setup], under: Conditions, file: ResultsFile
) -> Iterator[Json]:
    """Measure the points that the file lacks; yield each result after it is written to the file."""
    known = file.final()
    gc.freeze()  # the collections between points then only visit what the points left
    try:
        for point in points:
            if point not in known:
                setup = setups[point.variant]
                known[point] = _skipped(point, known, under) or measure(setup, point, under)
                file.put(known[point])
                yield known[point]
    finally:
        gc.unfreeze()


def measure(setup: Setup, point: Point, under: Conditions) -> Json:
    """Measure one point. An exception becomes its status and reason; its memory is freed."""
    try:
        check_memory(setup, point, under)
        found = _MEASURE[point.what](setup, point, under)
        found |= _shares(found, setup, point, under)
        result = _result(point, "ok", None, found)
    except (RuntimeError, MemoryError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        memory |= any(words in str(error) for words in _NO_MEMORY)
        result = _result(point, "out_of_memory" if memory else "failed", _message(error))
    except NoStepError as error:
        result = _result(point, "no_step", str(error))
    except Exception as error:
        result = _result(point, "failed", _message(error))
    release(under)  # here the traceback, and what it refers to, no longer exists
    return result


def _skipped(point: Point, known: Mapping[Point, Json], under: Conditions) -> Json | None:
    """Return the result of a point that is not measured because of a smaller one, or None."""
    for smaller, result in known.items():
        same = smaller.variant == point.variant and point.what != "train"
        if same and result["status"] == "no_step":
            return _result(point, "no_step", result["reason"])
        if not smaller.covers(point):
            continue
        if result["status"] == "out_of_memory":
            return _result(point, "out_of_memory", f"not measured: {smaller} ran out of memory")
        if result["status"] == "ok" and result["seconds"] > PATIENCE * under.seconds:
            took = f"one call of {smaller} took {numbers.duration(result['seconds'])}"
            return _result(point, "too_long", f"not measured: {took}; raise --seconds")
    return None


def _shares(found: Json, setup: Setup, point: Point, under: Conditions) -> Json:
    """Return the fractions of the device's peak rates that were reached."""
    stated, seconds = stated_flops(setup, point), found["seconds"]
    shares: Json = {
        "flops_stated": stated,
        "matrix_fraction": None
        if stated is None
        else stated / seconds / under.ceilings.matrix_flops_per_second,
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


def _message(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600]
