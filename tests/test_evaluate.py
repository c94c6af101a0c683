"""Held-out quality is over the whole split, each token once."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import log_softmax

from attnlab.data import Places
from attnlab.data.text import Text
from attnlab.data.tokenizer import Bytes
from attnlab.evaluate import HeldOut
from attnlab.mechanisms.identity import Identity
from attnlab.model import ModelConfig


@pytest.fixture
def corpus(tmp_path):
    for split, text in (("train", "abcdefg " * 50), ("valid", "the quick brown fox jumps é " * 3)):
        (tmp_path / f"{split}.txt").write_text(text)
    return Text(paths=(str(tmp_path),), tokenizer=Bytes()).load(Places(None, tmp_path / "cache"))


@pytest.mark.parametrize("seq_len", [1, 7, 20, 83, 84, 500])
def test_every_token_but_the_first_counts_once(corpus, seq_len):
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).double()
    tokens = torch.from_numpy(corpus.valid.astype("int64"))
    held_out = HeldOut(corpus, "valid", seq_len=seq_len, batch_size=3, device=torch.device("cpu"))
    quality = held_out.quality(model, nullcontext())

    # without mixing every token is predicted from the one before, whatever its window
    log_p_NV = log_softmax(model.logits(tokens[None, :-1])[0], -1)
    nats_N = -log_p_NV.gather(1, tokens[1:, None])
    assert quality.loss == pytest.approx(nats_N.mean().item(), rel=1e-6)
    right = (log_p_NV.argmax(-1) == tokens[1:]).double().mean().item()
    assert quality.accuracy == pytest.approx(right)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    assert quality.bits_per_byte == pytest.approx(quality.loss / math.log(2), rel=1e-6)


def test_evaluation_leaves_the_model_in_its_mode(corpus):
    model = ModelConfig(mechanisms=(Identity(),), n_layers=1, d_model=16).build(256).train()
    held_out = HeldOut(corpus, "valid", seq_len=8, batch_size=3, device=torch.device("cpu"))
    held_out.quality(model, nullcontext())
    assert model.training
