"""Decoding in place gives what the model's own steps give, recorded as a graph or not.

Generated text is what the model says, token by token.
"""

import copy
import math
import shutil
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from support import tiny_study
from support.planted_faults import FAULTS

import attnlab.mechanisms  # noqa: F401  registers the kinds
from attnlab.config import ConfigError
from attnlab.data import Places
from attnlab.inference.decoder import Decoder, full_state, is_count, tensors
from attnlab.inference.generate import Sampling, generate_tokens
from attnlab.inference.saved_model import load_run
from attnlab.mechanism import Mechanism, MechanismConfig
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.language_model import LanguageModel, ModelConfig
from attnlab.record import write_json
from attnlab.runner.execute import corpus_of, execute
from attnlab.training.run import Run

KINDS = {
    "grouped_query": {"n_heads": 2, "n_kv_heads": 1},
    "grouped_query with shared keys": {"n_heads": 2, "n_kv_heads": 1, "shared_kv": True},
    "grouped_query with a residual": {"n_heads": 2, "n_kv_heads": 1, "value_residual": True},
    "sliding_window": {"n_heads": 2, "n_kv_heads": 2, "window": 4},
    "sliding_window with a sink": {"n_heads": 2, "n_kv_heads": 2, "window": 4, "n_sink_tokens": 1},
    "deepseek_sparse": {"n_heads": 2, "n_kv_heads": 2, "top_k": 4, "index_head_dim": 8},
    "moba": {"n_heads": 2, "n_kv_heads": 1, "block_size": 3, "top_k": 2},
    "nsa": {"n_heads": 2, "n_kv_heads": 1, "compression_size": 4, "compression_stride": 2}
    | {"block_size": 4, "top_k": 2, "window": 3},
    "mla": {"n_heads": 2, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4},
    "gated_delta_net": {"n_heads": 2, "head_dim": 8},
    "delta_net": {"n_heads": 2, "head_dim": 8},
    "gla": {"n_heads": 2, "head_dim": 8},
    "kda": {"n_heads": 2, "head_dim": 8},
    "mamba2": {"n_heads": 2, "head_dim": 8, "d_state": 8},
    "rwkv7": {"n_heads": 2, "head_dim": 8},
    "lightning_attention": {"n_heads": 2, "head_dim": 8},
    "gated_delta_product": {"n_heads": 2, "head_dim": 8},
    "identity": {},
}
ROWS, GIVEN, STEPS = 3, 5, 9


def seeded(kind, device="cpu"):
    mechanism = MechanismConfig.from_dict({"kind": kind.split()[0], **KINDS[kind]})
    config = ModelConfig(mechanisms=(GroupedQuery(),), n_layers=2, d_model=16)
    return config.in_every_layer(mechanism).build(vocab_size=50).to(device).eval()


def prompt_and_tokens(device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(50, (ROWS, GIVEN + STEPS), generator=generator).to(device)


@torch.inference_mode()
def stepped(model, tokens_BT):
    _, states = model.prefill(tokens_BT[:, :GIVEN], GIVEN + STEPS)
    logits = []
    for tokens_B in tokens_BT[:, GIVEN:].unbind(1):
        logits_BV, states = model.step(tokens_B, states)
        logits.append(logits_BV)
    return torch.stack(logits, 1)


@torch.inference_mode()
def decoded(model, tokens_BT, **how):
    _, states = model.prefill(tokens_BT[:, :GIVEN], GIVEN + STEPS)
    decoder = Decoder(model, states, **how)
    steps = [decoder.step(tokens_B).clone() for tokens_B in tokens_BT[:, GIVEN:].unbind(1)]
    return torch.stack(steps, 1), decoder


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_in_place_gives_the_models_own_steps(kind):
    model, tokens_BT = seeded(kind), prompt_and_tokens()
    logits_BTV, decoder = decoded(model, tokens_BT)
    assert torch.equal(logits_BTV, stepped(model, tokens_BT))
    assert decoder.graph_problem is None


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_decodes_the_same(kind, compiled):
    model, tokens_BT = seeded(kind, "cuda"), prompt_and_tokens("cuda")
    logits_BTV, decoder = decoded(model, tokens_BT, compiled=compiled)
    assert decoder._graph is not None
    torch.testing.assert_close(logits_BTV, stepped(model, tokens_BT), atol=2e-5, rtol=2e-4)


def test_a_state_that_hands_on_a_tensor_decodes_in_place(monkeypatch):
    monkeypatch.setattr(MechanismConfig, "kinds", {**MechanismConfig.kinds})
    model = ModelConfig(mechanisms=(FAULTS["StateMovesOn"].config(),), n_layers=2).build(50)
    logits_BTV, _ = decoded(model, tokens_BT := prompt_and_tokens())
    assert torch.equal(logits_BTV, stepped(model, tokens_BT))


def test_states_keep_their_addresses():
    model, tokens_BT = seeded("gated_delta_net"), prompt_and_tokens()
    _, states = model.prefill(tokens_BT[:, :GIVEN], 99)
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
    model, tokens_BT = seeded("identity"), prompt_and_tokens()
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


CPU = torch.device("cpu")
VOCAB, BATCH, PROMPT, NEW = 61, 3, 9, 24
SHIPPED = sorted(MechanismConfig.kinds)
SHORTENED = {"window": 8, "top_k": 8}


def built(kind: str) -> LanguageModel:
    cls = MechanismConfig.kinds[kind]
    fields = {k: v for k, v in SHORTENED.items() if k in cls.__dataclass_fields__}
    config = ModelConfig(mechanisms=(cls(**fields),), n_layers=2, d_model=64, dropout=0.2)
    return config.build(VOCAB, seed=1).double()


def prompt() -> torch.Tensor:
    return torch.randint(VOCAB, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))


