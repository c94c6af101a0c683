"""The measurement of all points, one after the other.

On CUDA, and where one runs a file of the user's, they are measured in a process of their own. An
error of a kernel ends CUDA in it for good, and so does a crash, or an exit: the point has failed,
and the next one is measured in a new process. Others are measured in this process.

An exception at a point becomes that point's result. After a point that runs out of memory, larger
ones are not measured: the same variant and workload with at least its context and its batch. The
same holds after a point of which a single call takes over ten times the `seconds` per point.
A variant without `step` has neither prefill nor decoding.
"""

import gc
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

import torch

from attnlab.analysis import numbers
from attnlab.benchmarking.point import Conditions, Point, release
from attnlab.benchmarking.results import ResultsFile
from attnlab.benchmarking.targets import Setup
from attnlab.benchmarking.time_breakdown import with_breakdown
from attnlab.benchmarking.work import check_memory, stated_flops
from attnlab.benchmarking.workloads import (
    NoStepError,
    measure_decoding,
    measure_prefill,
    measure_training,
)
from attnlab.config import is_interrupt, is_out_of_memory, own_classes, own_error, own_kind
from attnlab.device.child_process import ChildProcess, Printed
from attnlab.device.flops import Ceilings, measure_ceilings
from attnlab.device.machine import cuda_is_broken
from attnlab.device.measuring import PATIENCE
from attnlab.kernels import flash_linear_attention as fla
from attnlab.record import Json

_MEASURE = {"train": measure_training, "prefill": measure_prefill, "decode": measure_decoding}


class ProcessEndedError(RuntimeError):
    """The process that measured has ended, and said nothing."""


class Measurer:
    """The functions of this file that compute on a device, called where `apart` says."""

    def __init__(self, device: torch.device, *, apart: bool) -> None:
        """Prepare for `device`. With `apart`, calls are made in another process."""
        self.device, self.apart = device, apart
        self.printed = list[str]()  # messages on what the last call in another process printed
        self._child: ChildProcess | None = None

    def ceilings(self, budget: float) -> Ceilings:
        """Return `measure_ceilings`."""
        return self._call(measure_ceilings, self.device, budget)

    def point(self, setup: Setup, point: Point, under: Conditions) -> Json:
        """Return the result of `measure`."""
        if not self.apart:
            return measure(setup, point, under)
        try:
            return self._call(_measured, setup.to_dict(), point, under)
        except ProcessEndedError as error:
            return _result(point, "failed", str(error))

    def breakdown(self, result: Json, setup: Setup, under: Conditions) -> Json:
        """Return the result `with_breakdown`. Raises RuntimeError as that does."""
        return self._call(_broken_down, result, setup.to_dict(), under)

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _call(self, task: Callable[..., Any], *arguments: Any) -> Any:
        if not self.apart:
            return task(*arguments)
        if self._child is None:
            self._child = ChildProcess("attnlab.benchmarking.session:serve")
            self._child.pipe.send((self.device, torch.get_num_threads(), fla.clone_path()))
        try:
            self._child.pipe.send((task, arguments))
            found, goes_on, self.printed = self._child.pipe.recv()
        except (EOFError, OSError):
            code = self._child.wait()
            self.close()
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self.printed = []
            raise ProcessEndedError(f"the process that measured it was ended {how}") from None
        if not goes_on:
            self.close()
        if isinstance(found, Exception):
            raise found
        return found


def serve(pipe: Connection) -> None:
    """Answer the calls of a `Measurer` that come by the pipe, until CUDA ends in this process."""
    device, threads, fla_path = pipe.recv()
    torch.set_num_threads(threads)
    if fla_path is not None:
        fla.use_fla(fla_path)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    gc.freeze()  # as in `measure_all`
    goes_on = True
    while goes_on:
        task, arguments = pipe.recv()
        printed = Printed()
        with printed.kept():
            try:
                found = task(*arguments)
            except RuntimeError as error:
                found = RuntimeError(str(error))
        goes_on = not cuda_is_broken()
        pipe.send((found, goes_on, printed.take()))


def _measured(settings: Json, point: Point, under: Conditions) -> Json:
    return measure(Setup.from_dict(settings), point, under)


def _broken_down(result: Json, settings: Json, under: Conditions) -> Json:
    return with_breakdown(result, Setup.from_dict(settings), under)


@contextmanager
def measurer(device: torch.device, setups: Iterable[Setup] = ()) -> Generator[Measurer]:
    """Yield a `Measurer` of these setups; the process that it may have ends with the context."""
    own = [own_kind(cls) for setup in setups for cls in own_classes(setup)]
    of_files = bool(own) and None not in own  # another process cannot import a notebook's classes
    found = Measurer(device, apart=device.type == "cuda" or of_files)
    try:
        yield found
    finally:
        found.close()


def measure_all(
    points: Iterable[Point],
    setups: Mapping[str, Setup],
    under: Conditions,
    file: ResultsFile,
    by: Measurer,
) -> Iterator[Json]:
    """Measure the points that the file lacks; yield each result after it is written to the file."""
    known, frozen = file.final(), gc.get_freeze_count()
    gc.freeze()  # the collections between points then only visit what the points left
    try:
        for point in points:
            if point not in known:
                setup = setups[point.variant]
                known[point] = _skipped(point, known, under) or by.point(setup, point, under)
                file.put(known[point])
                yield known[point]
    finally:
        if not frozen:  # else by the caller, who wants it to stay
            gc.unfreeze()


def measure(setup: Setup, point: Point, under: Conditions) -> Json:
    """Measure one point. An exception becomes its status and reason; its memory is freed."""
    try:
        check_memory(setup, point, under)
        found = _MEASURE[point.what](setup, point, under)
        found |= _shares(found, setup, point, under)
        result = _result(point, "ok", None, found)
    except (RuntimeError, MemoryError) as error:
        status = "out_of_memory" if is_out_of_memory(error) else "failed"
        result = _result(point, status, _message(error))
    except NoStepError as error:
        result = _result(point, "no_step", str(error))
    except BaseException as error:  # such as an exit
        if is_interrupt(error):
            raise
        result = _result(point, "failed", own_error(error) or _message(error))
    if cuda_is_broken():
        ended = "an error of a kernel has ended CUDA in its process"
        found = result["reason"] or "it shows at the end of the measurement"
        return _result(point, "failed", f"{ended}: {found}")
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


def _message(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:600]
