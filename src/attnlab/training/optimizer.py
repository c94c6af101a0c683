"""AdamW for all parameters, or Muon for the hidden matrices and AdamW for the others.

AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) as in torch. Muon makes every update of a matrix
nearly orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon):

    m = mu m + (1 - mu) g                u = mu m + (1 - mu) g               Nesterov's momentum
    X = u / |u|,  k times  X = a X + (b A + c A A) X,  A = X X^T             Newton-Schulz
    w = w - rate (decay w + 0.2 sqrt(max(rows, columns)) X)

with a, b, c = 3.4445, -4.7750, 2.0315, after which all singular values of X are near 1. The factor
gives updates the usual size of AdamW's, so that one learning rate and one weight decay serve both
(Liu et al. 2025, arXiv:2502.16982).

torch.optim.Muon reads the rate on the host in every step, which a CUDA graph excludes, and knows
neither stacks of matrices nor shards; on one matrix it gives the same update.
"""

import math
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from inspect import unwrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnlab.config import Choice, Problem
from attnlab.mechanism import MechanismConfig, without_memory
from attnlab.model.feedforward import FeedForward, FeedForwardLayer
from attnlab.model.language_model import LanguageModel, ModelConfig

if TYPE_CHECKING:
    from attnlab.training.config import TrainConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of Newton-Schulz
RMS_OF_ADAMW = 0.2  # usual root mean square of AdamW's update, relative to the rate
MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")  # of a parameter that ever had a gradient


@dataclass(frozen=True, kw_only=True)
class Optimizer(Choice, ABC):
    """The settings of an optimizer beside rate, weight decay, betas and eps."""


@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """AdamW for all parameters."""

    @classmethod
    def name(cls) -> str:
        return "adamw"


@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for the matrices of the blocks; AdamW for embedding, head, vectors and convolutions."""

    momentum: float = 0.95  # decay rate of the mean of gradients
    ns_steps: int = 5  # Newton-Schulz iterations per update

    def problems(self) -> Iterator[Problem]:
        if not 0 <= self.momentum < 1:
            yield Problem("momentum", f"must be in [0, 1), got {self.momentum:g}")
        if not 1 <= self.ns_steps <= 20:
            yield Problem("ns_steps", f"must be at least 1, and at most 20; got {self.ns_steps}")


_torch_step: Any = unwrap(torch.optim.AdamW.step)


class _AdamW(torch.optim.AdamW):
    """torch's AdamW, which is called outside of compiled functions alone.

    torch wraps these methods for calls inside of one. The wrappers import its compiler, which takes
    a second in every process that trains.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002  torch's signature
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                # the fused kernel of a CPU reads both in the order in which they lie in memory
                if gradient is not None and gradient.stride() != parameter.stride():
                    parameter.grad = torch.empty_like(parameter).copy_(gradient)
        _torch_step(self)


class _MuonAndAdamW(_AdamW):
    """Both optimizers: groups with `momentum` are Muon's."""

    orthogonalise: Callable[[Tensor, Tensor], Tensor]  # of a parameter and its update

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002  torch's signature
        every = self.param_groups
        self.param_groups = [group for group in every if "momentum" not in group]
        _AdamW.step(self)
        self.param_groups = every
        for group in every:
            for parameter in group["params"] if "momentum" in group else ():
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        gradient, rate, momentum = parameter.grad, group["lr"], group["momentum"]
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        mean = state["momentum"].lerp_(gradient, 1 - momentum)
        update = self.orthogonalise(parameter, gradient.lerp(mean, momentum))
        parameter.mul_(1 - rate * group["weight_decay"]).sub_(rate * update)


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    device: torch.device,
) -> torch.optim.AdamW:
    """Return AdamW in which matrices decay, and norms, biases and other vectors do not.

    The learning rate is a tensor on the device, 0 at first. The optimizer is fused where all
    parameters are real, and on CUDA capturable, so that a step can be recorded as a CUDA graph.
    """
    trained = [p for p in parameters if p.requires_grad]
    return _AdamW(_by_decay(trained, weight_decay), **_options(trained, betas, eps, device))


