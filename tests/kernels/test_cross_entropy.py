"""The fused loss equals its definition, in value and both gradients."""

import pytest
import torch

from attnlab.kernels.cross_entropy import definition, linear_cross_entropy


@pytest.mark.parametrize(("tokens", "chunk"), [(1, 8), (7, 3), (24, 8), (24, 100)])
def test_it_equals_the_definition_in_chunks_of_any_size(tokens, chunk):
    generator = torch.Generator().manual_seed(tokens)
    x_ND = torch.randn(tokens, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    w_VD = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target_N = torch.randint(11, (tokens,), generator=generator)

    loss = linear_cross_entropy(x_ND, w_VD, target_N, chunk)
    (3 * loss).backward()
    gradients = x_ND.grad, w_VD.grad
    x_ND.grad = w_VD.grad = None
    expected = torch.nn.functional.cross_entropy(x_ND @ w_VD.mT, target_N)
    (3 * expected).backward()

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients[0], x_ND.grad)
    torch.testing.assert_close(gradients[1], w_VD.grad)


def test_under_autocast_products_are_bfloat16_and_the_loss_float32():
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(64, 32, generator=generator, requires_grad=True)
    w_VD = torch.randn(100, 32, generator=generator, requires_grad=True)
    target_N = torch.randint(100, (64,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x_ND, w_VD, target_N, 16)
        expected = definition(x_ND, w_VD, target_N)
    loss.backward()
    assert loss.dtype == w_VD.grad.dtype == x_ND.grad.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-3)
