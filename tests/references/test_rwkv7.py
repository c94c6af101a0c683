"""RWKV-7's time mixing equals loops over tokens; the rule's chunks equal fla-core's definition.

The loop follows the paper's letters: its memory is V x K, with the transition on the right, one
head and one token at a time, and the previous token is read from the sequence.

Shapes: T tokens, D model width, C channels, K head width.
"""

import importlib.metadata
import importlib.util
import math
from pathlib import Path

import pytest
import torch
from support.agreement import assert_close, assert_is_definition, decoded, drawn, tokens
from torch.nn.functional import normalize

from attnlab.config import ConfigError
from attnlab.kernels import generalized_delta_rule as rule
from attnlab.mechanisms.rwkv7 import RWKV7
from attnlab.model.language_model import ModelConfig

D = 24
VARIANTS = [
    RWKV7(n_heads=2, head_dim=4, decay_rank=3, learning_rate_rank=2, gate_rank=5),
    RWKV7(n_heads=1, head_dim=5, kernel="recurrent"),
    RWKV7(n_heads=3, head_dim=8, gate_rank=1),
]


def written_out(mechanism, x_TD):
    config, weights = mechanism.config, dict(mechanism.named_parameters())
    size = config.head_dim

    def product(name, x):
        return weights[f"{name}.weight"] @ x

    states = [torch.zeros(size, size, dtype=x_TD.dtype) for _ in range(config.n_heads)]
    rows = []
    for t, x in enumerate(x_TD):
        before = x_TD[t - 1] if t else torch.zeros_like(x)
        mixed = {i: torch.lerp(x, before, weights[f"shift.{i}"]) for i in "rwkvag"}
        r, k, v = (product(f"{i}_proj", mixed[i]) for i in "rkv")
        d = product("w_proj.2", torch.tanh(product("w_proj.0", mixed["w"])))
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(d + weights["w_proj.2.bias"]))
        inner = product("a_proj.2", product("a_proj.0", mixed["a"]))
        a = torch.sigmoid(inner + weights["a_proj.2.bias"])
        gate = product("g_proj.2", torch.sigmoid(product("g_proj.0", mixed["g"])))
        kappa = k * weights["xi"]
        replaced = k * torch.lerp(torch.ones_like(a), a, weights["alpha"])
        outputs = []
        for h in range(config.n_heads):
            part = slice(h * size, (h + 1) * size)
            u = kappa[part] / (kappa[part] @ kappa[part] + 1e-6).sqrt()
            transition = torch.diag(w[part]) - torch.outer(u, a[part] * u)
            states[h] = states[h] @ transition + torch.outer(v[part], replaced[part])
            y = states[h] @ r[part]
            y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5 * size).sqrt()
            y = y * weights["o_norm.weight"][part] + weights["o_norm.bias"][part]
            outputs.append(y + (r[part] @ (weights["rho"][part] * replaced[part])) * v[part])
        rows.append(product("o_proj", torch.cat(outputs) * gate))
    return torch.stack(rows)


def definition(mechanism, x_BTD):
    return torch.stack([written_out(mechanism, x_TD) for x_TD in x_BTD])


@pytest.mark.parametrize("config", VARIANTS, ids=lambda config: f"{config.n_heads} heads")
@pytest.mark.parametrize("number", [2, 37])
def test_it_is_the_layer_of_the_paper_with_gradients_and_in_decoding(config, number):
    mechanism, x_BTD = drawn(config, D), tokens(1, number, D, torch.float64)
    assert_is_definition(mechanism, definition, x_BTD)
    for prompt in (0, 1, number // 2):
        expected = definition(mechanism, x_BTD).detach()
        assert_close(decoded(mechanism, x_BTD, prompt), expected, f"after {prompt} tokens")


def inputs(number, heads=2, key=6, value=5, dtype=torch.float64, decay=1.0):
    generator = torch.Generator().manual_seed(number)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, c = (normal(2, number, heads, key) for _ in range(3))
    v, g, c = normal(2, number, heads, value), -decay * torch.rand_like(q), normalize(c, dim=-1)
    made = q, k, v, g, c * normal(2, number, heads, key).sigmoid(), c
    return [x.to(dtype).requires_grad_() for x in made]


def results(run, arguments):
    outputs = run(*arguments)
    slopes = torch.autograd.grad(sum(y.square().sum() for y in outputs), arguments)
    return [*outputs, *slopes]


@pytest.mark.parametrize("chunk", [None, 1, 8, 64])
@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("number", [1, 33, 70])
def test_chunks_compute_the_definition_and_its_gradients(number, decay, chunk):
    arguments = inputs(number, decay=decay)
    found = results(lambda *x: rule.chunked(*x, chunk=chunk), arguments)
    for actual, expected in zip(found, results(rule.recurrent, arguments), strict=True):
        assert_close(actual, expected, f"chunks of {chunk}")


@pytest.mark.parametrize("learning_rate", [0.0, 1.0])
def test_one_direction_for_all_tokens_loses_no_precision_in_float32(learning_rate):
    exact = [x.detach() for x in inputs(200, key=32, value=32, decay=1e-4)]
    exact[5] = exact[5][:, :1].expand_as(exact[5]).clone()
    exact[4] = learning_rate * exact[5]
    exact = [x.requires_grad_() for x in exact]
    rounded = [x.detach().float().requires_grad_() for x in exact]
    expected = results(rule.recurrent, exact)
    for actual, value in zip(results(rule.chunked, rounded), expected, strict=True):
        assert (actual - value).norm() <= 2e-5 * value.norm()


@pytest.mark.parametrize("run", [rule.recurrent, rule.chunked])
def test_the_rule_is_that_of_fla_core(run):
    package = importlib.metadata.distribution("fla-core")
    path = Path(str(package.locate_file("fla/ops/generalized_delta_rule/dplr/naive.py")))
    spec = importlib.util.spec_from_file_location("naive_dplr", path)
    naive = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(naive)
    q, k, v, g, b, c = (x.detach().float().transpose(1, 2) for x in inputs(45, key=8, value=8))
    scaled = q * q.shape[-1] ** 0.5  # its queries are scaled
    expected, _ = naive.dplr_recurrence(scaled, k, v, c, -b, g)
    actual, _ = run(*(x.transpose(1, 2) for x in (q, k, v, g, b, c)))
    torch.testing.assert_close(actual.transpose(1, 2), expected, rtol=1e-4, atol=1e-4)


def test_vectors_begin_where_the_published_first_layer_begins_them():
    config = RWKV7(n_heads=2, head_dim=16)
    model = ModelConfig(mechanisms=(config,), n_layers=1, d_model=D).build(11)
    weights = dict(model.blocks[0].mix.named_parameters())
    assert weights["shift.w"][0] == 1
    assert weights["shift.g"][-1].item() == pytest.approx(1 - (23 / 24) ** 0.2, rel=1e-4)
    assert weights["w_proj.2.bias"][[0, -1]].tolist() == pytest.approx([-8.0, 3.0])
    assert weights["a_proj.2.bias"][[0, -1]].tolist() == pytest.approx([-0.69, 0.31])
    assert weights["xi"][[0, -1]].tolist() == pytest.approx([0.76, 0.66])
    assert weights["r_proj.weight"].std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("name", ["n_heads", "head_dim", "decay_rank", "gate_rank"])
def test_impossible_settings_are_named(name):
    with pytest.raises(ConfigError, match=f"{name}: must be at least 1, got 0"):
        RWKV7(**{name: 0})
