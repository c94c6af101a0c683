"""Properties that hold for every mechanism. A new file of mechanisms/ is tested automatically."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import attnlab.mechanisms  # noqa: F401  registers all mechanisms
from attnlab.config import ConfigError
from attnlab.mechanism import HandingMechanism, Mechanism, MechanismConfig, state_bytes
from attnlab.mechanisms.identity import Identity
from attnlab.modules.delta_memory import DeltaMemory, ScalarDecayMemory
from attnlab.modules.matrix_memory import ConvolvedMemory, GatedMemory
from attnlab.modules.rotary_heads import RotaryHeads
from attnlab.modules.softmax_heads import SoftmaxHeads

D_MODEL, TOKENS, BATCH = 64, 75, 2  # an odd length, no multiple of any block or chunk
SHORTENED = {"window": 16, "top_k": 16, "block_size": 16}  # shorter than the sequence


@pytest.fixture(params=sorted(MechanismConfig.kinds))
def config(request: pytest.FixtureRequest) -> MechanismConfig:
    kind = MechanismConfig.kinds[request.param]
    fields = kind.__dataclass_fields__
    short = {name: min(fields[name].default, SHORTENED[name]) for name in SHORTENED & fields.keys()}
    return kind(**short)


@pytest.fixture
def mechanism(config: MechanismConfig) -> Mechanism:
    torch.manual_seed(0)
    return config.build(D_MODEL).double().eval()


@pytest.fixture
def x_BTD() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, TOKENS, D_MODEL, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("cut", [1, 15, 16, 17, 50, TOKENS - 1])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_future_never_leaks_into_the_past(mechanism, x_BTD, cut, mode):
    mechanism.train(mode == "train")
    changed_BTD = x_BTD.clone()
    changed_BTD[:, cut:] += 1
    torch.testing.assert_close(mechanism(changed_BTD)[:, :cut], mechanism(x_BTD)[:, :cut])


@pytest.mark.parametrize("cut", [1, 16, 50])
def test_no_gradient_flows_from_the_past_to_the_future(mechanism, x_BTD, cut):
    x_BTD.requires_grad_()
    mechanism(x_BTD)[:, :cut].square().sum().backward()
    assert x_BTD.grad[:, :cut].any()
    assert x_BTD.grad[:, cut:].abs().max() == 0


@torch.no_grad()
def test_token_by_token_equals_all_at_once(mechanism, x_BTD):
    state, outputs = mechanism.init_state(BATCH, TOKENS), []
    for x_BD in x_BTD.unbind(1):
        y_BD, state = mechanism.step(x_BD, state)
        outputs.append(y_BD)
    torch.testing.assert_close(torch.stack(outputs, 1), mechanism(x_BTD))


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 15, 17, 40])
def test_decoding_goes_on_from_a_prefilled_prompt(mechanism, x_BTD, prompt):
    y_BTD, state = mechanism.prefill(x_BTD[:, :prompt], TOKENS)
    outputs = list(y_BTD.unbind(1))
    for x_BD in x_BTD[:, prompt:].unbind(1):
        y_BD, state = mechanism.step(x_BD, state)
        outputs.append(y_BD)
    torch.testing.assert_close(torch.stack(outputs, 1), mechanism(x_BTD))


@torch.no_grad()
def test_one_sequence_of_a_batch_does_not_see_another(mechanism, x_BTD):
    torch.testing.assert_close(mechanism(x_BTD)[:1], mechanism(x_BTD[:1]))


def test_every_parameter_is_trained(mechanism, x_BTD):
    mechanism.train()
    y_BTD, loss = mechanism.forward_with_loss(x_BTD)
    (y_BTD.square().sum() + (0 if loss is None else loss)).backward()
    untrained = [n for n, p in mechanism.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untrained


@torch.no_grad()
@pytest.mark.parametrize("context", [1, 7, TOKENS])
def test_the_cost_model_matches_the_machine(config, mechanism, x_BTD, context):
    stated = config.cost(D_MODEL, context, itemsize=8)
    state = mechanism.init_state(1, context)
    for x_BD in x_BTD[:1, : context - 1].unbind(1):
        _, state = mechanism.step(x_BD, state)
    # the counter misses CPU flash attention; the plain kernel computes the same products
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, state = mechanism.step(x_BTD[:1, context - 1], state)
    assert stated.params == sum(p.numel() for p in mechanism.parameters())
    assert stated.flops == counter.get_total_flops()
    assert stated.state_bytes == state_bytes(state)


@pytest.mark.parametrize("tokens", [1, 2, 31])
def test_values_and_gradients_are_finite_in_bfloat16(config, tokens):
    torch.manual_seed(0)
    mechanism = config.build(D_MODEL).train()
    x_BTD = torch.randn(3, tokens, D_MODEL, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD, loss = mechanism.forward_with_loss(x_BTD)
    (y_BTD.float().square().mean() + (0 if loss is None else loss)).backward()
    assert y_BTD.isfinite().all()
    assert x_BTD.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mechanism.parameters())


def test_the_file_is_named_after_the_mechanism(config):
    assert type(config).__module__ == f"attnlab.mechanisms.{config.kind()}"


def test_a_mechanism_is_written_out_in_its_file(config):
    """Its file has equations, cost, forward, step and state; it inherits none of them.

    Mechanisms that differ in a part of one equation share the rest: full and windowed attention in
    the tokens that a query attends to, memories of one rule in what decays and in the output.
    Forms of sparse attention, and memories behind a convolution, share their projections.
    """
    module = type(config.build(D_MODEL))
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
