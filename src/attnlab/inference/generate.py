"""Text from a trained model, token by token.

The prompt is read at once into the decode state of every layer; each further token costs one step,
which on CUDA is a recorded graph.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.config import Config, Problem
from attnlab.inference.decoder import Decoder
from attnlab.model.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """How the next token is chosen. Temperature 0 takes the most likely."""

    temperature: float = 1.0
    top_k: int | None = None  # of the k most likely tokens
    top_p: float | None = None  # of the fewest tokens whose probabilities reach p; Holtzman 2020
    seed: int = 0  # decides every draw

    def problems(self) -> Iterator[Problem]:
        if self.temperature < 0:
            yield Problem("temperature", f"must not be negative, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            yield Problem("top_k", f"must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield Problem("top_p", f"must be in (0, 1], got {self.top_p}")

    def choose(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """`tokens_B`. Of equally likely tokens temperature 0 takes the first."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        logits_BV = logits_BV.float() / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        if self.top_p is not None:
            logits_BV = logits_BV.masked_fill(~_nucleus(logits_BV, self.top_p), -torch.inf)
        return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt_BT: Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    autocast: AbstractContextManager[object] | None = None,
) -> Iterator[Tensor]:
    """Yield `tokens_B`, one more token a sequence, as they come.

    The model is put in eval mode. `autocast` is the context of its forward passes, for a trained
    one `Trained.autocast`: a kernel of half precision wants it. None computes in the dtype of the
    weights. Raises ValueError for a prompt without tokens.
    """
    if not prompt_BT.shape[1]:
        raise ValueError("the prompt is empty: give at least one token to go on from")
    model.eval()
    passes = autocast or nullcontext()
    generator = torch.Generator(prompt_BT.device).manual_seed(sampling.seed)
    with passes:
        logits_BV, states = model.prefill(prompt_BT, prompt_BT.shape[1] + max_new_tokens)
    decoder = Decoder(model, states)
    for last in range(max_new_tokens - 1, -1, -1):
        tokens_B = sampling.choose(logits_BV, generator)
        yield tokens_B
        if last:
            with passes:  # a graph records its casts too
                logits_BV = decoder.step(tokens_B)


def _nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """True for the most likely tokens, as few as reach `top_p`; the most likely is always in."""
    p_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(-1) - p_BV  # of all tokens likelier than this one
    return torch.zeros_like(logits_BV, dtype=torch.bool).scatter(1, order_BV, before_BV < top_p)
