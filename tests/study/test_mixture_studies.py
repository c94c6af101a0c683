"""The studies on a mixture of experts are as specified: `deepseek` and `fair_search`."""

import pytest
import torch

from attnlab.config import ConfigError
from attnlab.modules.rope_scaling import Dynamic, Linear
from attnlab.study.load import load_study

VOCAB = 49_152
MILLIONS = {  # of parameters; published: 162.6 to 177.8
    "baseline": 167.814,
    "lora_small": 162.572,
    "lora_medium": 163.621,
    "lora_large": 165.720,
    "lora_xl": 169.917,
    "enhanced_small": 161.797,
    "enhanced_medium": 164.952,
    "enhanced_large": 173.620,
    "enhanced_xl": 181.490,
    "rope_only": 169.911,
    "rope_small": 164.668,
    "rope_large": 180.397,
    "bias_only": 167.830,
}


def described(config):
    (attention,) = config.model.mechanisms
    scaling = attention.rope_scaling
    return (
        attention.q_lora_rank,
        attention.kv_lora_rank,
        attention.head_dim,
        attention.v_head_dim,
        attention.bias,
        scaling and (type(scaling), scaling.factor),
    )


def test_fair_search_is_as_specified():
    study = load_study("fair_search")
    assert {name: described(config) for name, config in study.variants.items()} == {
        "baseline": (None, None, None, None, False, None),
        "lora_small": (32, 64, None, None, False, None),
        "lora_medium": (64, 128, None, None, False, None),
        "lora_large": (128, 256, None, None, False, None),
        "lora_xl": (256, 512, None, None, False, None),
        "enhanced_small": (32, 64, 32, 48, True, (Linear, 1.5)),
        "enhanced_medium": (64, 128, 64, 96, True, (Linear, 2.0)),
        "enhanced_large": (128, 256, 128, 192, True, (Linear, 2.5)),
        "enhanced_xl": (256, 512, 128, 192, True, (Linear, 3.0)),
        "rope_only": (None, None, 64, 96, False, (Linear, 2.0)),
        "rope_small": (None, None, 32, 48, False, (Linear, 1.5)),
        "rope_large": (None, None, 128, 192, False, (Linear, 2.5)),
        "bias_only": (None, None, None, None, True, None),
    }
    assert (study.baseline, study.seeds, study.tuning) == ("baseline", 4, None)
    for config in study.variants.values():
        model, train = config.model, config.train
        assert (model.d_model, model.n_layers, model.mechanisms[0].n_heads) == (512, 8, 8)
        assert (train.seq_len, train.learning_rate, train.weight_decay) == (512, 1e-4, 0.01)
        assert config.data.tokenizer.to_dict() == {"kind": "bpe", "vocab_size": VOCAB}
        experts = model.feedforward
        assert (experts.n_experts, experts.top_k, experts.d_ff) == (8, 2, 2048)


def test_the_sizes_of_fair_search():
    parts = {n: c.model.parts(VOCAB) for n, c in load_study("fair_search").variants.items()}
    found = {name: round(part.total / 1e6, 3) for name, part in parts.items()}
    assert found == MILLIONS
    outside = {name for name, million in found.items() if not 162.0 <= million <= 178.0}
    assert outside == {"enhanced_small", "rope_large", "enhanced_xl"}
    assert all(name in (load_study("fair_search").question) for name in outside)
    assert {part.idle for part in parts.values()} == {8 * 6 * 2 * 512 * 2048}


@pytest.mark.parametrize(
    ("length", "steps", "batch_size"),
    [("fast", 50, 16), ("medium", 200, 32), ("thorough", 500, 64)],
)
def test_the_lengths_of_fair_search(length, steps, batch_size):
    study = load_study("fair_search").at_length(length)
    for config in study.variants.values():
        assert (config.train.steps, config.train.batch_size) == (steps, batch_size)
        assert 10 * config.train.warmup_steps == steps
    assert study.name == ("fair_search" if length == "fast" else f"fair_search_{length}")


def test_a_length_that_a_study_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="no length 'thorogh'; did you mean 'thorough'"):
        load_study("fair_search").at_length("thorogh")
    with pytest.raises(ConfigError, match="no length 'fast'; none are known"):
        load_study("deepseek").at_length("fast")


def test_deepseek_is_as_specified():
    study = load_study("deepseek")
    kernels = {name: c.model.mechanisms[0].kernel for name, c in study.variants.items()}
    assert kernels == {
        "baseline": "math",
        "lora": "math",
        "flash": "flash",
        "rope": "flash",
        "full": "flash",
    }
    assert {name: described(config) for name, config in study.variants.items()} == {
        "baseline": (None, None, None, None, False, None),
        "lora": (32, 64, None, None, False, None),
        "flash": (32, 64, None, None, False, None),
        "rope": (32, 64, None, None, False, (Linear, 2.0)),
        "full": (32, 64, 32, 48, True, (Dynamic, 1.5)),
    }
    for config in study.variants.values():
        model = config.model
        assert (model.d_model, model.n_layers, model.mechanisms[0].n_heads) == (384, 6, 8)
        assert config.train.seq_len == 512
        assert config.eval.lengths == (512, 1024, 2048)
        experts = model.feedforward
        assert (experts.n_experts, experts.top_k, experts.d_ff) == (8, 2, 1536)
        assert experts.balance_loss == 0.01


def test_lora_and_flash_are_one_function_on_two_kernels():
    study, x_BTD = load_study("deepseek"), torch.randn(2, 33, 384)
    lora, flash = (
        study.variants[name].model.mechanisms[0].build(384) for name in ("lora", "flash")
    )
    flash.load_state_dict(lora.state_dict())
    torch.testing.assert_close(flash(x_BTD), lora(x_BTD))
    cpu = torch.device("cpu")
    assert lora.kernel_on(cpu, torch.float32) != flash.kernel_on(cpu, torch.float32)
