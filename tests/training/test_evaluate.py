"""Held-out quality is over the whole split; runs and benchmarks train with the same step."""

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support import tiny_study
from torch.nn.functional import log_softmax

from attnlab.data import Places
from attnlab.data.batches import window_starts
from attnlab.data.text import Text
from attnlab.data.tokenizer import Bytes
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.model.language_model import ModelConfig
from attnlab.training.assemble import step_of_one_batch, step_of_run
from attnlab.training.config import TrainConfig
from attnlab.training.evaluate import HeldOut, bins

CPU = torch.device("cpu")


@pytest.fixture
def corpus(tmp_path):
    for split, text in (("train", "abcdefg " * 50), ("valid", "the quick brown fox jumps é " * 3)):
        (tmp_path / f"{split}.txt").write_text(text)
    return Text(paths=(str(tmp_path),), tokenizer=Bytes()).load(Places(None, tmp_path / "cache"))


@pytest.mark.parametrize("one_shape", [False, True])
@pytest.mark.parametrize("seq_len", [1, 7, 20, 83, 84, 500])
def test_every_token_but_the_first_counts_once(corpus, seq_len, one_shape):
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).double()
    tokens = torch.from_numpy(corpus.valid.astype("int64"))
    held_out = HeldOut(
        corpus, "valid", seq_len=seq_len, batch_size=3, device=CPU, one_shape=one_shape
    )
    assert len({batch.tokens_BT1.shape for batch in held_out.batches}) == 1 or not one_shape
    quality = held_out.quality(model, nullcontext())

    # without mixing every token is predicted from the one before, whatever its window
    log_p_NV = log_softmax(model.logits(tokens[None, :-1])[0], -1)
    nats_N = -log_p_NV.gather(1, tokens[1:, None])
    assert quality.loss == pytest.approx(nats_N.mean().item(), rel=1e-6)
    right = (log_p_NV.argmax(-1) == tokens[1:]).double().mean().item()
    assert quality.accuracy == pytest.approx(right)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    assert quality.bits_per_byte == pytest.approx(quality.loss / math.log(2), rel=1e-6)


@pytest.mark.parametrize("one_shape", [False, True])
@pytest.mark.parametrize("seq_len", [1, 20, 30, 500])
@torch.no_grad()
def test_loss_by_position_and_by_recall_are_what_loops_give(corpus, seq_len, one_shape):
    attention = GroupedQuery(n_heads=2, n_kv_heads=2)
    model = ModelConfig(mechanisms=(attention,), n_layers=1, d_model=16).build(256).double().eval()
    held_out = HeldOut(
        corpus, "valid", seq_len=seq_len, batch_size=3, device=CPU, one_shape=one_shape
    )
    assert len({batch.tokens_BT1.shape for batch in held_out.batches}) == 1 or not one_shape
    quality = held_out.quality(model, nullcontext())

    tokens = corpus.valid.tolist()
    length = min(seq_len, len(tokens) - 1)
    at_position = {first: [] for first in bins(length)}
    of_recall = {True: [], False: []}
    for i in range(1, len(tokens)):
        start = min((i - 1) // length * length, len(tokens) - 1 - length)
        context, target = tokens[start:i], tokens[i]
        log_p_V = log_softmax(model.logits(torch.tensor([context]))[0, -1], -1)
        nats = -log_p_V[target].item()
        at_position[max(first for first in at_position if first < len(context))].append(nats)
        earlier = list(pairwise(context))
        of_recall[(context[-1], target) in earlier].append(nats)

    assert quality.by_position.first == tuple(at_position)
    by_position = [sum(nats) / len(nats) for nats in at_position.values()]
    assert quality.by_position.loss == pytest.approx(by_position, rel=1e-6)
    recalled, other = of_recall[True], of_recall[False]
    assert quality.recall_fraction == len(recalled) / (len(tokens) - 1)
    assert bool(recalled) == (seq_len > 20)
    if recalled:
        assert quality.recall_loss == pytest.approx(sum(recalled) / len(recalled), rel=1e-6)
    else:
        assert quality.recall_loss is None
    assert quality.other_loss == pytest.approx(sum(other) / len(other), rel=1e-6)


def test_the_bins_of_positions_are_few_and_fine_at_the_start():
    assert bins(1024)[:12] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
    assert len(bins(1024)) == 36
    assert len(bins(65_536)) == 60


def test_evaluation_leaves_the_model_in_its_mode(corpus):
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).train()
    held_out = HeldOut(corpus, "valid", seq_len=8, batch_size=3, device=CPU)
    held_out.quality(model, nullcontext())
    assert model.training


