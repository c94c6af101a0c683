"""Comparison of the forms of a recurrence with its definition.

Arguments are q, k and v, then tensors that stay in float32 whatever the dtype of q, k and v.
"""

import torch

CUDA = torch.device("cuda")


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
