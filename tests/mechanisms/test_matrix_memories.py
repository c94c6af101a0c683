"""DeltaNet, Gated DeltaNet and DeltaProduct, GLA, KDA and Mamba-2 against their papers' formulas.

Their initial values are tested, too.

Properties of every mechanism are in test_contract.py.
"""

import math

import pytest
import torch
from torch.nn.functional import conv1d, logsigmoid, pad, silu, softplus

from attnlab.config import ConfigError
from attnlab.kernels import flash_linear_attention as fla
from attnlab.kernels import gated_delta_rule as rule
from attnlab.mechanism import state_bytes
from attnlab.mechanisms.delta_net import DeltaNet
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gated_delta_product import GatedDeltaProduct
from attnlab.mechanisms.gla import GLA
from attnlab.mechanisms.kda import KDA
from attnlab.mechanisms.mamba2 import Mamba2

D_MODEL, TOKENS = 24, 45
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIGS = {
    "delta_net": DeltaNet(n_heads=3, head_dim=8),
    "delta_net, gated, wide": DeltaNet(n_heads=2, head_dim=4, expand_v=2.0, output_gate=True),
    "delta_net, flips": DeltaNet(n_heads=3, head_dim=8, negative_eigenvalues=True),
    "gated": GatedDeltaNet(n_heads=3, head_dim=8),
    "gated, wide values": GatedDeltaNet(n_heads=2, head_dim=8, expand_v=2.0, output_gate=False),
    "gated, no convolution": GatedDeltaNet(n_heads=1, head_dim=5, expand_v=0.6, conv_size=1),
    "gated, flips": GatedDeltaNet(n_heads=3, head_dim=8, negative_eigenvalues=True),
    "product": GatedDeltaProduct(n_heads=3, head_dim=8),
    "product of three": GatedDeltaProduct(n_heads=2, head_dim=4, n_householder=3, expand_v=1.5),
    "product, positive": GatedDeltaProduct(
        n_heads=3, head_dim=5, negative_eigenvalues=False, output_gate=False
    ),
    "product, ungated": GatedDeltaProduct(n_heads=2, head_dim=8, forget_gate=False),
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


def gated_delta_product(layer):
    """Return the layer by the transition of each token: a product of Householder-like matrices."""
    config, outputs = layer.config, []
    heads, width, writes = config.n_heads, config.head_dim, config.n_householder
    q_TC, k_TC, v_TC = layer.convolved()
    beta_TC = torch.sigmoid(layer.project("b_proj")) * (1 + config.negative_eigenvalues)
    gate_TH = torch.ones(TOKENS, heads, dtype=torch.float64)
    if config.forget_gate:
        dt_TH = softplus(layer.project("a_proj") + layer.dt_bias)
        gate_TH = (-layer.A_log.exp() * dt_TH).exp()
    for h in range(heads):
        memory_KV, rows = torch.zeros(width, config.value_dim, dtype=torch.float64), []
        for t in range(TOKENS):
            transition_KK, written_KV = gate_TH[t, h] * torch.eye(width).double(), 0 * memory_KV
            for j in range(writes):
                place = j * heads + h
                k_K = unit(of_head(k_TC, place, writes * heads)[t])
                v_V, beta = of_head(v_TC, place, writes * heads)[t], beta_TC[t, place]
                house_KK = torch.eye(width).double() - beta * torch.outer(k_K, k_K)
                transition_KK = house_KK @ transition_KK
                written_KV = house_KK @ written_KV + beta * torch.outer(k_K, v_V)
            memory_KV = transition_KK @ memory_KV + written_KV
            rows.append(width**-0.5 * unit(of_head(q_TC, h, heads)[t]) @ memory_KV)
        outputs.append(rms(torch.stack(rows), layer.weights["o_norm.weight"]))
    y_TC = torch.cat(outputs, -1)
    if config.output_gate:
        y_TC = y_TC * silu(layer.project("g_proj"))
    return y_TC @ layer.weights["o_proj.weight"].T


def gated_delta_net(layer):
    g_TC = -layer.A_log.exp() * softplus(layer.project("a_proj") + layer.dt_bias)
    y_TC = delta_rule(layer, g_TC)
    if layer.config.output_gate:
        y_TC = y_TC * silu(layer.project("g_proj"))
    return y_TC @ layer.weights["o_proj.weight"].T


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


ALL = delta_net, gated_delta_net, gated_delta_product, gla, kda, mamba2
WRITTEN_OUT = {each.__name__: each for each in ALL}


@torch.no_grad()
def test_it_is_the_layer_that_the_paper_describes(config, mixer, x_BTD):
    written_out = WRITTEN_OUT[config.kind()]
    expected = torch.stack([written_out(Layer(config, mixer, x_TD)) for x_TD in x_BTD])
    torch.testing.assert_close(mixer(x_BTD), expected)


@torch.no_grad()
def test_a_product_of_one_is_a_gated_delta_net(x_BTD):
    settings = {"n_heads": 3, "head_dim": 8, "negative_eigenvalues": True}
    one = GatedDeltaProduct(n_householder=1, **settings)
    other = GatedDeltaNet(**settings)
    for context in (1, 40):
        assert one.cost(D_MODEL, context) == other.cost(D_MODEL, context)
        assert one.forward_flops(D_MODEL, context) == other.forward_flops(D_MODEL, context)
    first, second = one.build(D_MODEL).double(), other.build(D_MODEL).double()
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(first(x_BTD), second(x_BTD))


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


def test_the_state_is_as_large_for_one_token_as_for_a_million(mixer):
    assert state_bytes(mixer.init_state(1, 1)) == state_bytes(mixer.init_state(1, 1_000_000))


@pytest.mark.parametrize("kind", [GatedDeltaNet, GatedDeltaProduct, KDA])
def test_gates_are_float32_under_autocast(kind, x_BTD, monkeypatch):
    seen = []

    def spy(q, k, v, g, beta, kernel):
        seen.extend([g.dtype, beta.dtype])
        return rule.chunked(q, k, v, g, beta)

    monkeypatch.setattr(rule, "gated_delta_rule", spy)
    with torch.autocast("cpu", torch.bfloat16):
        kind().build(D_MODEL)(x_BTD.float())
    assert seen == [torch.float32, torch.float32]


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


@pytest.mark.parametrize("kind", [GatedDeltaNet, GatedDeltaProduct])
def test_decay_rates_begin_where_the_paper_begins_them(kind):
    mixer = kind(n_heads=2000, head_dim=1).build(8)
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
    definition = kind.from_dict({**settings, "kernel": "recurrent"}).build(D_MODEL)
    assert definition.kernel_on(CPU, torch.float32) == "recurrent"
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
        "gated_delta_net": "chunk_gated_delta_rule",
        "gated_delta_product": "chunk_gated_delta_rule",
        "gla": "chunk_gla",
        "kda": "chunk_kda",
        "mamba2": "chunk_simple_gla",
    }
    gated = getattr(config, "forget_gate", True)
    assert asked == [expected[config.kind()] if gated else "chunk_delta_rule"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (GatedDeltaNet, {"n_heads": 0, "head_dim": 0, "conv_size": 0, "expand_v": -1.0}),
        (DeltaNet, {"n_heads": 0, "head_dim": 0, "conv_size": 0, "expand_v": -1.0}),
        (GatedDeltaProduct, {"n_heads": 0, "conv_size": 0, "n_householder": 0}),
        (GLA, {"n_heads": 0, "expand_v": 0.0, "gate_rank": 0, "gate_normalizer": 0.0}),
        (KDA, {"n_heads": 0, "head_dim": 0, "conv_size": 0, "expand_v": -1.0}),
        (Mamba2, {"n_heads": 0, "head_dim": 0, "d_state": 0, "conv_size": 0}),
    ],
)
def test_impossible_settings_are_reported_all_at_once(kind, settings):
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert {problem.path for problem in caught.value.problems} == settings.keys()


@pytest.mark.parametrize("fraction", [0.3, 0.001])
def test_a_value_head_of_no_whole_width_is_refused(fraction):
    with pytest.raises(ConfigError, match="expand_v: makes a value head of"):
        GatedDeltaNet(head_dim=32, expand_v=fraction)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet, GatedDeltaProduct, GLA, KDA, Mamba2])
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
