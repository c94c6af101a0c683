"""How every mechanism is written. A new file of mechanisms/ is tested automatically.

What it computes is judged by its check, in `tests/checks`.
"""

import pytest
import torch

import attnlab.mechanisms  # noqa: F401  registers all mechanisms
from attnlab.config import ConfigError
from attnlab.mechanism import HandingMechanism, Mechanism, MechanismConfig
from attnlab.mechanisms.identity import Identity
from attnlab.modules.delta_memory import DeltaMemory, ScalarDecayMemory
from attnlab.modules.matrix_memory import ConvolvedMemory, GatedMemory
from attnlab.modules.rotary_heads import RotaryHeads
from attnlab.modules.softmax_heads import SoftmaxHeads


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
