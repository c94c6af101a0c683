"""The short convolution equals conv1d, at once and token by token."""

import pytest
import torch
from torch.nn.functional import conv1d, silu

from attnlab.modules.short_convolution import ShortConvolution

CHANNELS = 6


@pytest.fixture(params=[1, 2, 4])
def convolution(request):
    torch.manual_seed(0)
    return ShortConvolution(CHANNELS, request.param)


@pytest.fixture
def x_BTC():
    return torch.randn(2, 11, CHANNELS, generator=torch.Generator().manual_seed(1))


def test_it_is_the_causal_depthwise_conv1d_with_silu(convolution, x_BTC):
    width = convolution.width
    padded_BCS = torch.nn.functional.pad(x_BTC.mT, (width - 1, 0))
    expected = silu(conv1d(padded_BCS, convolution.weight[:, None], groups=CHANNELS)).mT
    torch.testing.assert_close(convolution(x_BTC), expected)


@torch.no_grad()
def test_token_by_token_equals_all_at_once(convolution, x_BTC):
    past_BPC, outputs = convolution.init_state(2), []
    for x_BC in x_BTC.unbind(1):
        y_BC, past_BPC = convolution.step(x_BC, past_BPC)
        outputs.append(y_BC)
    # not torch.equal: a CPU's vector lanes and its remainder differ in silu's last bit
    torch.testing.assert_close(torch.stack(outputs, 1), convolution(x_BTC), rtol=1e-6, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 4, 10])
def test_a_prompt_of_any_length_hands_on_its_last_inputs(convolution, x_BTC, prompt):
    y_BTC, past_BPC = convolution.prefill(x_BTC[:, :prompt])
    assert past_BPC.shape == convolution.init_state(2).shape
    next_BC, _ = convolution.step(x_BTC[:, prompt], past_BPC)
    expected = convolution(x_BTC)[:, : prompt + 1]
    actual = torch.cat([y_BTC, next_BC[:, None]], 1)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_the_state_does_not_change_with_the_prompt_it_came_from(convolution, x_BTC):
    _, past_BPC = convolution.prefill(x_BTC)
    before = past_BPC.clone()
    x_BTC.zero_()
    assert torch.equal(past_BPC, before)


def test_the_sum_is_float32_inside_bfloat16(convolution, x_BTC):
    convolution.bfloat16()
    x_BTC = x_BTC.bfloat16()
    exact = ShortConvolution(CHANNELS, convolution.width)
    exact.load_state_dict(convolution.state_dict())
    assert convolution(x_BTC).dtype == torch.bfloat16
    assert torch.equal(convolution(x_BTC), exact(x_BTC.float()).bfloat16())


def test_initial_weights_are_uniform_and_seeded():
    first = ShortConvolution.initial_weight(1000, 4, torch.Generator().manual_seed(3))
    again = ShortConvolution.initial_weight(1000, 4, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert 0.49 < first.abs().max() <= 0.5
    assert first.std().item() == pytest.approx(3**-0.5 / 2, rel=0.05)
