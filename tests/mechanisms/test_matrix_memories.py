"""DeltaNet, GLA, KDA and Mamba-2 against the formulas of their papers; their initial values.

Properties of every mechanism are in test_contract.py.
"""

import pytest
import torch
from torch.nn.functional import conv1d, logsigmoid, pad, silu, softplus

from attnlab.config import ConfigError
from attnlab.kernels import flash_linear_attention as fla
from attnlab.mechanism import state_bytes
from attnlab.mechanisms.delta_net import DeltaNet
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gla import GLA
from attnlab.mechanisms.kda import KDA
from attnlab.mechanisms.mamba2 import Mamba2

D_MODEL, TOKENS = 24, 45
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIGS = {
    "delta_net": DeltaNet(n_heads=3, head_dim=8),
    "delta_net, gated, wide": DeltaNet(n_heads=2, head_dim=4, expand_v=2.0, output_gate=True),
    "delta_net, flips": DeltaNet(n_heads=3, head_dim=8, negative_eigenvalues=True),
    "gla": GLA(n_heads=3, head_dim=4),
    "gla, narrow": GLA(n_heads=2, head_dim=8, expand_v=0.5, gate_rank=3, gate_normalizer=2.0),
    "kda": KDA(n_heads=3, head_dim=8),
    "kda, wide": KDA(n_heads=2, head_dim=5, expand_v=2.0, conv_size=2),
    "kda, flips": KDA(n_heads=3, head_dim=8, negative_eigenvalues=True),
    "mamba2": Mamba2(n_heads=3, head_dim=8, d_state=10),
    "mamba2, one head": Mamba2(n_heads=1, head_dim=5, d_state=3, conv_size=1),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def mixer(config):
    torch.manual_seed(0)
    mixer = config.build(D_MODEL).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():  # so that no bias is 0 and no norm 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


@pytest.fixture
def x_BTD():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, TOKENS, D_MODEL, generator=generator, dtype=torch.float64)


class Layer:
    """Weights of a layer by name, and their products with the tokens of one sequence."""

    def __init__(self, config, mixer, x_TD):
        self.config, self.weights, self.x_TD = config, mixer.state_dict(), x_TD

    def __getattr__(self, name):
        return self.weights[name]

    def project(self, name):
        y = self.x_TD @ self.weights[f"{name}.weight"].T
        return y + self.weights.get(f"{name}.bias", 0.0)

    def project_twice(self, name):
        narrow = self.x_TD @ self.weights[f"{name}.0.weight"].T
        return narrow @ self.weights[f"{name}.1.weight"].T + self.weights.get(f"{name}.1.bias", 0.0)

    def convolved(self):
        streams = [self.project(f"{name}_proj") for name in "qkv"]
        w_CW = self.weights["qkv_conv1d.weight"]
        x_CT = pad(torch.cat(streams, -1).T, (self.config.conv_size - 1, 0))
        y_TC = silu(conv1d(x_CT[None], w_CW[:, None], groups=len(w_CW)))[0].T
        return y_TC.split([stream.shape[1] for stream in streams], -1)


def rms(y, weight):
    return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def of_head(x_TC, h, heads):
    return x_TC.chunk(heads, -1)[h]


def delta_rule(layer, log_decay_TC):
    """Return the normalised reads, by a loop: decay, recall by key, correct, read."""
    heads, width = layer.config.n_heads, layer.config.head_dim
    q_TC, k_TC, v_TC = layer.convolved()
    beta_TH, outputs = torch.sigmoid(layer.project("b_proj")), []
    if layer.config.negative_eigenvalues:
        beta_TH = 2 * beta_TH
    for h in range(heads):
        q, k, v = (
            unit(of_head(q_TC, h, heads)),
            unit(of_head(k_TC, h, heads)),
            of_head(v_TC, h, heads),
        )
        g, memory_KV, rows = of_head(log_decay_TC, h, heads), 0 * k[0][:, None] * v[0], []
        for t in range(len(v)):
            memory_KV = g[t].exp()[:, None] * memory_KV
            memory_KV = memory_KV + beta_TH[t, h] * torch.outer(k[t], v[t] - k[t] @ memory_KV)
            rows.append(width**-0.5 * q[t] @ memory_KV)
        outputs.append(rms(torch.stack(rows), layer.weights["o_norm.weight"]))
    return torch.cat(outputs, -1)


def delta_net(layer):
    y_TC = delta_rule(layer, torch.zeros(TOKENS, layer.config.n_heads, dtype=torch.float64))
    if layer.config.output_gate:
        y_TC = y_TC * silu(layer.project("g_proj"))
    return y_TC @ layer.weights["o_proj.weight"].T


