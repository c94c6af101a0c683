"""Every kernel of the grouped product equals the definition, for groups of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.kernels.grouped_matmul import definition, grouped_matmul, resolve

CPU = torch.device("cpu")


def arguments(sizes, dtype=torch.float32, device="cpu", width=8, hidden=12):
    generator = torch.Generator().manual_seed(0)
    x_MD = torch.randn(sum(sizes), width, generator=generator)
    weight_GFD = torch.randn(len(sizes), hidden, width, generator=generator)
    ends_G = torch.tensor(sizes).cumsum(0).int().to(device)
    x_MD, weight_GFD = (x.to(device, dtype).requires_grad_() for x in (x_MD, weight_GFD))
    return x_MD, weight_GFD, ends_G


def value_and_gradients(form, x_MD, weight_GFD, *rest):
    y_MF = form(x_MD, weight_GFD, *rest)
    slope_MF = torch.linspace(-1, 1, y_MF.numel(), device=y_MF.device).view_as(y_MF).to(y_MF.dtype)
    return y_MF, *torch.autograd.grad(y_MF, (x_MD, weight_GFD), slope_MF)


def test_the_definition_is_a_product_of_each_row_with_its_groups_matrix():
    x_MD, weight_GFD, ends_G = arguments([2, 0, 3])
    expected = torch.cat([x_MD[:2] @ weight_GFD[0].mT, x_MD[2:] @ weight_GFD[2].mT])
    torch.testing.assert_close(definition(x_MD, weight_GFD, ends_G), expected)


@pytest.mark.parametrize(("kernel", "dtype"), [("grouped", "float32"), ("blocked", "float64")])
@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
def test_a_kernel_gives_the_defined_products_and_gradients(kernel, dtype, sizes):
    case = arguments(sizes, getattr(torch, dtype))
    found = value_and_gradients(grouped_matmul, *case, kernel)
    for ours, theirs in zip(found, value_and_gradients(definition, *case), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_blocks_pad_by_no_more_than_half():
    for sizes in ([512] * 8, [4096] + [0] * 7, [4089] + [1] * 7):
        x_MD, weight_GFD, ends_G = arguments(sizes)
        products = []
        with torch.profiler.profile(record_shapes=True) as profiled:
            grouped_matmul(x_MD, weight_GFD, ends_G, "blocked")
        for event in profiled.events():
            if event.name == "aten::bmm":
                products.append(event.input_shapes[0])
        ((blocks, rows, _),) = products
        assert blocks * rows <= 1.5 * len(x_MD)
        assert blocks <= 3 * len(sizes)


def test_auto_is_torchs_grouped_product_where_it_runs():
    assert resolve("auto", CPU, torch.float32, 8, 12) == "grouped"
    assert resolve("auto", CPU, torch.float64, 8, 12) == "blocked"
    assert resolve("auto", CPU, torch.bfloat16, 8, 12) == "blocked"  # a row is 24 bytes
    assert resolve("plain", CPU, torch.float64, 8) == "plain"


def test_a_kernel_that_cannot_run_says_why():
    with pytest.raises(
        ValueError, match=r"does not support torch\.float64.*'blocked' runs anywhere"
    ):
        resolve("grouped", CPU, torch.float64, 8)
    with pytest.raises(ValueError, match="multiples of 16 bytes, and their widths are 8 and 9"):
        resolve("grouped", CPU, torch.float32, 8, 9)


SIZES = [3000, 0, 17, 1, 1078]


@pytest.mark.gpu
def test_on_cuda_the_grouped_product_is_the_defined_one():
    case = arguments(SIZES, torch.bfloat16, "cuda", width=64, hidden=128)
    assert resolve("auto", torch.device("cuda"), torch.bfloat16, 64, 128) == "grouped"
    found = value_and_gradients(grouped_matmul, *case, "auto")
    exact = [x.detach().double().requires_grad_() for x in case[:2]]
    expected = value_and_gradients(definition, *exact, case[2])
    for ours, theirs in zip(found, expected, strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-2 * scale)
    assert found[2][1].eq(0).all()  # no row, no gradient


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["grouped", "blocked"])
def test_a_recorded_product_follows_the_groups(kernel):
    x_MD, weight_GFD, ends_G = arguments(SIZES, torch.bfloat16, "cuda", width=64, hidden=128)
    x_MD, weight_GFD = x_MD.detach(), weight_GFD.detach()
    grouped_matmul(x_MD, weight_GFD, ends_G, kernel)  # imports what it needs
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y_MF = grouped_matmul(x_MD, weight_GFD, ends_G, kernel)
    for sizes in ([4096, 0, 0, 0, 0], [0, 96, 1000, 1500, 1500]):
        ends_G.copy_(torch.tensor(sizes).cumsum(0))
        graph.replay()
        expected = definition(x_MD.float(), weight_GFD.float(), ends_G)
        torch.testing.assert_close(y_MF.float(), expected, rtol=2e-2, atol=2e-1)
