"""Gated DeltaNet against the formulas of its paper; its costs and initial values."""

import math

import pytest
import torch
from torch.nn.functional import conv1d, pad, silu, softplus
from torch.utils.flop_counter import FlopCounterMode

from attnlab.config import ConfigError
from attnlab.kernels import gated_delta_rule as rule
from attnlab.mechanism import state_bytes
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet

D_MODEL, TOKENS = 24, 45
VARIANTS = [
    GatedDeltaNet(n_heads=3, head_dim=8),
    GatedDeltaNet(n_heads=2, head_dim=8, expand_v=2.0, output_gate=False),
    GatedDeltaNet(n_heads=1, head_dim=5, expand_v=0.6, conv_size=1),
    GatedDeltaNet(n_heads=3, head_dim=8, negative_eigenvalues=True),
]


@pytest.fixture(params=VARIANTS, ids=["narrow", "wide values", "no convolution", "flips"])
def config(request):
    return request.param


@pytest.fixture
def mixer(config):
    torch.manual_seed(0)
    return config.build(D_MODEL).double().eval()


@pytest.fixture
def x_BTD():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, TOKENS, D_MODEL, generator=generator, dtype=torch.float64)


def written_out(config, weights, x_TD):
    """Return y of one sequence by a loop over heads and tokens. Linear weights are (out, in)."""

    K, V = config.head_dim, config.value_dim
    channels = [config.n_heads * width for width in (K, K, V)]
    convolutions = weights["qkv_conv1d.weight"][:, None].split(channels)

    def stream(name, w_C1W):
        x_CT = pad((x_TD @ weights[f"{name}_proj.weight"].T).T, (config.conv_size - 1, 0))
        return silu(conv1d(x_CT[None], w_C1W, groups=len(w_C1W)))[0].T

    q_TC, k_TC, v_TC = (stream(name, w) for name, w in zip("qkv", convolutions, strict=True))
    heads = []
    for h in range(config.n_heads):
        memory_KV, rows = torch.zeros(K, V, dtype=x_TD.dtype), []
        for t in range(len(x_TD)):
            q, k = (c[t, h * K : (h + 1) * K] for c in (q_TC, k_TC))
            q, k = q / (q @ q + 1e-6).sqrt(), k / (k @ k + 1e-6).sqrt()
            v = v_TC[t, h * V : (h + 1) * V]
            beta = torch.sigmoid(weights["b_proj.weight"][h] @ x_TD[t])
            beta = 2 * beta if config.negative_eigenvalues else beta
            rate = softplus(weights["a_proj.weight"][h] @ x_TD[t] + weights["dt_bias"][h])
            memory_KV = (-weights["A_log"][h].exp() * rate).exp() * memory_KV
            memory_KV = memory_KV + beta * torch.outer(k, v - k @ memory_KV)
            y = (q * K**-0.5) @ memory_KV
            y = y / (y.square().mean() + 1e-5).sqrt() * weights["o_norm.weight"]
            rows.append(y)
        heads.append(torch.stack(rows))
    y_TC = torch.cat(heads, -1)
    if config.output_gate:
        y_TC = y_TC * silu(x_TD @ weights["g_proj.weight"].T)
    return y_TC @ weights["o_proj.weight"].T


@torch.no_grad()
def test_it_is_the_layer_that_the_paper_describes(config, mixer, x_BTD):
    torch.nn.init.normal_(mixer.o_norm.weight)
    expected = torch.stack([written_out(config, mixer.state_dict(), x) for x in x_BTD])
    torch.testing.assert_close(mixer(x_BTD), expected)


@torch.no_grad()
def test_recurrent_and_chunked_are_the_same_layer(mixer, x_BTD):
    other = GatedDeltaNet.from_dict({**mixer.config.to_dict(), "kernel": "recurrent"})
    reference = other.build(D_MODEL).double()
    reference.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x_BTD), reference(x_BTD))


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 3, 44])
def test_a_prompt_leaves_the_state_that_stepping_would(mixer, x_BTD, prompt):
    _, prefilled = mixer.prefill(x_BTD[:, :prompt], TOKENS)
    stepped = mixer.init_state(2, TOKENS)
    for x_BD in x_BTD[:, :prompt].unbind(1):
        _, stepped = mixer.step(x_BD, stepped)
    for part, expected in zip(prefilled, stepped, strict=True):
        torch.testing.assert_close(part, expected)


