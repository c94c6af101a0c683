"""One run on several devices, or in micro-batches: the same training with less memory on each.

`apply` changes the model in a fixed order: each block is compiled, then its activations are
checkpointed, then it is sharded (FSDP2: `fully_shard`), and the rest of the model last. Process r
of N trains on rows r B/N to (r+1) B/N of every global batch of B sequences, in micro-batches, and
updates its shard of every parameter. What is trained depends neither on N nor on the micro-batches,
but for the order of additions: batches, initial values, losses over the batch, dropout by position
and the norm of the gradient are those of one process and one batch.

Weights are gathered in float32, and autocast rounds them, as on one device.

Zhao et al. 2023 (arXiv:2304.11277); Chen et al. 2016 (arXiv:1604.06174).
Shapes: B global batch, b rows of this process, T tokens; a shard has a part of the first dimension.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from attnlab.device.ranks import Ranks
from attnlab.kernels.compiled import compile_once
from attnlab.kernels.cross_entropy import Answers
from attnlab.mechanism import Handed
from attnlab.model.block import Block
from attnlab.model.feedforward import Division
from attnlab.model.language_model import LanguageModel, Losses
from attnlab.training.config import TrainConfig
from attnlab.training.optimizer import MOMENTS


def apply(model: LanguageModel, config: TrainConfig, ranks: Ranks, *, compiled: bool) -> None:
    """Compile, checkpoint and shard the model, in this order. It ends on the device of `ranks`."""
    for block in model.layers():
        run: Any = compile_once(Block.forward, dynamic=False) if compiled else Block.forward
        if config.activation_checkpointing:
            run = partial(checkpoint, run, use_reentrant=False)
        block.forward = partial(_forward, block, run)
    if ranks.count == 1:
        model.to(ranks.device)
        return
    from torch.distributed.device_mesh import init_device_mesh  # seconds to load
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for block in model.layers():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # embedding and head
    for method in ("features", "losses"):
        register_fsdp_forward_method(model, method)


def _forward(
    block: Block, run: Callable[..., Any], x_BTD: Tensor, taken: Handed
) -> tuple[Tensor, list[Tensor], Handed]:
    return (run if torch.is_grad_enabled() else Block.forward)(block, x_BTD, taken)


class Shards:
    """The shard of every parameter that this process holds, as tensors of their own, by name."""

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.sharded: dict[str, Any] = dict(model.named_parameters())
        self.rows = {name: len(p) for name, p in self.sharded.items()}  # of the whole parameter
        self.own = {
            name: nn.Parameter(p.to_local().detach(), requires_grad=p.requires_grad)
            for name, p in self.sharded.items()
        }

    def require_common_memory(self) -> None:
        """Assert that what the optimizer updates is what the next forward pass gathers."""
        self.model.reshard()  # pyright: ignore
        for name, parameter in self.sharded.items():
            gathered, updated = parameter.to_local(), self.own[name]
            common = gathered.untyped_storage().data_ptr() == updated.untyped_storage().data_ptr()
            assert common, f"FSDP has moved the shards of {name}: this torch is not supported"

    def take_gradients(self) -> None:
        """Move the gradients of the model to the shards."""
        for name, parameter in self.sharded.items():
            gradient, parameter.grad = parameter.grad, None
            self.own[name].grad = None if gradient is None else gradient.to_local()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the shards of all parameters, and the buffers, by name."""
        return {
            name: self.own[name].detach() if name in self.own else tensor
            for name, tensor in self.model.state_dict().items()
        }

    def load(self, whole: Mapping[str, Tensor]) -> None:
        """Set parameters and buffers to the values of a whole model."""
        self.model.reshard()  # pyright: ignore
        state = self.state_dict()
        with torch.no_grad():
            for name, tensor in self.shard(whole).items():
                state[name].copy_(tensor)

    def shard(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's part of whole tensors, or of those of `divided`, by name.

        Tensors of the optimizer may be among them.
        """
        return {name: self._part(name, tensor) for name, tensor in whole.items()}

    def whole(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole tensors on the host, in the process that writes; elsewhere none.

        They need memory for one tensor at a time on the device.
        """
        found = dict[str, Tensor]()
        for name, tensor in own.items():
            rows = self.rows.get(_parameter(name))
            if rows is not None:
                tensor = self.ranks.joined(tensor, rows)
            if self.ranks.writes:
                found[name] = tensor.detach().to("cpu", copy=True)
        return found

    def of_whole(self, name: str, own: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return this process's part of a function of a whole tensor of the parameter's shape."""
        return self._part(name, function(self.ranks.joined(own, self.rows[name])))

    def divided(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the same tensors on the host, which know of what they are shards: DTensors."""
        from torch.distributed.tensor import DTensor, Shard

        found = dict[str, Tensor]()
        for name, tensor in own.items():
            on_host = tensor.detach().cpu()
            rows = self.rows.get(_parameter(name))
            if rows is not None:
                shape = torch.Size([rows, *tensor.shape[1:]])
                stride = torch.empty(shape, device="meta").stride()
                on_host = DTensor.from_local(
                    on_host, self.host_mesh, [Shard(0)], shape=shape, stride=stride
                )
            found[name] = on_host
        return found

    def empty(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a tensor for what `divided` returned in processes of any number, to be filled."""
        from torch.distributed import tensor

        if _parameter(name) not in self.rows:
            return torch.empty(shape, dtype=dtype)
        mesh, shard = self.host_mesh, [tensor.Shard(0)]
        return tensor.empty(shape, dtype=dtype, device_mesh=mesh, placements=shard)

    @cached_property
    def host_mesh(self) -> Any:
        """The processes, for tensors on the host."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh("cpu", (self.ranks.count,))

    def _part(self, name: str, tensor: Tensor) -> Tensor:
        if _parameter(name) not in self.rows:
            return tensor
        to_local: Any = getattr(tensor, "to_local", None)
        if to_local is not None:
            return to_local()
        chunks = tensor.chunk(self.ranks.count)
        own = chunks[self.ranks.rank] if self.ranks.rank < len(chunks) else tensor[:0]
        return own.clone()  # a part alone would keep the whole in memory


def _parameter(name: str) -> str:
    """Return the parameter's name in the name of a tensor of the optimizer's state."""
    moment, _, parameter = name.partition(".")
    return parameter if moment in MOMENTS[1:] else name  # its number of steps has no shards


class DividedStep:
    """Forward and backward passes of a step whose batch is divided, and the clipping after them."""

    def __init__(self, config: TrainConfig, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks, self.batch_size = model, ranks, config.batch_size
        self.rows = ranks.rows(config.batch_size)
        n_rows = self.rows.stop - self.rows.start
        self.part = min(config.micro_batch_size or n_rows, n_rows)  # sequences of a micro-batch
        self.shards = Shards(model, ranks) if ranks.count > 1 else None
        self.draws = model.config.dropout > 0
        # a recorded CUDA graph can neither set random states nor wait for other processes
        self.records = ranks.count == 1 and not self.draws and not config.activation_checkpointing

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what the optimizer of this process updates."""
        return self.model.parameters() if self.shards is None else self.shards.own.values()

    def gradients(
        self, batch_bT1: Tensor, answers: Answers | None, context: Any, clip_norm: float
    ) -> tuple[Losses, Tensor]:
        """Compute the clipped gradients of the global batch; return its losses, and their norm.

        `batch_bT1` are the rows of this process, and `answers` theirs in a task; `context` is the
        autocast of forward passes.
        """
        parts = batch_bT1.split(self.part)
        answers_of = [None] * len(parts) if answers is None else answers.split(self.part)
        layers = [block.feedforward for block in self.model.layers()]
        division = Division(total=self.ranks.total, parts=len(parts))
        unknown = [layer for layer in layers if layer.loss_needs_whole_batch and len(parts) > 1]
        sums = batch_bT1.new_zeros(2, dtype=torch.float32)
        for layer in layers:
            layer.division = division
        for losses_too in ([False] if unknown else []) + [True]:
            for division.part, part_bT1 in enumerate(parts):
                first = self.rows.start + division.part * self.part
                with self._rows_of_batch(first, len(part_bT1), rewind=len(parts) > 1 or unknown):
                    if losses_too:
                        share = len(part_bT1) / len(batch_bT1)
                        of_part = answers_of[division.part]
                        sums = sums + self._part_gradients(part_bT1, of_part, share, context)
                    else:
                        with torch.no_grad(), context:
                            self.model.features(part_bT1[:, :-1])
            for layer in unknown if not losses_too else ():
                layer.end_pass()
        for layer in layers:
            layer.end_step()
            layer.division = None
        means = self.ranks.total(sums) / self.ranks.count
        return Losses(means[0], means[1]), self._clip(clip_norm)

    def _part_gradients(
        self, part_bT1: Tensor, answers: Answers | None, share: float, context: Any
    ) -> Tensor:
        with context:
            losses = self.model.losses(part_bT1, answers=answers)
        ((losses.language_model + losses.auxiliary) * share).backward()
        return torch.stack([losses.language_model, losses.auxiliary]).detach().float() * share

    def _clip(self, clip_norm: float) -> Tensor:
        if self.shards is None:
            return nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        self.shards.take_gradients()
        own = list(self.shards.own.values())
        gradients = [p.grad for p in own if p.grad is not None]
        norm = self.ranks.total(nn.utils.get_total_norm(gradients).square()).sqrt()
        nn.utils.clip_grads_with_norm_(own, clip_norm, norm)
        return norm

    @contextmanager
    def _rows_of_batch(self, first: int, rows: int, *, rewind: object) -> Generator[None]:
        """Draw dropout as for the global batch, of which the rows from `first` on are computed."""
        if not self.draws:
            yield
            return
        cuda = self.ranks.device.type == "cuda"
        with (
            torch.random.fork_rng([self.ranks.device] if cuda else []) if rewind else nullcontext(),
            sdpa_kernel(SDPBackend.MATH),  # fused kernels draw inside, by the shape of the part
            _RowsOfBatch(first, rows, self.batch_size),
        ):
            yield


class _RowsOfBatch(TorchDispatchMode):
    """A context in which random tensors are those of the global batch, cut to some of its rows."""

    def __init__(self, first: int, rows: int, batch_size: int) -> None:
        super().__init__()
        self.first, self.rows, self.batch_size = first, rows, batch_size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        like: Any = args[0] if args else None
        draws = torch.Tag.nondeterministic_seeded in func.tags and isinstance(like, Tensor)
        if not draws or not like.ndim or len(like) % self.rows:
            return func(*args, **kwargs)
        per_row = len(like) // self.rows
        cut = slice(self.first * per_row, (self.first + self.rows) * per_row)
        whole = _taller(like, self.batch_size * per_row)
        if func is torch.ops.aten.native_dropout.default:
            probability = args[1]
            mask = func(whole.fill_(1), probability, True)[1][cut]
            return like * mask / (1 - probability), mask
        if func._schema.name.endswith("_"):
            return like.copy_(func(whole, *args[1:], **kwargs)[cut])
        return func(*args, **kwargs)


def _taller(like: Tensor, rows: int) -> Tensor:
    """Return an empty tensor with more rows than `like`, and its dimensions in the same order."""
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    shape = [rows, *like.shape[1:]]
    whole = like.new_empty([shape[d] for d in order])
    return whole.permute([order.index(d) for d in range(like.ndim)])