def optimizer_of(
    config: "TrainConfig",
    model: LanguageModel,
    parameters: Mapping[str, nn.Parameter],
    device: torch.device,
    *,
    of_whole: Callable[[str, Tensor, Callable[[Tensor], Tensor]], Tensor] | None = None,
) -> torch.optim.Optimizer:
    """Return the optimizer of a run.

    Args:
        config: the settings of training.
        model: the model.
        parameters: what is updated, by name: the model's own, or shards of them.
        device: that of the parameters.
        of_whole: `Shards.of_whole`, by which a shard gets its part of a function of the whole;
            None: the parameters are whole.
    """
    settings = config.optimizer
    matrices = hidden_matrices(model) if isinstance(settings, Muon) else set[str]()
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    options = _options(trained.values(), config.betas, config.eps, device)
    others = [p for name, p in trained.items() if name not in matrices]
    groups = _by_decay(others, config.weight_decay)
    if not isinstance(settings, Muon):
        return _AdamW(groups, **options)
    orthogonal = partial(
        orthogonal_step,
        iterations=settings.ns_steps,
        dtype=getattr(torch, config.precision_on(device.type)),
    )
    names = {id(parameter): name for name, parameter in trained.items()}

    def orthogonalise(parameter: Tensor, update: Tensor) -> Tensor:
        if of_whole is None or update.ndim == 3:  # the shard of a stack has whole matrices
            return orthogonal(update)
        return of_whole(names[id(parameter)], update, orthogonal)

    hidden = [p for name, p in trained.items() if name in matrices]
    decay = config.weight_decay
    groups += [{"params": hidden, "weight_decay": decay, "momentum": settings.momentum}]
    made = _MuonAndAdamW(groups, **options)
    made.orthogonalise = orthogonalise
    return made


def hidden_matrices(model: LanguageModel) -> set[str]:
    """Return the names of the matrices in the blocks: linear layers, and stacks of experts."""
    found = {id(parameter) for parameter in _matrices(model.blocks)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def _matrices(layers: nn.Module) -> Iterator[nn.Parameter]:
    for module in layers.modules():
        for parameter in module.parameters(recurse=False):
            linear = isinstance(module, nn.Linear) and parameter.ndim == 2
            if linear or (isinstance(module, FeedForwardLayer) and parameter.ndim == 3):
                yield parameter


def update_flops(settings: Optimizer | None, model: ModelConfig) -> int:
    """Return the FLOPs of the matrix products of one update: those of Newton-Schulz, or none.

    An iteration on a matrix of m x n, m <= n, is m (2 m n + m^2) multiply-adds.
    """
    if not isinstance(settings, Muon):
        return 0
    layers = (*model.per_layer(), *[model.feedforward] * model.n_layers)
    return settings.ns_steps * sum(_iteration_flops(layer, model.d_model) for layer in layers)


@cache
def _iteration_flops(layer: MechanismConfig | FeedForward, d_model: int) -> int:
    module, total = without_memory(lambda: layer.build(d_model, 0.0)), 0
    for matrix in {id(each): each for each in _matrices(module)}.values():
        (m, n), stacked = sorted(matrix.shape[-2:]), math.prod(matrix.shape[:-2])
        total += stacked * 2 * m * (2 * m * n + m * m)
    return total


def orthogonal_step(update: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Return the nearly orthogonal matrix of an update, of the usual size of AdamW's updates.

    Args:
        update: a matrix, or a stack of matrices.
        iterations: those of Newton-Schulz.
        dtype: precision of their matrix products.
    """
    a, b, c = COEFFICIENTS
    rows, columns = update.shape[-2:]
    x = update if rows <= columns else update.mT
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x if rows <= columns else x.mT
    return x.to(update.dtype) * (RMS_OF_ADAMW * math.sqrt(max(rows, columns)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    """Write `rate` into the optimizer's own tensors, in place."""
    for group in optimizer.param_groups:
        group["lr"].copy_(rate)


def _by_decay(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _options(
    parameters: Iterable[nn.Parameter],
    betas: tuple[float, float],
    eps: float,
    device: torch.device,
) -> dict[str, Any]:
    """Return torch's options. Its fused kernels know no complex numbers."""
    cuda = device.type == "cuda"
    fused = cuda or (device.type == "cpu" and all(p.is_floating_point() for p in parameters))
    return {
        "lr": torch.zeros((), device=device),
        "betas": betas,
        "eps": eps,
        "fused": fused or None,
        "foreach": None if fused else False,
        "capturable": cuda,
    }
