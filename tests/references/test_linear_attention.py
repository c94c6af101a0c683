"""Mamba-2 and Gated DeltaNet equal transformers', on its paths without fused kernels.

Mamba-2: dt = softplus(. + dt_bias) without limits, A = -exp(A_log), no scale of C, the skip by D,
the norm over all channels after the gate, in both. The layout differs:

- `in_proj` holds the rows of z (attnlab's `g_proj`), x, B, C and dt; attnlab has five projections.
- The channels of `conv1d` are those of x, B, C in this order; attnlab's are C, B, x. Its weight has
  a middle dimension of 1, and by default it has a bias, which the test disables.
- The reference may have several B and C (`n_groups`); attnlab has one for all heads.
- The reference's width is fixed: `num_heads * head_dim = expand * hidden_size`.

Gated DeltaNet (Qwen3-Next's): q and k divided by sqrt(|.|^2 + 1e-6) after the convolution, queries
scaled by K^-0.5, g = -exp(A_log) softplus(a + dt_bias), beta = sigmoid(b), the norm before the
gate, in both. The layout differs:

- `in_proj_qkvz` holds, head by head, the rows of q, k, v and of the output gate z (attnlab's
  `g_proj`); `in_proj_ba` holds b and a, head by head. attnlab has six projections.
- `conv1d` has a middle dimension of 1; its channels are in the same order, q of all heads first.
- Its `rms_norm_eps` is 1e-6 by default, attnlab's is 1e-5 as in flash-linear-attention's layer; the
  test sets it.
- Qwen3-Next has several value heads per key head, attnlab one."""

import sys

import pytest
import torch
from support.agreement import DTYPES, Weights, assert_agree, computing_in, randomize, tokens
from torch import Tensor

from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.mamba2 import Mamba2

with pytest.MonkeyPatch.context() as patch:
    # if these are installed, transformers imports them and runs their kernels
    for package in ("mamba_ssm", "causal_conv1d", "fla"):
        patch.setitem(sys.modules, package, None)
    from transformers.models.mamba2 import modeling_mamba2 as modeling_of_mamba2
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling_of_delta_net
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

D = 24


def weights_of_mamba2(weights: Weights, ours: Mamba2) -> Weights:
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


def assert_mamba2_same(x_BTD: Tensor, **settings) -> None:
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
    with computing_in(x_BTD.dtype, modeling_of_mamba2):
        theirs = modeling_of_mamba2.Mamba2Mixer(config, layer_idx=0).to(x_BTD.dtype)
        randomize(theirs)
        with torch.no_grad():  # from heads that hardly decay to heads that decay within a token
            theirs.A_log.copy_(torch.linspace(-6, 0, ours.n_heads))
        assert_agree(
            ours.build(D),
            theirs,
            run=theirs,
            to_ours=lambda weights: weights_of_mamba2(weights, ours),
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 3), (2, 45), (1, 70)])
def test_it_is_transformers(batch, number, dtype):
    assert_mamba2_same(tokens(batch, number, D, dtype), n_heads=6, head_dim=8, d_state=10)


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize("conv_size", [2, 5])
def test_it_is_transformers_with_every_kernel_and_convolution(conv_size, kernel):
    x_BTD = tokens(2, 40, D, torch.float64)
    assert_mamba2_same(x_BTD, n_heads=3, head_dim=8, d_state=7, conv_size=conv_size, kernel=kernel)


WIDTH = 40


def weights_of_delta_net(weights: Weights, ours: GatedDeltaNet) -> Weights:
    keys, values = ours.head_dim, ours.value_dim
    qkvz_HMD = weights["in_proj_qkvz.weight"].unflatten(0, (ours.n_heads, -1))
    q, k, v, z = (x_HMD.flatten(0, 1) for x_HMD in qkvz_HMD.split([keys, keys, values, values], 1))
    b, a = weights["in_proj_ba.weight"].unflatten(0, (ours.n_heads, 2)).unbind(1)
    projections = {"q": q, "k": k, "v": v, "g": z, "b": b, "a": a, "o": weights["out_proj.weight"]}
    return {
        **{f"{name}_proj.weight": weight for name, weight in projections.items()},
        "A_log": weights["A_log"],
        "dt_bias": weights["dt_bias"],
        "qkv_conv1d.weight": weights["conv1d.weight"].squeeze(1),
        "o_norm.weight": weights["norm.weight"],
    }


def assert_delta_net_same(x_BTD: Tensor, **settings) -> None:
    ours = GatedDeltaNet(**settings)
    config = Qwen3NextConfig(
        hidden_size=WIDTH,
        linear_num_key_heads=ours.n_heads,
        linear_num_value_heads=ours.n_heads,
        linear_key_head_dim=ours.head_dim,
        linear_value_head_dim=ours.value_dim,
        linear_conv_kernel_dim=ours.conv_size,
        rms_norm_eps=1e-5,
    )
    with computing_in(x_BTD.dtype, modeling_of_delta_net):
        theirs = modeling_of_delta_net.Qwen3NextGatedDeltaNet(config, layer_idx=0).to(x_BTD.dtype)
        randomize(theirs)
        with torch.no_grad():  # from heads that hardly decay to heads that decay within a token
            theirs.A_log.copy_(torch.linspace(-6, 0, ours.n_heads))
        assert_agree(
            ours.build(WIDTH),
            theirs,
            run=theirs,
            to_ours=lambda weights: weights_of_delta_net(weights, ours),
            x_BTD=x_BTD,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 3), (2, 75), (1, 129)])
@pytest.mark.parametrize("expand_v", [1.0, 2.0, 0.5])
def test_it_is_qwens(expand_v, batch, number, dtype):
    assert_delta_net_same(
        tokens(batch, number, WIDTH, dtype), n_heads=3, head_dim=8, expand_v=expand_v
    )


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize("conv_size", [1, 2, 5])
def test_it_is_qwens_with_every_kernel_and_convolution(conv_size, kernel):
    x_BTD = tokens(2, 70, WIDTH, torch.float64)
    assert_delta_net_same(x_BTD, n_heads=4, head_dim=6, conv_size=conv_size, kernel=kernel)