def kda(layer):
    rate_C = layer.A_log.exp().repeat_interleave(layer.config.head_dim)
    g_TC = -rate_C * softplus(layer.project_twice("f_proj") + layer.dt_bias)
    y_TC = delta_rule(layer, g_TC) * torch.sigmoid(layer.project_twice("g_proj"))
    return y_TC @ layer.weights["o_proj.weight"].T


def gla(layer):
    heads, width = layer.config.n_heads, layer.config.head_dim
    q_TC, k_TC, v_TC = (layer.project(f"{name}_proj") for name in "qkv")
    g_TC, outputs = logsigmoid(layer.project_twice("gk_proj")) / layer.config.gate_normalizer, []
    for h in range(heads):
        q, k, v, g = (of_head(x, h, heads) for x in (q_TC, k_TC, v_TC, g_TC))
        memory_KV, rows = 0 * k[0][:, None] * v[0], []
        for t in range(TOKENS):
            memory_KV = g[t].exp()[:, None] * memory_KV + torch.outer(k[t], v[t])
            rows.append(width**-0.5 * q[t] @ memory_KV)
        outputs.append(rms(torch.stack(rows), layer.weights["o_norm.weight"]))
    y_TC = torch.cat(outputs, -1) * silu(layer.project("g_proj"))
    return y_TC @ layer.weights["o_proj.weight"].T


def mamba2(layer):
    heads = layer.config.n_heads
    C_TK, B_TK, x_TC = layer.convolved()
    dt_TH, outputs = softplus(layer.project("dt_proj") + layer.dt_bias), []
    for h in range(heads):
        x, A = of_head(x_TC, h, heads), -layer.A_log[h].exp()
        memory_KV, rows = 0 * B_TK[0][:, None] * x[0], []
        for t in range(TOKENS):
            dt = dt_TH[t, h]
            memory_KV = (A * dt).exp() * memory_KV + torch.outer(B_TK[t], dt * x[t])
            rows.append(C_TK[t] @ memory_KV + layer.D[h] * x[t])
        outputs.append(torch.stack(rows))
    y_TC = torch.cat(outputs, -1) * silu(layer.project("g_proj"))
    return rms(y_TC, layer.weights["norm.weight"]) @ layer.weights["o_proj.weight"].T


WRITTEN_OUT = {"delta_net": delta_net, "gla": gla, "kda": kda, "mamba2": mamba2}


@torch.no_grad()
def test_it_is_the_layer_that_the_paper_describes(config, mixer, x_BTD):
    written_out = WRITTEN_OUT[config.kind()]
    expected = torch.stack([written_out(Layer(config, mixer, x_TD)) for x_TD in x_BTD])
    torch.testing.assert_close(mixer(x_BTD), expected)


@torch.no_grad()
def test_recurrent_and_chunked_are_the_same_layer(mixer, x_BTD):
    kind = type(mixer.config)
    reference = kind.from_dict({**mixer.config.to_dict(), "kernel": "recurrent"}).build(D_MODEL)
    reference.double().load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x_BTD), reference(x_BTD))


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 2, 44])
def test_a_prompt_leaves_the_state_that_stepping_would(mixer, x_BTD, prompt):
    _, prefilled = mixer.prefill(x_BTD[:, :prompt], TOKENS)
    stepped = mixer.init_state(2, TOKENS)
    for x_BD in x_BTD[:, :prompt].unbind(1):
        _, stepped = mixer.step(x_BD, stepped)
    for part, expected in zip(prefilled, stepped, strict=True):
        torch.testing.assert_close(part, expected)


@torch.no_grad()
def test_in_bfloat16_the_memory_stays_float32_and_the_cost_says_so(config, x_BTD):
    mixer = config.build(D_MODEL).bfloat16()
    x_BTD = x_BTD[:1].bfloat16()
    y_BD, stepped = mixer.step(x_BTD[:, 0], mixer.init_state(1, 9))
    y_BTD, prefilled = mixer.prefill(x_BTD, TOKENS)
    assert (y_BD.dtype, y_BTD.dtype) == (torch.bfloat16, torch.bfloat16)
    for state in (mixer.init_state(1, 9), stepped, prefilled):
        assert state.memory_BHKV.dtype == torch.float32
        assert state_bytes(state) == config.cost(D_MODEL, 9, itemsize=2).state_bytes


