"""The results of checks, from copies of this process: a crash ends one mechanism's check alone, and
one per core runs at a time. And what the mechanisms of one process share, and must leave alone.

A process that uses CUDA cannot be copied and checks one mechanism after the other. An error of a
kernel ends CUDA in it for good; the mechanisms after that one are checked in new processes.
"""

import builtins
import inspect
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import numpy as np
import torch
from torch.backends import cuda

from attnlab.checks.modes import needs_cuda
from attnlab.checks.result import Property, Result
from attnlab.checks.subject import Subject
from attnlab.device.child_process import ChildProcess, Printed, begin_child, signals_blocked
from attnlab.device.machine import cuda_is_broken, usable_cores
from attnlab.kernels import flash_linear_attention as fla

END, _CANNOT_BE_COPIED = "end", "this process cannot be copied"
WITH_THE_FIRST_GRADIENT = "torch.fx.experimental.symbolic_shapes"  # torch imports it, and sympy


def results_of(properties: Sequence[Property], subject: Subject) -> Iterator[Result]:
    """Yield the result of each property; only the first one if that is violated.

    The last one is that of a property during which CUDA ended in this process.
    """
    with _one_thread():
        for each in properties:
            result = each.check(subject)
            if cuda_is_broken():
                yield each.ended_cuda(result)
                return
            yield result
            if each is properties[0] and not result.holds:
                return


