"""The processes of one run, one per device, and what they tell each other.

torchrun, or its agent, starts them, and tells each its rank. All follow the same decisions, made
from the same numbers; the first one alone writes the run's folder.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=2)  # for the other processes; the death of one is noticed at once


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of its run. `alone` is the usual case of one process."""

    rank: int
    count: int
    device: torch.device  # of this process

    @classmethod
    def alone(cls, device: torch.device) -> "Ranks":
        """Return the only process of a run."""
        return cls(rank=0, count=1, device=device)

    @classmethod
    def join(cls, device: torch.device) -> "Ranks":
        """Join the other processes, as the environment variables of torchrun say.

        They talk over NCCL on GPUs and over gloo on CPUs.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device, timeout=PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(rank=dist.get_rank(), count=dist.get_world_size(), device=device)

    @staticmethod
    def of_torchrun() -> tuple[int, int] | None:
        """Return the rank on this machine and the number of processes; None without torchrun."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        return int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])

    def leave(self) -> None:
        """Part from the other processes at the end."""
        if self.count > 1:
            dist.destroy_process_group()

    @property
    def writes(self) -> bool:
        """True in the process that writes the run's folder."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return the rows of a batch that this process trains on.

        Raises ValueError if the processes cannot have the same number of rows.
        """
        if problem := uneven(batch_size, self.count):
            raise ValueError(f"train.batch_size: {problem}")
        rows = batch_size // self.count
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.count == 1:
            return tensor
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of equal shape, stacked by rank."""
        every = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(every, tensor.contiguous())
        return torch.stack(every)

    def joined(self, own: Tensor, rows: int) -> Tensor:
        """Return a tensor of `rows` rows, of which each process has what `chunk` gives it."""
        padded = own.new_zeros(-(-rows // self.count), *own.shape[1:], device=self.device)
        padded[: len(own)] = own
        return self.gather(padded).flatten(0, 1)[:rows]

    def highest(self, number: int | None) -> int | None:
        """Return the largest number of all processes; None if one has none."""
        if self.count == 1:
            return number
        numbers: list[int | None] = [None] * self.count
        dist.all_gather_object(numbers, number)
        known = [each for each in numbers if each is not None]
        return max(known) if len(known) == self.count else None

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    def shared_out(
        self, calls: Sequence[Callable[[], tuple[Tensor, ...]]], shapes: Sequence[torch.Size]
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the results of some calls, in order; each is made by one process for all.

        Results are tensors of the dtypes float32 and bool, of the shape given for the call. Every
        process makes as many calls as any other, since a call may wait for the others.
        """
        if self.count == 1:
            yield from (call() for call in calls)
            return
        most = max(shape.numel() for shape in shapes)
        for first in range(0, len(calls), self.count):
            results = calls[min(first + self.rank, len(calls) - 1)]()
            padded = torch.zeros(len(results), most, device=self.device)
            for row, result in zip(padded, results, strict=True):
                row[: result.numel()] = result.flatten()
            for row, shape in zip(self.gather(padded), shapes[first:], strict=False):
                flat = row[:, : shape.numel()]
                yield tuple(
                    one.view(shape).to(result.dtype)
                    for one, result in zip(flat, results, strict=True)
                )


def uneven(batch_size: int, count: int) -> str | None:
    """Return why this number of processes cannot share a batch evenly; None if they can."""
    if batch_size % count == 0:
        return None
    return (
        f"{batch_size} sequences per step cannot be shared evenly by {count} GPUs: use a multiple "
        f"of {count}, or another number of GPUs per run"
    )
