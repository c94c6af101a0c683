"""The results of checks, from copies of this process: a crash ends one mechanism's check alone, and
one per core runs at a time.

A process that uses CUDA cannot be copied and checks one mechanism after the other. An error of a
kernel ends CUDA in it for good; the mechanisms after that one are checked in new processes.
"""

import multiprocessing
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

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
