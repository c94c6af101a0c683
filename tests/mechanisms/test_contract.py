"""How every mechanism is written, and what layers hand to later ones.

A new file of mechanisms/ is tested automatically. What it computes is judged by its check, in
`tests/checks`. Handed are keys and values: values, gradients, decode states, and refusals.
"""

from dataclasses import replace

import pytest
import torch
from support import tiny_study
from torch.nn.functional import silu
from torch.testing import assert_close

import attnlab.mechanisms  # noqa: F401  registers all mechanisms
from attnlab.config import ConfigError
from attnlab.device.ranks import Ranks
from attnlab.inference.decoder import Decoder, tensors
from attnlab.mechanism import HandingMechanism, Mechanism, MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.handing import in_every_layer, needed_by, routes
from attnlab.model.language_model import ModelConfig
from attnlab.modules.delta_memory import DeltaMemory, ScalarDecayMemory
from attnlab.modules.matrix_memory import ConvolvedMemory, GatedMemory
from attnlab.modules.rotary_heads import RotaryHeads
from attnlab.modules.softmax_heads import SoftmaxHeads
from attnlab.training.parallel import apply


@pytest.fixture(params=sorted(MechanismConfig.kinds))
def config(request: pytest.FixtureRequest) -> MechanismConfig:
    return MechanismConfig.kinds[request.param]()


def test_the_file_is_named_after_the_mechanism(config):
    assert type(config).__module__ == f"attnlab.mechanisms.{config.kind()}"


def test_a_mechanism_is_written_out_in_its_file(config):
    """Its file has equations, cost, forward, step and state; it inherits none of them.

    Mechanisms that differ in a part of one equation share the rest: full and windowed attention in
    the tokens that a query attends to, memories of one rule in what decays and in the output.
    Forms of sparse attention, and memories behind a convolution, share their projections.
    """
    module = type(config.build(64))
    if module is ScalarDecayMemory:
        assert "gate" in vars(type(config))
        return
    assert module.__module__ == type(config).__module__
    bases = [base for base in module.__mro__[1:] if base.__module__.startswith("attnlab")]
    if config.kind() in ("grouped_query", "sliding_window"):
        assert bases == [SoftmaxHeads, RotaryHeads, HandingMechanism, Mechanism]
        assert {"_attend", "kernel_on"} <= vars(module).keys()
        assert {"forward_flops", "build"} <= vars(type(config)).keys()
        return
    for shared, own in ((GatedMemory, {"inputs", "output"}), (DeltaMemory, {"decays", "normed"})):
        if shared in bases:
            assert [base for base in bases if base is not ConvolvedMemory] == [shared, Mechanism]
            assert own <= vars(module).keys()
            assert {"more_params", "build"} <= vars(type(config)).keys()
            return
    selected = {"deepseek_sparse": [RotaryHeads], "moba": [RotaryHeads]}
    projections = {**selected, "mamba2": [ConvolvedMemory]}.get(config.kind(), [])
    assert bases == [*projections, Mechanism]
    assert not {"forward", "step"} & (vars(RotaryHeads).keys() | vars(ConvolvedMemory).keys())
    assert {"forward", "step"} <= vars(module).keys()
    assert any("init_state" in vars(part) for part in (module, *projections))
    assert {"cost", "build"} <= vars(type(config)).keys()
    shared = [it for it in type(config).__mro__ if it.__module__.startswith("attnlab.modules")]
    assert len(shared) <= 1


def test_settings_survive_json_and_reject_misspelling(config):
    data = config.to_dict()
    assert MechanismConfig.from_dict(data) == config
    name = next(iter(data.keys() - {"kind"}), None)
    if name:
        misspelt = name[:-1]
        with pytest.raises(ConfigError, match=f"no field '{misspelt}'; did you mean"):
            MechanismConfig.from_dict({"kind": config.kind(), misspelt: 3})


def test_identity_is_one_linear_map_of_each_token():
    mechanism, x_BTD = Identity().build(8, dropout=0.5), torch.randn(2, 5, 8)
    torch.testing.assert_close(mechanism(x_BTD), x_BTD @ mechanism.o_proj.weight.T)


def test_identity_remembers_nothing():
    mechanism, x_BTD = Identity().build(8), torch.randn(1, 5, 8)
    _, state = mechanism.prefill(x_BTD, capacity=9)
    y_BD, _ = mechanism.step(x_BTD[:, 2], state)
    torch.testing.assert_close(y_BD, mechanism(x_BTD)[:, 2])
    assert tuple(state) == ()


D, VOCAB, TOKENS = 32, 29, 11
own = GroupedQuery(n_kv_heads=2)
mixed, shared = replace(own, value_residual=True), replace(own, shared_kv=True)
window = SlidingWindow(n_kv_heads=2, window=4)
windowed = replace(window, shared_kv=True)
STACKS = {
    "value residual": (own, mixed, mixed, mixed),
    "of the first layer that gives": (own, mixed, own, mixed),
    "pairs share": (own, shared, own, shared),
    "one for all": (own, shared, shared, shared),
    "shared after a residual": (own, mixed, shared, own),
    "each of its kind": (own, window, windowed, shared),
    "windows mix": (own, replace(window, value_residual=True), window, windowed),
}


