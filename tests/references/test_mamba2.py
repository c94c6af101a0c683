"""Mamba-2 equals transformers' Mamba2Mixer, on its path without fused kernels.

The mathematics is the same: dt = softplus(. + dt_bias) without limits, A = -exp(A_log), no scale of
C, the skip by D, the norm over all channels after the gate. The layout differs:

- `in_proj` holds the rows of z (attnlab's `g_proj`), x, B, C and dt; attnlab has five projections.
- The channels of `conv1d` are those of x, B, C in this order; attnlab's are C, B, x. Its weight has
  a middle dimension of 1, and by default it has a bias, which the test disables.
- The reference may have several B and C (`n_groups`); attnlab has one for all heads.
- The reference's width is fixed: `num_heads * head_dim = expand * hidden_size`.
"""

import sys

import pytest
import torch
from support.agreement import DTYPES, Weights, assert_agree, computing_in, randomize, tokens
from torch import Tensor

from attnlab.mechanisms.mamba2 import Mamba2

with pytest.MonkeyPatch.context() as patch:
    # if these are installed, transformers imports them and runs their kernels
    for package in ("mamba_ssm", "causal_conv1d"):
        patch.setitem(sys.modules, package, None)
    from transformers.models.mamba2 import modeling_mamba2 as modeling
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config

D = 24


def split(weights: Weights, ours: Mamba2) -> Weights:
    inner, state = ours.n_heads * ours.head_dim, ours.d_state
    z, x, B, C, dt = weights["in_proj.weight"].split([inner, inner, state, state, ours.n_heads])
    channels = weights["conv1d.weight"].squeeze(1)
    x_CW, B_CW, C_CW = channels.split([inner, state, state])
    projections = {"q": C, "k": B, "v": x, "g": z, "dt": dt, "o": weights["out_proj.weight"]}
    return {
        **{f"{name}_proj.weight": weight for name, weight in projections.items()},
        **{name: weights[name] for name in ("A_log", "dt_bias", "D", "norm.weight")},
        "qkv_conv1d.weight": torch.cat([C_CW, B_CW, x_CW]),
    }


def assert_same(x_BTD: Tensor, **settings) -> None:
    ours = Mamba2(**settings)
    config = Mamba2Config(
        hidden_size=D,
        num_hidden_layers=1,
        num_heads=ours.n_heads,
        head_dim=ours.head_dim,
        expand=ours.n_heads * ours.head_dim // D,
        state_size=ours.d_state,
        conv_kernel=ours.conv_size,
        n_groups=1,
        use_conv_bias=False,
        chunk_size=16,
    )
    with computing_in(x_BTD.dtype, modeling):
        theirs = modeling.Mamba2Mixer(config, layer_idx=0).to(x_BTD.dtype)
        randomize(theirs)
        with torch.no_grad():  # from heads that hardly decay to heads that decay within a token
            theirs.A_log.copy_(torch.linspace(-6, 0, ours.n_heads))
        assert_agree(
            ours.build(D),
            theirs,
            run=theirs,
            to_ours=lambda weights: split(weights, ours),
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 3), (2, 45), (1, 70)])
def test_it_is_transformers(batch, number, dtype):
    assert_same(tokens(batch, number, D, dtype), n_heads=6, head_dim=8, d_state=10)


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize("conv_size", [2, 5])
def test_it_is_transformers_with_every_kernel_and_convolution(conv_size, kernel):
    x_BTD = tokens(2, 40, D, torch.float64)
    assert_same(x_BTD, n_heads=3, head_dim=8, d_state=7, conv_size=conv_size, kernel=kernel)
