"""Gated DeltaNet equals Qwen3-Next's in transformers, on its path without fused kernels.

The mathematics is the same: q and k divided by sqrt(|.|^2 + 1e-6) after the convolution, queries
scaled by K^-0.5, g = -exp(A_log) softplus(a + dt_bias), beta = sigmoid(b), the norm before the
gate. The layout differs:

- `in_proj_qkvz` holds, head by head, the rows of q, k, v and of the output gate z (attnlab's
  `g_proj`); `in_proj_ba` holds b and a, head by head. attnlab has six projections.
- `conv1d` has a middle dimension of 1; its channels are in the same order, q of all heads first.
- Its `rms_norm_eps` is 1e-6 by default, attnlab's is 1e-5 as in flash-linear-attention's layer; the
  test sets it.
- Qwen3-Next has several value heads per key head, attnlab one.
"""

import sys

import pytest
import torch
from support.agreement import DTYPES, Weights, assert_agree, computing_in, randomize, tokens
from torch import Tensor

from attnlab.mechanisms.gated_delta_net import GatedDeltaNet

with pytest.MonkeyPatch.context() as patch:
    # if these are installed, transformers imports them and runs their kernels
    for package in ("fla", "causal_conv1d"):
        patch.setitem(sys.modules, package, None)
    from transformers.models.qwen3_next import modeling_qwen3_next as modeling
    from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

D = 40


def split(weights: Weights, ours: GatedDeltaNet) -> Weights:
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


def assert_same(x_BTD: Tensor, **settings) -> None:
    ours = GatedDeltaNet(**settings)
    config = Qwen3NextConfig(
        hidden_size=D,
        linear_num_key_heads=ours.n_heads,
        linear_num_value_heads=ours.n_heads,
        linear_key_head_dim=ours.head_dim,
        linear_value_head_dim=ours.value_dim,
        linear_conv_kernel_dim=ours.conv_size,
        rms_norm_eps=1e-5,
    )
    with computing_in(x_BTD.dtype, modeling):
        theirs = modeling.Qwen3NextGatedDeltaNet(config, layer_idx=0).to(x_BTD.dtype)
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
@pytest.mark.parametrize(("batch", "number"), [(1, 1), (3, 3), (2, 75), (1, 129)])
@pytest.mark.parametrize("expand_v", [1.0, 2.0, 0.5])
def test_it_is_qwens(expand_v, batch, number, dtype):
    assert_same(tokens(batch, number, D, dtype), n_heads=3, head_dim=8, expand_v=expand_v)


@pytest.mark.parametrize("kernel", ["recurrent", "chunked"])
@pytest.mark.parametrize("conv_size", [1, 2, 5])
def test_it_is_qwens_with_every_kernel_and_convolution(conv_size, kernel):
    x_BTD = tokens(2, 70, D, torch.float64)
    assert_same(x_BTD, n_heads=4, head_dim=6, conv_size=conv_size, kernel=kernel)
