"""AdamW with two parameter groups, and the learning rate of every step.

Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

import math
from collections.abc import Sequence
from inspect import unwrap

import torch
from torch import Tensor, nn


class _AdamW(torch.optim.AdamW):
    """torch's AdamW, which is called outside of compiled functions alone.

    torch wraps these methods for calls inside of one. The wrappers import its compiler, which takes
    a second in every process that trains.
    """

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


def adamw(
    model: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    device: torch.device,
) -> torch.optim.AdamW:
    """Return AdamW in which matrices decay, and norms, biases and other vectors do not.

    The learning rate is a tensor on the device, 0 at first. On CUDA the optimizer is fused and
    capturable, so that a step can be recorded as a CUDA graph.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    cuda = device.type == "cuda"
    return _AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=torch.zeros((), device=device),
        betas=betas,
        eps=eps,
        fused=cuda or None,
        foreach=None if cuda else False,
        capturable=cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    """Write `rate` into the optimizer's own tensors, in place."""
    for group in optimizer.param_groups:
        group["lr"].copy_(rate)


def learning_rates(
    steps: int, *, peak: float, warmup_steps: int, final_ratio: float
) -> Sequence[float]:
    """Return the learning rate of every step: linear warm-up, then cosine decay.

    The first rate is above zero, the last one is `final_ratio` times the peak.

    >>> [round(rate, 3) for rate in learning_rates(6, peak=1.0, warmup_steps=2, final_ratio=0.1)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    """
    rates = list[float]()
    for step in range(steps):
        progress = (step + 1 - warmup_steps) / max(1, steps - warmup_steps)
        cosine = (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
        warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        rates.append(peak * warm * (final_ratio + (1 - final_ratio) * cosine))
    return rates
