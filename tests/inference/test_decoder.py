"""Decoding in place gives what the model's own steps give, recorded as a graph or not."""

import copy
from typing import NamedTuple

import pytest
import torch

from attnlab.inference.decoder import Decoder, full_state, is_count, tensors
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import ModelConfig

KINDS = {
    "grouped_query": {"n_heads": 2, "n_kv_heads": 1},
    "sliding_window": {"n_heads": 2, "n_kv_heads": 2, "window": 4},
    "deepseek_sparse": {"n_heads": 2, "n_kv_heads": 2, "top_k": 4, "index_head_dim": 8},
    "mla": {"n_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    "gated_delta_net": {"n_heads": 2, "head_dim": 8},
    "delta_net": {"n_heads": 2, "head_dim": 8},
    "gla": {"n_heads": 2, "head_dim": 8},
    "kda": {"n_heads": 2, "head_dim": 8},
    "mamba2": {"n_heads": 2, "head_dim": 8, "d_state": 8},
    "identity": {},
}
BATCH, PROMPT, STEPS = 3, 5, 9


def built(kind, device="cpu"):
    mechanism = MechanismConfig.from_dict({"kind": kind, **KINDS[kind]})
    config = ModelConfig(mechanisms=(mechanism,), n_layers=2, d_model=16)
    return config.build(vocab_size=50).to(device).eval()


def prompt_and_tokens(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(50, (BATCH, PROMPT + STEPS), generator=generator).to(device)


@torch.inference_mode()
def stepped(model, tokens_BT):
    _, states = model.prefill(tokens_BT[:, :PROMPT], PROMPT + STEPS)
    logits = []
    for tokens_B in tokens_BT[:, PROMPT:].unbind(1):
        logits_BV, states = model.step(tokens_B, states)
        logits.append(logits_BV)
    return torch.stack(logits, 1)


@torch.inference_mode()
def decoded(model, tokens_BT, **how):
    _, states = model.prefill(tokens_BT[:, :PROMPT], PROMPT + STEPS)
    decoder = Decoder(model, states, **how)
    steps = [decoder.step(tokens_B).clone() for tokens_B in tokens_BT[:, PROMPT:].unbind(1)]
    return torch.stack(steps, 1), decoder


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_in_place_gives_the_models_own_steps(kind):
    model, tokens_BT = built(kind), prompt_and_tokens()
    logits_BTV, decoder = decoded(model, tokens_BT)
    assert torch.equal(logits_BTV, stepped(model, tokens_BT))
    assert decoder.graph_problem is None


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_decodes_the_same(kind, compiled):
    model, tokens_BT = built(kind, "cuda"), prompt_and_tokens("cuda")
    logits_BTV, decoder = decoded(model, tokens_BT, compiled=compiled)
    assert decoder._graph is not None
    torch.testing.assert_close(logits_BTV, stepped(model, tokens_BT), atol=2e-5, rtol=2e-4)


def test_states_keep_their_addresses():
    model, tokens_BT = built("gated_delta_net"), prompt_and_tokens()
    _, states = model.prefill(tokens_BT[:, :PROMPT], 99)
    before = [part.data_ptr() for part in tensors(states)]
    decoder = Decoder(model, states)
    decoder.step(tokens_BT[:, 0])
    assert [part.data_ptr() for part in tensors(decoder.states)] == before


@pytest.mark.parametrize(
    ("config", "tokens_kept"),
    [(GroupedQuery(), 40), (SlidingWindow(window=16), 16), (GatedDeltaNet(), None)],
    ids=lambda value: value.kind() if isinstance(value, MechanismConfig) else "",
)
def test_a_full_state_holds_its_context_and_holding_keeps_it_there(config, tokens_kept):
    model = ModelConfig(mechanisms=(config,), n_layers=1).build(vocab_size=50)
    states = full_state(model, batch_size=2, context=40)
    counts = [part for part in tensors(states) if is_count(part)]
    decoder = Decoder(model, states, hold=True)
    for _ in range(3):
        logits_BV = decoder.step(torch.tensor([1, 2]))
    assert logits_BV.isfinite().all()
    if tokens_kept is not None:
        assert states[0].k_BGSK.shape[2] == tokens_kept
        assert [count.item() for count in counts] == [39]


class Counted(NamedTuple):
    past: torch.Tensor
    seen: int


def test_a_state_with_a_python_number_is_stepped_and_says_why_it_is_not_recorded():
    model, tokens_BT = built("identity"), prompt_and_tokens()
    mechanism = next(model.mechanisms())
    step = mechanism.step
    mechanism.step = lambda x_BD, state: (
        step(x_BD, ())[0],
        state._replace(seen=state.seen + 1),
    )
    _, states = model.prefill(tokens_BT[:, :1], 9)
    states[0] = Counted(torch.zeros(1), 1)
    expected = copy.deepcopy(states)
    decoder = Decoder(model, states)
    decoder.step(tokens_BT[:, 1])
    assert "contains int, which a CUDA graph cannot change" in decoder.graph_problem
    assert decoder.states[0].seen == expected[0].seen + 1