def model_of(layers, **fields):
    settings = {"n_layers": len(layers), "d_model": D, "feedforward": Dense(d_ff=24), **fields}
    return ModelConfig(mechanisms=layers, **settings)


def built(layers, **fields):
    model = model_of(layers, **fields).build(VOCAB).double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0.2, 0.5, generator=generator)
    return model


def tokens(batch=2, number=TOKENS):
    return torch.randint(VOCAB, (batch, number), generator=torch.Generator().manual_seed(2))


def rms(x, weight):
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x_TK):
    """Return heads with RoPE, pair by pair."""
    half = x_TK.shape[-1] // 2
    position_T, pair_P = torch.arange(len(x_TK)).double(), torch.arange(half).double()
    turn_TP = torch.outer(position_T, 10_000 ** (-pair_P / half))
    a, b, cos, sin = x_TK[:, :half], x_TK[:, half:], turn_TP.cos(), turn_TP.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def by_hand(model, tokens_T):
    """Return logits of one sequence, by loops over layers, heads and queries."""
    w = dict(model.named_parameters())
    x_TD, given = w["embed.weight"][tokens_T], []
    for i, layer in enumerate(model.config.per_layer()):
        p = {n.removeprefix(f"blocks.{i}."): t for n, t in w.items() if n.startswith(f"blocks.{i}")}
        h_TD = rms(x_TD, p["mix_norm.weight"])
        span = getattr(layer, "window", len(x_TD))
        if layer.shared_kv:
            k, v = next((k, v) for kind, k, v in reversed(given) if kind == span)
        else:
            k = [turned(h_TD @ rows.T) for rows in p["mix.k_proj.weight"].chunk(2)]
            v = [h_TD @ rows.T for rows in p["mix.v_proj.weight"].chunk(2)]
            if layer.value_residual:
                m = p["mix.value_mix"]
                v = [m[0] * one + m[1] * first for one, first in zip(v, given[0][2], strict=True)]
            given.append((span, k, v))
        heads = []
        for head, rows in enumerate(p["mix.q_proj.weight"].chunk(4)):
            q_TK, outputs = turned(h_TD @ rows.T), []
            for t in range(len(x_TD)):
                seen = slice(max(0, t + 1 - span), t + 1)
                weights = (k[head // 2][seen] @ q_TK[t] / 8**0.5).softmax(0)
                outputs.append(weights @ v[head // 2][seen])
            heads.append(torch.stack(outputs))
        x_TD = x_TD + torch.cat(heads, -1) @ p["mix.o_proj.weight"].T
        h_TD = rms(x_TD, p["feedforward_norm.weight"])
        hidden = silu(h_TD @ p["feedforward.up_proj.weight"].T)
        x_TD = x_TD + hidden @ p["feedforward.down_proj.weight"].T
    return rms(x_TD, w["norm.weight"]) @ w["embed.weight"].T


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("train", [True, False])
def test_a_model_is_its_definition_with_gradients(stack, train):
    model, tokens_BT = built(STACKS[stack]).train(train), tokens()
    got = model.logits(tokens_BT)
    expected = torch.stack([by_hand(model, tokens_T) for tokens_T in tokens_BT])
    assert_close(got, expected)
    assert_close(
        torch.autograd.grad(got.square().sum(), [*model.parameters()]),
        torch.autograd.grad(expected.square().sum(), [*model.parameters()]),
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("stack", "of"),
    [("of the first layer that gives", "nearest"), ("shared after a residual", "first")],
)
def test_the_definition_finds_values_of_another_layer(stack, of, monkeypatch):
    """Each of the two is consistent with itself: checks alone cannot tell."""
    takes = GroupedQuery.takes
    monkeypatch.setattr(GroupedQuery, "takes", lambda *args: dict.fromkeys(takes(*args), of))
    model, tokens_BT = built(STACKS[stack]), tokens(batch=1)
    off = model.logits(tokens_BT)[0] - by_hand(model, tokens_BT[0])
    assert off.abs().max() > 1e-3


def test_a_layer_that_gives_less_than_it_names_is_an_error(monkeypatch):
    monkeypatch.setattr(GroupedQuery, "gives", lambda *_: ("hidden states",))
    monkeypatch.setattr(
        GroupedQuery, "takes", lambda self, _: {"hidden states": "first"} if self.shared_kv else {}
    )
    with pytest.raises(KeyError, match="has not put in what its `gives` names: hidden states"):
        built((own, shared)).logits(tokens())


@torch.no_grad()
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("prompt", [1, 3, 9])
def test_decoding_after_a_prompt_is_the_forward_pass(stack, prompt):
    model, tokens_BT = built(STACKS[stack]), tokens()
    expected = model.logits(tokens_BT)
    logits_BV, states = model.prefill(tokens_BT[:, :prompt], TOKENS)
    decoder, found = Decoder(model, states), [logits_BV]
    assert decoder.graph_problem is None
    found += [decoder.step(tokens_B).clone() for tokens_B in tokens_BT[:, prompt:].unbind(1)]
    assert_close(torch.stack(found, 1), expected[:, prompt - 1 :])


@torch.no_grad()
@pytest.mark.parametrize("stack", STACKS)
def test_what_is_shared_is_held_and_counted_once(stack):
    config, model = model_of(STACKS[stack]), built(STACKS[stack])
    _, states = model.prefill(tokens(batch=1), TOKENS)
    held = sum(part.nbytes for part in tensors(states) if part.ndim)
    assert held == config.cost(VOCAB, TOKENS, itemsize=8).state_bytes
    width = 2 * 2 * 8 * 8  # keys and values of two heads of 8, in float64
    slots = {own: TOKENS, mixed: TOKENS, window: 4}
    kept = [slots.get(replace(each, value_residual=False), 0) for each in STACKS[stack]]
    assert held == width * sum(kept)


def test_sharing_saves_the_projections_and_a_residual_costs_two_numbers():
    plain = own.cost(D, TOKENS)
    assert plain.params - shared.cost(D, TOKENS).params == 2 * D * 16
    assert mixed.cost(D, TOKENS).params - plain.params == 2
    assert mixed.cost(D, TOKENS).flops == plain.flops
    assert shared.cost(D, TOKENS).state_bytes == 0


def test_it_begins_as_the_mean_of_both_values_and_as_plain_attention_else():
    first = dict(model_of((own, own)).build(VOCAB).named_parameters())
    for taker in (mixed, shared):
        second = dict(model_of((own, taker)).build(VOCAB).named_parameters())
        common = first.keys() & second.keys()
        assert "blocks.1.mix.o_proj.weight" in common
        assert all(torch.equal(first[name], second[name]) for name in common)
    mix = model_of((own, mixed)).build(VOCAB).blocks[1].mix
    assert mix.value_mix.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("stack", ["value residual", "pairs share", "each of its kind"])
def test_checkpointed_activations_have_the_same_gradients(stack):
    train = replace(tiny_study.base.train, activation_checkpointing=True)
    found, batch = [], tokens(2, TOKENS)
    for checkpointed in (False, True):
        model = built(STACKS[stack]).train()
        if checkpointed:
            apply(model, train, Ranks.alone(torch.device("cpu")), compiled=False)
        model.losses(batch).language_model.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_close(found[1], found[0])


def test_a_model_that_hands_nothing_keeps_nothing():
    model = built((own, window, GatedDeltaNet(n_heads=2, head_dim=8)))
    assert all(block.gives is None for block in model.layers())


@pytest.mark.parametrize(
    ("layers", "path", "said"),
    [
        ((mixed,), "mechanisms.0", "layer 0 takes values of 2 heads of 8, and no earlier layer"),
        ((shared, own), "mechanisms.0", "layer 0 takes keys of 2 heads of 8 with RoPE of 8"),
        ((own, GroupedQuery(value_residual=True)), "mechanisms.1", "earlier layers give values of"),
        ((own, windowed), "mechanisms.1", "in a window of 4, and no earlier layer gives"),
        ((own, replace(shared, rope_head_dim=0)), "mechanisms.1", "with no RoPE and values of 8"),
    ],
)
def test_a_taker_without_a_giver_is_refused(layers, path, said):
    with pytest.raises(ConfigError) as error:
        model_of(layers, n_layers=2)
    assert str(error.value).startswith(f"{path}: layer ")
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_pattern_by_layer_says_which_layer_takes_in_vain():
    taker = GroupedQuery(n_heads=2, n_kv_heads=2, value_residual=True)
    with pytest.raises(ConfigError, match=r"mechanisms.layers.1: layer 1 takes values of 2"):
        tiny_study.base.with_mechanisms(own, layers={1: taker})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shared_kv": True, "value_residual": True}, "value_residual: has no values to add to"),
        ({"shared_kv": True, "kv_lora_rank": 4}, "kv_lora_rank: must be none with shared_kv"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        GroupedQuery(**settings)


def test_a_layer_stands_alone_behind_those_that_it_takes_from():
    layers = STACKS["shared after a residual"]
    assert needed_by(layers, 2, D) == (own, mixed)
    assert needed_by(layers, 3, D) == ()
    assert in_every_layer(own, 3, D) == in_every_layer(own, 1, D) == (own,)
    assert in_every_layer(mixed, 3, D).per_layer(3) == [own, mixed, mixed]


def test_tensors_are_released_after_their_last_taker():
    assert [route.until for route in routes((own, shared, own, shared), D)] == [1, 1, 3, 3]


def test_chosen_layers_have_no_position():
    """NoPE on some layers is a stack in which RoPE is off for them."""
    config = model_of((own, replace(own, rope_head_dim=0)))
    assert [mix.rope.width for mix in config.build(VOCAB).mechanisms()] == [8, 0]