def said(model: LanguageModel, **settings: object) -> torch.Tensor:
    new_tokens = settings.pop("max_new_tokens", NEW)
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    tokens = generate_tokens(model, prompt(), max_new_tokens=new_tokens, sampling=sampling)
    return torch.stack(list(tokens), 1)


@pytest.mark.parametrize("kind", SHIPPED)
def test_greedy_text_is_what_repeated_full_forwards_give(kind):
    model = built(kind)
    tokens_BT = prompt()
    with torch.no_grad():
        for _ in range(NEW):
            next_B = model.eval().logits(tokens_BT)[:, -1].argmax(-1)
            tokens_BT = torch.cat([tokens_BT, next_B[:, None]], 1)
    assert torch.equal(said(model, temperature=0.0), tokens_BT[:, PROMPT:])


def test_a_model_without_steps_reads_the_whole_text_for_every_token(monkeypatch):
    model, expected = built("grouped_query"), said(built("grouped_query"), temperature=0.0)
    mixer = type(next(model.mechanisms()))
    for name in ("init_state", "step", "prefill"):
        monkeypatch.setattr(mixer, name, getattr(Mechanism, name))
    assert not model.decodes
    assert torch.equal(said(model, temperature=0.0), expected)


@torch.no_grad()
def test_steps_after_a_prompt_give_the_logits_of_the_whole():
    config = ModelConfig(mechanisms=(GroupedQuery(), SlidingWindow(window=4)), n_layers=2)
    model = config.build(VOCAB).double().eval()
    tokens_BT = prompt()
    logits_BV, states = model.prefill(tokens_BT[:, :5], PROMPT)
    torch.testing.assert_close(logits_BV, model.logits(tokens_BT[:, :5])[:, -1])
    for t in range(5, PROMPT):
        logits_BV, states = model.step(tokens_BT[:, t], states)
        torch.testing.assert_close(logits_BV, model.logits(tokens_BT[:, : t + 1])[:, -1])


def test_the_seed_decides_and_nothing_else():
    model = built("grouped_query")
    assert torch.equal(said(model, seed=1), said(model, seed=1))
    assert not torch.equal(said(model, seed=1), said(model, seed=2))
    torch.manual_seed(123)
    assert torch.equal(said(model, seed=1), said(model, seed=1))


def test_one_most_likely_token_is_greedy():
    model = built("grouped_query")
    greedy = said(model, temperature=0.0)
    assert torch.equal(said(model, top_k=1), greedy)
    assert torch.equal(said(model, top_p=1e-6), greedy)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.95}, {0, 1, 2}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),
    ],
)
def test_the_tokens_that_may_come_are_the_likeliest(settings, allowed):
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    generator = torch.Generator().manual_seed(0)
    draws = Sampling(**settings).choose(p.log().expand(2000, -1), generator)
    assert set(draws.tolist()) == allowed


def test_temperature_sharpens_the_distribution():
    logits = torch.tensor([[1.0, 0.0]]).expand(20_000, -1)
    for temperature in (0.5, 1.0, 2.0):
        draws = Sampling(temperature=temperature).choose(logits, torch.Generator().manual_seed(0))
        expected = torch.tensor([1.0 / temperature, 0.0]).softmax(-1)[1].item()
        assert draws.double().mean().item() == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-8, 1.0, 1e8, 1e308])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_temperature_gives_tokens(temperature, dtype):
    logits = torch.tensor([[3.0, 1000.0, 3.0, -1e30]], dtype=dtype).expand(50, -1)
    draws = Sampling(temperature=temperature, top_k=3, top_p=0.9).choose(logits, torch.Generator())
    if temperature < 1:
        assert set(draws.tolist()) == {1}