def test_an_input_of_zeros_has_finite_gradients(config):
    mixer, x_BTD = config.build(D_MODEL), torch.zeros(1, 40, D_MODEL, requires_grad=True)
    mixer(x_BTD).sum().backward()
    assert x_BTD.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


@pytest.mark.parametrize(
    ("config", "number"),
    [(KDA(n_heads=2000, head_dim=1), 2000), (Mamba2(n_heads=2000, head_dim=1), 2000)],
    ids=["kda", "mamba2"],
)
def test_decay_rates_begin_where_mamba2_begins_them(config, number):
    mixer, generator = config.build(4), torch.Generator().manual_seed(0)
    A = mixer.initial_value("A_log", generator).exp()
    dt = softplus(mixer.initial_value("dt_bias", generator))
    assert len(A) == len(dt) == number
    assert 1 <= A.min() < 1.1
    assert 15.9 < A.max() <= 16.001
    assert 0.001 <= dt.min() < 0.0011
    assert 0.09 < dt.max() <= 0.1001


def test_initial_values_are_seeded_and_matrices_are_left_to_the_model(mixer):
    own = {"A_log", "dt_bias", "D", "qkv_conv1d.weight"}
    for name, parameter in mixer.named_parameters():
        first = mixer.initial_value(name, torch.Generator().manual_seed(5))
        again = mixer.initial_value(name, torch.Generator().manual_seed(5))
        if name in own:
            assert first.shape == parameter.shape
            assert torch.equal(first, again)
        else:
            assert first is None


def test_what_runs_is_named_and_a_kernel_that_cannot_run_says_why(config, x_BTD):
    kind, settings = type(config), config.to_dict()
    assert config.build(D_MODEL).kernel_on(CPU, torch.float32) == "chunked"
    named = kind.from_dict({**settings, "kernel": "fla"}).build(D_MODEL).double()
    with pytest.raises(ValueError, match=r"'fla' cannot run here.*CUDA"):
        named.kernel_on(CPU, torch.float32)
    with pytest.raises(ValueError, match=r"'fla' cannot run here.*CUDA"):
        named(x_BTD)


def test_on_cuda_each_asks_for_the_function_it_runs(config, monkeypatch):
    asked = []
    monkeypatch.setattr(fla, "unusable_because", lambda device, function: asked.append(function))
    assert config.build(D_MODEL).kernel_on(CUDA, torch.bfloat16) == "fla"
    expected = {
        "delta_net": "chunk_delta_rule",
        "gla": "chunk_gla",
        "kda": "chunk_kda",
        "mamba2": "chunk_simple_gla",
    }
    assert asked == [expected[config.kind()]]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DeltaNet, {"n_heads": 0, "head_dim": 0, "conv_size": 0, "expand_v": -1.0}),
        (GLA, {"n_heads": 0, "expand_v": 0.0, "gate_rank": 0, "gate_normalizer": 0.0}),
        (KDA, {"n_heads": 0, "head_dim": 0, "conv_size": 0, "expand_v": -1.0}),
        (Mamba2, {"n_heads": 0, "head_dim": 0, "d_state": 0, "conv_size": 0}),
    ],
)
def test_impossible_settings_are_reported_all_at_once(kind, settings):
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert {problem.path for problem in caught.value.problems} == settings.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet, GLA, KDA, Mamba2])
def test_with_fla_the_layer_is_the_layer_with_its_chunks(kind):
    """Under autocast to bfloat16, within 2 % of the output's norm and 5 % of each gradient's."""
    torch.manual_seed(0)
    ours = kind(n_heads=4, head_dim=32, kernel="chunked").build(64).to(CUDA)
    theirs = kind(n_heads=4, head_dim=32, kernel="auto").build(64).to(CUDA)
    if theirs.kernel_on(CUDA, torch.bfloat16) != "fla":
        pytest.skip("flash-linear-attention does not run here")
    theirs.load_state_dict(ours.state_dict())
    x_BTD = torch.randn(2, 200, 64, device=CUDA)

    def results(mixer):
        with torch.autocast("cuda", torch.bfloat16):
            y_BTD = mixer(x_BTD)
        named = dict(mixer.named_parameters())
        gradients = torch.autograd.grad(y_BTD.float().square().mean(), named.values())
        return {"y": y_BTD.float(), **dict(zip(named, gradients, strict=True))}

    expected = results(ours)
    for name, value in results(theirs).items():
        error = ((value - expected[name]).norm() / expected[name].norm()).item()
        assert error < (0.02 if name == "y" else 0.05), f"{name}: {error:.1e}"
