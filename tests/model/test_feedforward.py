"""The dense feed-forward layers are what their formulas say, and cost what they state."""

import pytest
import torch
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode

from attnlab.config import ConfigError
from attnlab.model.feedforward import Dense, FeedForward, SwiGLU

D_MODEL, D_FF = 16, 24


def filled(config: FeedForward):
    layer, generator = config.build(D_MODEL).double(), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    return layer


def test_the_formulas():
    x_ND = torch.randn(5, D_MODEL, dtype=torch.float64)
    dense, gated = filled(Dense(d_ff=D_FF)), filled(SwiGLU(d_ff=D_FF))
    expected = silu(x_ND @ dense.up_proj.weight.mT) @ dense.down_proj.weight.mT
    torch.testing.assert_close(dense(x_ND), expected)
    hidden_NF = silu(x_ND @ gated.gate_proj.weight.mT) * (x_ND @ gated.up_proj.weight.mT)
    torch.testing.assert_close(gated(x_ND), hidden_NF @ gated.down_proj.weight.mT)


@pytest.mark.parametrize("kind", sorted(FeedForward.kinds))
def test_cost_is_what_a_token_costs(kind):
    config = FeedForward.kinds[kind](d_ff=D_FF)
    layer, stated = config.build(D_MODEL), config.cost(D_MODEL)
    assert stated.params == sum(p.numel() for p in layer.parameters())
    assert stated.state_bytes == 0
    if kind != "mixture_of_experts":  # its own tests count what the counter does not know
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, D_MODEL))
        assert stated.flops == counter.get_total_flops()
        assert config.active_params(D_MODEL) == stated.params


@pytest.mark.parametrize("kind", sorted(FeedForward.kinds))
def test_a_width_of_nothing_is_refused(kind):
    with pytest.raises(ConfigError, match="d_ff: must be at least 1, got 0"):
        FeedForward.kinds[kind](d_ff=0)


@pytest.mark.parametrize("kind", sorted(FeedForward.kinds))
def test_dropout_applies_to_the_hidden_layer_in_training_alone(kind):
    layer = FeedForward.kinds[kind](d_ff=D_FF).build(D_MODEL, dropout=0.5)
    for parameter in layer.parameters():
        parameter.data.fill_(0.1)
    x_ND = torch.ones(4, D_MODEL)
    assert torch.equal(layer.eval()(x_ND), layer(x_ND))
    assert not torch.equal(layer.train()(x_ND), layer(x_ND))