def results_in_copies(
    properties: Sequence[Property],
    subjects: Sequence[Subject],
    watch: Callable[[int], None] | None = None,
) -> list[list[Result]]:
    """Return the results of each subject, in order; `watch` gets its number when its check begins.

    Where the process cannot be copied, since it uses CUDA already or is a worker of a pool, the
    results are its own, or from new processes once CUDA has ended in it.
    """
    watch = watch or (lambda _: None)
    alone = multiprocessing.current_process().daemon
    if sys.platform != "linux" or alone or torch.cuda.is_initialized():
        return [
            (watch(i), [*(_anew if cuda_is_broken() else results_of)(properties, subject)])[1]
            for i, subject in enumerate(subjects)
        ]
    with suppress(ImportError):  # half a second, once for all copies
        import_module(WITH_THE_FIRST_GRADIENT)
    results = [list[Result]() for _ in subjects]
    waiting, running = deque(range(len(subjects))), dict[Connection, tuple[int, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < usable_cores():
                watch(number := waiting.popleft())
                receiver, process = _copy(properties, subjects[number], tuple(running))
                running[receiver] = number, process
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                number, process = running[receiver]
                received, found = _received(receiver), results[number]
                if isinstance(received, Result):
                    found.append(received)
                    continue
                del running[receiver]
                if received is None:
                    process.join()
                    found.append(properties[len(found)].crashed(process.exitcode or 0))
                _stop(receiver, process)
                if received == _CANNOT_BE_COPIED:
                    found.extend(results_of(properties, subjects[number]))
    finally:
        for receiver, (_, process) in running.items():
            _stop(receiver, process)
    return results


def _anew(properties: Sequence[Property], subject: Subject) -> Iterator[Result]:
    """Yield the results of a new process."""
    settings = {field.name: getattr(subject, field.name) for field in fields(subject)}
    settings["config"] = subject.config.to_dict()
    settings["before"] = tuple(config.to_dict() for config in subject.before)
    child, number = ChildProcess("attnlab.checks.suite:send_results", silent=True), 0
    assert isinstance(child.pipe, Connection)
    try:
        child.pipe.send((fla.clone_path(), [each.name for each in properties], settings))
        while isinstance(received := _received(child.pipe), Result):
            number += 1
            yield received
        if received is None:
            yield properties[min(number, len(properties) - 1)].crashed(child.wait())
    finally:
        child.end()


def _copy(
    properties: Sequence[Property], subject: Subject, others: Sequence[Connection]
) -> tuple[Connection, Any]:
    """Start a copy of this process that checks the subject; return the end that receives, and it.

    `others` receive from other copies.
    """
    receiver, sender = cast(tuple[Connection, Connection], multiprocessing.Pipe(duplex=False))
    process = multiprocessing.get_context("fork").Process(
        target=_send_results,
        args=(properties, subject, sender, (*others, receiver), os.getpid()),
        daemon=True,
    )
    with signals_blocked(), warnings.catch_warnings():
        # the threads of the console hold nothing that a check needs
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sender.close()
    return receiver, process


def _received(receiver: Connection) -> Result | str | None:
    """Return what a copy sent; None if it has ended without a word."""
    try:
        return receiver.recv()
    except EOFError:
        return None


def _stop(receiver: Connection, process: Any) -> None:
    process.kill()
    process.join()
    receiver.close()


def _send_results(
    properties: Sequence[Property],
    subject: Subject,
    sender: Connection,
    receivers: Sequence[Connection],
    parent: int,
) -> None:
    begin_child(parent)
    for receiver in receivers:  # so that sending fails if the receiving process has ended
        receiver.close()
    try:
        torch.ones(1, requires_grad=True).sum().backward()
        if torch.cuda.is_available():  # optimizers ask this: an error if the parent's driver is on
            torch.cuda.is_current_stream_capturing()
        if needs_cuda(subject.trial, subject.config.computes_in):  # to begin with it takes seconds
            torch.cuda.init()
    except RuntimeError:
        sender.send(_CANNOT_BE_COPIED)
        return
    printed = Printed()
    with printed.kept():
        for result in results_of(properties, subject):
            notes = [result.note, *printed.take()]
            sender.send(replace(result, note="; ".join(filter(None, notes))))
    sender.send(END)


@contextmanager
def _one_thread() -> Generator[None]:
    """Use one thread: checks are many small operations, which several threads would slow down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def generator_state() -> bytes:
    """Return the state of torch's random generator on the CPU."""
    return torch.default_generator.get_state().numpy().tobytes()


def global_state() -> dict[str, Any]:
    """Return the states of global generators of random numbers, by name."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "Python's random generator": random.getstate(),
        "numpy's random generator": (
            numpy_state["state"]["pos"],
            numpy_state["state"]["key"].tobytes(),
        ),
    }


def torch_settings() -> dict[str, Any]:
    """Return the global settings of torch that a mechanism must leave alone, by name."""
    return {name: get() for name, (get, _) in SETTINGS.items()}


def restored(before: dict[str, Any]) -> list[str]:
    """Set the global settings to earlier values; return the names of those that differed."""
    changed = [name for name, value in torch_settings().items() if value != before[name]]
    for name in changed:
        SETTINGS[name][1](before[name])
    return changed


def _sdp_kernels() -> tuple[bool, ...]:
    return tuple(is_enabled() for is_enabled, _ in _SDP)


def _set_sdp_kernels(enabled: tuple[bool, ...]) -> None:
    for (_, enable), on in zip(_SDP, enabled, strict=True):
        enable(on)


_SDP = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
)
# global settings that all mechanisms of a process share: how to read and how to set them
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's detection of anomalies": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "torch's switch of gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's precision of float32 products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's switch of deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's kernels of attention": (_sdp_kernels, _set_sdp_kernels),
}


@contextmanager
def another_process(number: int) -> Generator[None]:
    """Let global generators, process number, clock and hashes of strings be those of another one.

    Number 0 is this process. What was there before is restored.
    """
    before = random.getstate(), np.random.get_state()
    clock, hashed, process = time.time, hash, os.getpid()

    def salted(value: Any) -> int:
        module = str(inspect.currentframe().f_back.f_globals.get("__name__"))  # pyright: ignore
        is_own = module.split(".")[0] not in sys.stdlib_module_names  # such as an enum's `__hash__`
        return hashed(value) ^ number if is_own and isinstance(value, str) else hashed(value)

    others: dict[tuple[Any, str], Any] = {
        (os, "getpid"): lambda: process + number,
        (time, "time"): lambda: clock() + number * 1e6,
        (time, "time_ns"): lambda: int((clock() + number * 1e6) * 1e9),
        (builtins, "hash"): salted,
    }
    with ExitStack() as restored:
        for (module, name), other in others.items() if number else ():
            restored.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, other)
        restored.callback(lambda: (random.setstate(before[0]), np.random.set_state(before[1])))
        random.seed(number)
        np.random.seed(number)
        yield