@pytest.mark.parametrize("seq_len", [2, 7, 84])
def test_loss_by_block_of_the_text_makes_up_the_whole(corpus, seq_len, monkeypatch):
    monkeypatch.setattr("attnlab.training.evaluate._BLOCKS", 5)
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).double()
    held_out = HeldOut(corpus, "valid", seq_len=seq_len, batch_size=3, device=CPU)
    quality = held_out.quality(model, nullcontext())
    tokens, loss = quality.by_block
    assert sum(tokens) == len(corpus.valid) - 1
    assert len(tokens) == len(loss) == min(5, math.ceil((len(corpus.valid) - 1) / seq_len))
    mean = sum(n * x for n, x in zip(tokens, loss, strict=True)) / sum(tokens)
    assert mean == pytest.approx(quality.loss, abs=1e-5)
    assert quality.detailed("test")["test_loss_by_block"] == {"tokens": tokens, "loss": loss}
    assert "loss_by_block" not in quality.without_prefix()


@pytest.fixture(scope="module")
def shared_corpus(places):
    return tiny_study.base.data.load(places)


def batches_of(step, steps):
    """The batches of the next steps."""
    seen, losses = [], step.model.losses
    step.model.losses = lambda batch, **how: (seen.append(batch.clone()), losses(batch, **how))[1]
    for _ in range(steps):
        step.advance()
    return seen


def test_a_run_has_the_model_and_the_windows_of_its_seed(shared_corpus):
    config = replace(tiny_study.base, seed=3)
    step = step_of_run(config, shared_corpus, CPU)
    expected = config.model.build(shared_corpus.vocab_size, 3).state_dict()
    assert all(torch.equal(expected[name], w) for name, w in step.model.state_dict().items())
    starts = window_starts(len(shared_corpus.train), seq_len=32, batch_size=2, steps=12, seed=3)
    tokens = torch.from_numpy(shared_corpus.train.astype("int64"))
    for batch_BT1, starts_B in zip(batches_of(step, 3), starts[:3], strict=True):
        assert torch.equal(batch_BT1, torch.stack([tokens[s : s + 33] for s in starts_B]))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_is_compiled_if_the_settings_say_so(shared_corpus, compiled):
    train = replace(tiny_study.base.train, compile="on" if compiled else "auto")
    assert (
        step_of_run(replace(tiny_study.base, train=train), shared_corpus, CPU).compiled is compiled
    )


def test_a_benchmark_trains_on_one_batch():
    model = tiny_study.base.model.build(256)
    before = model.embed.weight.clone()
    tokens_BT1 = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    config = TrainConfig(steps=3, batch_size=2, seq_len=8, warmup_steps=0)
    batches = batches_of(step_of_one_batch(config, model, tokens_BT1, compiled=False), 3)
    assert all(torch.equal(batch_BT1, tokens_BT1) for batch_BT1 in batches)
    assert not torch.equal(model.embed.weight, before)


def test_the_arithmetic_of_a_run_is_three_forward_passes_over_all_its_tokens():
    config = tiny_study.base
    forward = config.model.forward_flops(256, 16)  # half the sequence, on average
    assert config.petaflops(256) == pytest.approx(3 * forward * 12 * 2 * 32 / 1e15)