def test_impossible_settings_and_prompts_are_refused():
    with pytest.raises(ConfigError) as error:
        Sampling(temperature=-1.0, top_k=0, top_p=1.5, seed=-1)
    found = [problem.path for problem in error.value.problems]
    assert found == ["temperature", "top_k", "top_p", "seed"]
    for temperature in (math.nan, math.inf):
        with pytest.raises(ConfigError, match="temperature: expected a finite number"):
            Sampling(temperature=temperature)
    empty = torch.zeros(1, 0, dtype=torch.long)
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate_tokens(built("identity"), empty, max_new_tokens=1, sampling=Sampling()))


@pytest.mark.parametrize("kind", SHIPPED)
def test_text_is_made_in_the_precision_that_is_asked_for_and_the_caller_keeps_their_own(kind):
    model, dtypes = built(kind).float(), set()
    for mechanism in model.mechanisms():
        mechanism.register_forward_pre_hook(lambda _, inputs: dtypes.add(inputs[0].dtype))
        step, prefill = mechanism.step, mechanism.prefill
        mechanism.step = lambda x, state, step=step: (dtypes.add(x.dtype), step(x, state))[1]
        mechanism.prefill = lambda x, n, prefill=prefill: (dtypes.add(x.dtype), prefill(x, n))[1]
    bfloat16 = torch.autocast("cpu", torch.bfloat16)
    tokens = generate_tokens(
        model, prompt(), max_new_tokens=3, sampling=Sampling(), autocast=bfloat16
    )
    for tokens_B in tokens:
        assert tokens_B.shape == (BATCH,)
        assert not torch.is_autocast_enabled("cpu")
    assert dtypes == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flash", "cudnn"])
def test_a_run_with_a_kernel_of_half_precision_goes_on_from_a_prompt(tmp_path, kernel):
    cuda = torch.device("cuda", 0)
    mechanism = GroupedQuery(n_heads=2, n_kv_heads=2, kernel=kernel)
    run = Run(variant="a", config=tiny_study.base.with_mechanisms(mechanism))
    places = Places(None, tmp_path / "cache")
    identity = run.config.identity(corpus_of(run.config.data, places).fingerprint)
    events = list(execute(run, tmp_path, identity, places, cuda))
    assert events[-1].status == "finished", events[-1]
    trained = load_run(tmp_path / "a" / "seed-0", cuda)
    tokens_BT = torch.randint(256, (2, 7), generator=torch.Generator().manual_seed(0)).to(cuda)
    greedy = {"max_new_tokens": 8, "sampling": Sampling(temperature=0.0)}
    with pytest.raises(ValueError, match="computes in bfloat16"):
        next(generate_tokens(trained.model, tokens_BT, **greedy))
    for tokens_B in generate_tokens(trained.model, tokens_BT, **greedy, autocast=trained.autocast):
        with torch.no_grad(), trained.autocast:
            logits_BV = trained.model.logits(tokens_BT)[:, -1].float()
        chosen_B = logits_BV.gather(1, tokens_B[:, None])[:, 0]
        assert (chosen_B >= logits_BV.amax(-1) - 0.05).all()  # the likeliest, or rounded off it
        tokens_BT = torch.cat([tokens_BT, tokens_B[:, None]], 1)


def test_tokens_come_as_they_are_made():
    tokens = generate_tokens(built("identity"), prompt(), max_new_tokens=10**9, sampling=Sampling())
    assert next(tokens).shape == next(tokens).shape == (BATCH,)


@pytest.fixture
def run_folder(tmp_path):
    places = Places(None, tmp_path / "cache")
    config = replace(tiny_study.base, seed=3)
    identity = config.identity(corpus_of(config.data, places).fingerprint)
    list(execute(Run(variant="a", config=config), tmp_path, identity, places, CPU))
    return tmp_path / "a" / "seed-3"


def test_a_run_loads_back_with_its_tokenizer(run_folder):
    trained = load_run(run_folder, CPU)
    assert trained.step == 12
    assert trained.config == replace(tiny_study.base, seed=3)
    ids = trained.codec.encode(["def é"])
    assert trained.codec.decode(ids) == "def é"
    logits = trained.model.logits(torch.from_numpy(ids.astype("int64"))[None])
    assert logits.shape == (1, 6, 256)


def test_a_run_without_weights_says_that_it_diverged(run_folder):
    shutil.rmtree(run_folder / "checkpoints")
    with pytest.raises(ValueError, match=r"there is none, as with train\.keep=none"):
        load_run(run_folder, CPU)
    ended = {"status": "diverged", "reason": "train loss is nan at step 2"}
    write_json(run_folder / "summary.json", ended)
    with pytest.raises(ValueError, match="checkpoints: the run diverged: train loss is nan at"):
        load_run(run_folder, CPU)


def test_a_missing_or_damaged_run_says_so(run_folder):
    with pytest.raises(ValueError, match=r"no run in .*did you mean .*seed-3"):
        load_run(run_folder.parent, CPU)
    for weights in run_folder.glob("checkpoints/*/model.safetensors"):
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-000012: model.* was altered.*; step-000008: "):
        load_run(run_folder, CPU)
