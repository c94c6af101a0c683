"""The gradients of training in bfloat16, against those in float32.

`attnlab check` examines a mechanism on a CPU, in float64. On a GPU a run computes in bfloat16, by
kernels of torch, cuDNN, Triton and flash-linear-attention. A wrong gradient there raises no error:
the model learns, only worse, and would be blamed for it. So a run in bfloat16 computes the
gradients of its first batch twice, as it trains and in float32 by plain kernels. For each matrix W

    error = |g_bfloat16(W) - g_float32(W)| / |g_float32(W)|

Rounding alone changes gradients, and in a model that chooses (experts, positions) a choice that is
nearly tied. How much is measured, too: in float32, with weights rounded to bfloat16. An error is
too large above

    ALLOWED + TIMES x |g_float32(W; rounded weights) - g_float32(W)| / |g_float32(W)|

Vectors, such as gains and biases, are left out: their gradients are sums over all tokens, which may
cancel. What a kernel returns for them reaches the matrices before them. A norm below `LEAST` of the
norm of all gradients counts as that. Dropout is off, as its masks differ between kernels.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab.device.measuring import beside
from attnlab.kernels.compiled import as_written
from attnlab.training.step import TrainingStep, forward_and_backward, has_own_mechanism

ALLOWED, TIMES = 0.25, 3.0
LEAST = 1e-5
Gradients = dict[str, Tensor]


class GradientError(NamedTuple):
    """By how much a gradient differs from that in float32, as a fraction of its norm.

    Of all matrices, it is the one whose error is largest beside what is allowed.
    """

    name: str  # of the parameter
    trained: float  # as the run computes it
    rounded: float  # in float32, with weights rounded to bfloat16

    @property
    def allowed(self) -> float:
        return ALLOWED + TIMES * self.rounded

    @property
    def share(self) -> float:
        """The error as a fraction of what is allowed; infinite if it is not a number."""
        return math.inf if math.isnan(self.trained) else self.trained / self.allowed

    @property
    def is_wrong(self) -> bool:
        return self.share > 1

    def record(self) -> dict[str, Any]:
        """Return the fields of `gradient_error` in summary.json."""
        return {"parameter": self.name, "error": self.trained, "allowed": self.allowed}

    def __str__(self) -> str:
        return (
            f"the gradient of {self.name} in bfloat16 differs from that in float32 by "
            f"{self.trained:.2g} of its norm, of which at most {self.allowed:.2g} is rounding: a "
            "kernel computes wrong gradients on this device. Name another kernel, or set "
            "train.precision=float32"
        )


def gradient_error(step: TrainingStep) -> GradientError | None:
    """Return the error of the gradients of the next batch; None where there is nothing to compare.

    That is in float32, after the last step, with several processes or a batch in parts, and where
    the comparison itself is impossible: a named kernel that has no float32, too little memory,
    gradients in float32 that are zero or not finite. The model, its mode, buffers and gradients are
    as before.
    """
    if not isinstance(step.autocast, torch.autocast) or step.divided is not None:
        return None
    if step.step >= len(step.starts_SB):
        return None
    # where the first steps run, too: autograd accumulates on the stream of a parameter's first use
    stream = beside(step.device) if step.device.type == "cuda" else nullcontext()
    try:
        with stream:
            return _compared(step)
    except Exception:  # what hinders training, too, is reported there
        return None
    finally:
        step.model.zero_grad(set_to_none=True)
        if step.device.type == "cuda":
            torch.cuda.empty_cache()


def _compared(step: TrainingStep) -> GradientError | None:
    model = step.model
    # a mechanism of the user's own may be random in training without dropout
    alike = not model.config.dropout and not has_own_mechanism(model)
    model.at_step(step.step)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    tokens_BT1, answers = step.next_batch()

    def gradients(context: Any, *, compiled: bool) -> Gradients:
        model.zero_grad(set_to_none=True)
        forward_and_backward(model, tokens_BT1, context, answers, compiled=compiled)
        _restore(dict(model.named_buffers()), buffers)
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    training = model.training
    model.train(alike)
    try:
        trained = gradients(step.autocast, compiled=step.compiled and alike)
        with _plain_kernels():
            reference = gradients(nullcontext(), compiled=False)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(weight.bfloat16())
            rounded = gradients(nullcontext(), compiled=False)
    finally:
        _restore(dict(model.named_parameters()), weights)
        _restore(dict(model.named_buffers()), buffers)
        model.train(training)
    norms, total = {name: _norm(g) for name, g in reference.items()}, _norm(*reference.values())
    matrices = [name for name, g in reference.items() if g.ndim > 1]
    if not total or not math.isfinite(total + _norm(*rounded.values())) or not matrices:
        return None

    def error(found: Gradients, name: str) -> float:
        difference = found.get(name, 0.0) - reference[name]
        return _norm(difference) / max(norms[name], LEAST * total)

    errors = (GradientError(it, error(trained, it), error(rounded, it)) for it in matrices)
    return max(errors, key=lambda it: it.share)


@contextmanager
def _plain_kernels() -> Generator[None]:
    """Compute without the compiler, cuDNN and FlashAttention inside."""
    with as_written(), sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def _restore(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def _norm(*tensors: Tensor) -> float:
    """Return the norm of some tensors together. Waits for the device."""
    norms = [torch.linalg.vector_norm(each.double()) for each in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)).item()