@torch.no_grad()
def test_the_stated_cost_is_the_cost(config, mixer, x_BTD):
    stated, state = config.cost(D_MODEL, 9, itemsize=8), mixer.init_state(1, 9)
    with FlopCounterMode(display=False) as counter:
        _, state = mixer.step(x_BTD[:1, 0], state)
    assert stated.params == sum(p.numel() for p in mixer.parameters())
    assert stated.flops == counter.get_total_flops()
    assert stated.state_bytes == state_bytes(state)


@torch.no_grad()
def test_in_bfloat16_the_memory_stays_float32_and_the_cost_says_so(config, x_BTD):
    mixer = config.build(D_MODEL).bfloat16()
    x_BTD = x_BTD[:1].bfloat16()
    y_BD, stepped = mixer.step(x_BTD[:, 0], mixer.init_state(1, 9))
    _, prefilled = mixer.prefill(x_BTD, TOKENS)
    assert y_BD.dtype == torch.bfloat16
    for state in (mixer.init_state(1, 9), stepped, prefilled):
        assert state.memory_BHKV.dtype == torch.float32
        assert state_bytes(state) == config.cost(D_MODEL, 9, itemsize=2).state_bytes


def test_the_state_is_as_large_for_one_token_as_for_a_million(mixer):
    assert state_bytes(mixer.init_state(1, 1)) == state_bytes(mixer.init_state(1, 1_000_000))


def test_gates_are_float32_under_autocast(config, x_BTD, monkeypatch):
    seen = []

    def spy(q, k, v, g, beta, kernel):
        seen.extend([g.dtype, beta.dtype])
        return rule.chunked(q, k, v, g, beta)

    monkeypatch.setattr(rule, "gated_delta_rule", spy)
    with torch.autocast("cpu", torch.bfloat16):
        config.build(D_MODEL)(x_BTD.float())
    assert seen == [torch.float32, torch.float32]


def test_an_input_of_zeros_has_finite_gradients(config):
    mixer, x_BTD = config.build(D_MODEL), torch.zeros(1, 40, D_MODEL, requires_grad=True)
    mixer(x_BTD).sum().backward()
    assert x_BTD.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_decay_rates_begin_where_the_paper_begins_them():
    mixer = GatedDeltaNet(n_heads=2000, head_dim=1).build(8)
    generator = torch.Generator().manual_seed(0)
    rule_values = {n: mixer.initial_value(n, generator) for n in ("A_log", "dt_bias")}
    for A_log, dt_bias in ((mixer.A_log, mixer.dt_bias), rule_values.values()):
        A, dt = A_log.detach().exp(), softplus(dt_bias.detach())
        assert 0 < A.min() < 0.1
        assert 15.9 < A.max() <= 16
        assert A.mean().item() == pytest.approx(8, rel=0.05)
        assert 0.001 <= dt.min() < 0.0011
        assert 0.09 < dt.max() <= 0.1001
        assert dt.log().mean().item() == pytest.approx(math.log(0.01), rel=0.05)


def test_initial_values_are_seeded_and_matrices_are_left_to_the_model(mixer):
    own = {"A_log", "dt_bias", "qkv_conv1d.weight"}
    for name, parameter in mixer.named_parameters():
        first = mixer.initial_value(name, torch.Generator().manual_seed(5))
        again = mixer.initial_value(name, torch.Generator().manual_seed(5))
        if name in own:
            assert first.shape == parameter.shape
            assert torch.equal(first, again)
        else:
            assert first is None


def test_what_runs_is_named_and_a_kernel_that_cannot_run_says_why(x_BTD):
    cpu = torch.device("cpu")
    assert GatedDeltaNet().build(D_MODEL).kernel_on(cpu, torch.float32) == "chunked"
    assert (
        GatedDeltaNet(kernel="recurrent").build(D_MODEL).kernel_on(cpu, torch.float32)
        == "recurrent"
    )
    with pytest.raises(ValueError, match="CUDA"):
        GatedDeltaNet(kernel="fla").build(D_MODEL).kernel_on(cpu, torch.float32)
    with pytest.raises(ValueError, match="CUDA"):
        GatedDeltaNet(kernel="fla").build(D_MODEL).double()(x_BTD)


def test_impossible_settings_are_reported_all_at_once():
    with pytest.raises(ConfigError) as caught:
        GatedDeltaNet(n_heads=0, head_dim=0, conv_size=0, expand_v=-1.0)
    assert {p.path for p in caught.value.problems} == {
        "n_heads",
        "head_dim",
        "conv_size",
        "expand_v",
    }
    for fraction in (0.3, 0.001):
        with pytest.raises(ConfigError, match="expand_v: makes a value head of"):
            GatedDeltaNet(head_dim=32, expand_v=fraction)
