"""Comparison of a mechanism with an independent implementation, the reference; and of kernels.

Weights are drawn in the reference and copied by `to_ours`, which only renames, permutes and splits
them. Gradients are copied by the same function, so a wrong mapping of a weight also shows in its
gradient. The comparison covers the output, the gradients of a random linear function of it by the
input and by every weight, and the outputs of decoding.

An error is relative to the largest entry of its tensor, or to 1 where all entries are smaller:
weights are drawn so that entries are about 1 or larger. In float32 the references run unchanged,
and the tolerance is for rounding. They also convert float64 inputs to float32 for angles, norms,
softmax and recurrences; `computing_in` makes that float64, so that a difference that is left is one
of mathematics.

Shapes: B batch, T tokens, D model width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab.mechanism import Mechanism, MechanismConfig
from attnlab.modules import rotary

Weights = dict[str, Tensor]

DTYPES = [torch.float64, torch.float32]
CUDA = torch.device("cuda")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5}


class _WideTorch:
    """The module torch, in which float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def computing_in(dtype: torch.dtype, reference: ModuleType) -> Iterator[None]:
    """For float64, make the code of this module compute in float64 in place of float32."""
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(reference, "torch", _WideTorch())
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


def tokens(batch: int, number: int, d_model: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(batch, number, d_model, generator=generator, dtype=torch.float64).to(dtype)


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Draw matrices that preserve the size of vectors, and vectors near 1 of distinct entries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            inputs = weight[0].numel()
            weight.copy_(noise * inputs**-0.5 if weight.ndim > 1 else 1 + 0.2 * noise)


def drawn(config: MechanismConfig, d_model: int = 32) -> Mechanism:
    """Return a mechanism in float64 whose parameters are all drawn, biases and norms, too."""
    torch.manual_seed(0)
    mechanism = config.build(d_model).double().eval()
    for parameter in mechanism.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.5)
    return mechanism


Definition = Callable[[Any, Tensor], Tensor]


def assert_is_definition(mechanism: Mechanism, definition: Definition, x_BTD: Tensor) -> None:
    """Assert that outputs, and the gradients of their squares, are those of a definition by hand.

    Args:
        mechanism: the mechanism.
        definition: returns `y_BTD` of the mechanism, whose parameters it reads, and `x_BTD`.
        x_BTD: the input.
    """
    x_BTD = x_BTD.detach().requires_grad_()
    inputs = [x_BTD, *mechanism.parameters()]
    got, expected = mechanism(x_BTD), definition(mechanism, x_BTD)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )


def assert_agree(
    ours: Mechanism,
    theirs: nn.Module,
    run: Callable[[Tensor], Tensor],
    to_ours: Callable[[Weights], Weights],
    x_BTD: Tensor,
) -> None:
    """Assert agreement. `run` is the reference's forward pass, `theirs` has its weights."""
    ours.to(x_BTD.dtype).eval()
    weights = dict(theirs.named_parameters())
    ours.load_state_dict(to_ours(weights))

    y_theirs, dx_theirs, *grads = _with_gradients(run, x_BTD, theirs)
    y_ours, dx_ours, *grads_ours = _with_gradients(ours, x_BTD, ours)
    expected = to_ours(dict(zip(weights, grads, strict=True)))

    assert_close(y_ours, y_theirs, "the output")
    assert_close(dx_ours, dx_theirs, "the gradient by the input")
    for (name, _), grad in zip(ours.named_parameters(), grads_ours, strict=True):
        assert_close(grad, expected[name], f"the gradient by {name}")
    for prompt in sorted({0, x_BTD.shape[1] // 2}):
        assert_close(decoded(ours, x_BTD, prompt), y_theirs, f"decoding after {prompt} tokens")


@torch.no_grad()
def decoded(mechanism: Mechanism, x_BTD: Tensor, prompt: int) -> Tensor:
    """Return `y_BTD`, of the first `prompt` tokens at once and of the others step by step."""
    capacity = x_BTD.shape[1]
    if prompt:
        y_BTD, state = mechanism.prefill(x_BTD[:, :prompt], capacity)
        outputs = list(y_BTD.unbind(1))
    else:
        state, outputs = mechanism.init_state(len(x_BTD), capacity), []
    for x_BD in x_BTD[:, prompt:].unbind(1):
        y_BD, state = mechanism.step(x_BD, state)
        outputs.append(y_BD)
    return torch.stack(outputs, 1)


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """Assert that no error exceeds the dtype's tolerance times the largest entry."""
    atol = TOLERANCE[expected.dtype] * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=atol, msg=lambda text: f"{what}: {text}"
    )


def _with_gradients(
    run: Callable[[Tensor], Tensor], x_BTD: Tensor, module: nn.Module
) -> list[Tensor]:
    """Return the output, then gradients by the input and the weights, zeros where unused."""
    x_BTD = x_BTD.detach().requires_grad_()
    y_BTD = run(x_BTD)
    generator = torch.Generator().manual_seed(1)
    direction_BTD = torch.randn(y_BTD.shape, generator=generator, dtype=torch.float64).to(y_BTD)
    gradients = torch.autograd.grad(
        (y_BTD * direction_BTD).sum(),
        [x_BTD, *module.parameters()],
        allow_unused=True,
        materialize_grads=True,
    )
    return [y_BTD.detach(), *gradients]


def rotate(x_TK: Tensor, theta: float, start: int = 0) -> Tensor:
    """Apply RoPE in one call."""
    tokens, width = x_TK.shape[-2:]
    return rotary.rotate(x_TK, rotary.rotation(rotary.Rope(theta, width), start, tokens, like=x_TK))


# Forms of a recurrence and its definition: arguments are q, k and v, then tensors that stay in
# float32 whatever the dtype of q, k and v


def assert_same(actual, expected, **tolerance):
    for name, value in expected.items():
        torch.testing.assert_close(
            actual[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def relative_errors(actual, expected):
    return {
        name: ((actual[name].double() - value).norm() / value.norm()).item()
        for name, value in expected.items()
    }


def on_cuda(arguments, dtype):
    """Return q, k, v in `dtype` and the rest in float32, and the same numbers in float64."""
    kinds = [dtype] * 3 + [torch.float32] * (len(arguments) - 3)
    low = [
        x.detach().to(CUDA, kind).requires_grad_() for x, kind in zip(arguments, kinds, strict=True)
    ]
    return low, [x.detach().double().requires_grad_() for x in low]


def assert_recordable(run, arguments):
    """Assert that a replayed CUDA graph gives the right gradients after the inputs changed."""

    def gradients():
        y, _ = run(*arguments)
        return torch.autograd.grad(y.square().sum(), arguments)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = gradients()
    with torch.no_grad():
        arguments[2].mul_(2)
    graph.replay()
    for actual, expected in zip(recorded, gradients(), strict=True):
        torch.testing.assert_close(actual, expected)
