"""Generation: a trained model continues a prompt, token by token.

The prompt is read at once into the decode state of every layer; each further token takes one step,
which is a CUDA graph on CUDA.

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
    """The choice of the next token."""

    temperature: float = 1.0  # logits are divided by it; 0: the most likely token
    top_k: int | None = None  # sample from the k most likely tokens; None: from all
    top_p: float | None = None  # sample from the fewest tokens with total probability p; None: all
    seed: int = 0  # seed of the random draws

    def problems(self) -> Iterator[Problem]:
        if self.temperature < 0:
            yield Problem("temperature", f"must not be negative, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            yield Problem("top_k", f"must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield Problem("top_p", f"must be in (0, 1], got {self.top_p}")

    def choose(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """Return `tokens_B`. Of equally likely tokens, temperature 0 chooses the first."""
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
    """Yield `tokens_B`, one new token per sequence, `max_new_tokens` times.

    Args:
        model: the model; it is put in eval mode.
        prompt_BT: token ids, at least one per sequence.
        max_new_tokens: number of new tokens per sequence.
        sampling: the choice of the next token.
        autocast: the context of forward passes, such as `Trained.autocast`, which a kernel of half
            precision needs; None: compute in the dtype of the weights.

    Raises ValueError if the prompt is empty.
    """
    if not prompt_BT.shape[1]:
        raise ValueError("the prompt is empty: give at least one token")
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
            with passes:  # the graph records its casts, too
                logits_BV = decoder.step(tokens_B)


def _nucleus(logits_BV: Tensor, top_p: float) -> Tensor:
    """Return a mask: True for the fewest most likely tokens with total probability `top_p`."""
    p_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_BV = p_BV.cumsum(-1) - p_BV  # total probability of all tokens likelier than this one
    return torch.zeros_like(logits_BV, dtype=torch.bool).scatter(1, order_BV, before_BV < top_p)
