"""AdamW with two parameter groups: matrices decay, vectors do not.

Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

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
