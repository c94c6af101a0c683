"""Runs and benchmarks train with the same step; only model, tokens and windows differ."""

from dataclasses import replace

import pytest
import torch
from support import tiny_study

from attnlab.data.batches import window_starts
from attnlab.training.assemble import step_of_one_batch, step_of_run
from attnlab.training.config import TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(places):
    return tiny_study.base.data.load(places)


def batches_of(step, steps):
    """The batches of the next steps."""
    seen, losses = [], step.model.losses
    step.model.losses = lambda batch, **how: (seen.append(batch.clone()), losses(batch, **how))[1]
    for _ in range(steps):
        step.advance()
    return seen


def test_a_run_has_the_model_and_the_windows_of_its_seed(corpus):
    config = replace(tiny_study.base, seed=3)
    step = step_of_run(config, corpus, CPU)
    expected = config.model.build(corpus.vocab_size, 3).state_dict()
    assert all(torch.equal(expected[name], w) for name, w in step.model.state_dict().items())
    starts = window_starts(len(corpus.train), seq_len=32, batch_size=2, steps=12, seed=3)
    tokens = torch.from_numpy(corpus.train.astype("int64"))
    for batch_BT1, starts_B in zip(batches_of(step, 3), starts[:3], strict=True):
        assert torch.equal(batch_BT1, torch.stack([tokens[s : s + 33] for s in starts_B]))


@pytest.mark.parametrize("compiled", [True, False])
def test_a_run_is_compiled_if_the_settings_say_so(corpus, compiled):
    train = replace(tiny_study.base.train, compile="on" if compiled else "auto")
    assert step_of_run(replace(tiny_study.base, train=train), corpus, CPU).compiled is compiled


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
