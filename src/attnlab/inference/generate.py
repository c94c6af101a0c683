"""Generation: a trained model continues a prompt, token by token.

The prompt is read at once into the decode state of every layer; each further token takes one step,
which is a CUDA graph on CUDA. If a mechanism has no `step`, the whole text is read for each token.

Shapes: B batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnlab.config import Config, Problem
from attnlab.config.problem import with_types
from attnlab.inference.decoder import Decoder
from attnlab.inference.saved_model import Trained, Which, load_run
from attnlab.model.language_model import LanguageModel

SMALLEST_TEMPERATURE = 1e-300  # a lower one samples from the same tokens: the most likely


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
        if not 0 <= self.seed < 2**63:
            yield Problem("seed", f"must be from 0 to 2^63 - 1, got {self.seed}")

    def choose(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """Return `tokens_B`. Of equally likely tokens, temperature 0 chooses the first."""
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        most_B1 = logits_BV.double().amax(-1, keepdim=True)
        # the most likely token is at 0 whatever the temperature: nothing overflows
        logits_BV = (logits_BV.double() - most_B1) / max(self.temperature, SMALLEST_TEMPERATURE)
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        if self.top_p is not None:
            logits_BV = logits_BV.masked_fill(~_nucleus(logits_BV, self.top_p), -torch.inf)
        return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]


@with_types
def generate(  # noqa: PLR0913  one parameter per option
    run: Trained | Path | str,
    prompt: str,
    *,
    samples: int = 1,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    which: Which = "last",
    device: torch.device | str = "auto",
    trust: bool = False,
    watch: Callable[[str], None] | None = None,
) -> list[str]:
    """Generate text from a trained run.

    Args:
        run: a run's folder, such as results/quickstart/mha/seed-0, or one that `export` wrote; or
            what `load_run` returned, for which `which`, `device` and `trust` are not used.
        prompt: the beginning of the text.
        samples: number of texts.
        max_new_tokens: tokens that are generated per text.
        sampling: temperature, top-k, top-p and seed; temperature 0.8 by default.
        which: weights of the last step, or of the lowest validation loss ("best").
        device: auto, cpu, cuda or cuda:1.
        trust: True to execute code that the folder carries; see `load_run`.
        watch: called with the first text piece by piece, as it is generated.

    Returns:
        The texts, each with the prompt.

    Raises:
        ValueError: the prompt is empty or no Unicode text, a number is below 1, there is no such
            run, or it has no usable checkpoint.
    """
    for name, number in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if number < 1:
            raise ValueError(f"{name}: must be at least 1, got {number}")
    trained = run if isinstance(run, Trained) else load_run(run, device, which=which, trust=trust)
    try:
        prompt_ids = trained.codec.encode([prompt])
    except UnicodeEncodeError as error:
        where = f"{prompt[error.start]!r} at {error.start}"
        raise ValueError(f"the prompt is not Unicode text ({where}): give it in UTF-8") from None
    if not len(prompt_ids):
        raise ValueError("the prompt is empty: give at least one character")
    prompt_T = torch.from_numpy(prompt_ids.astype("int64")).to(trained.model.embed.weight.device)
    texts = [prompt_ids.tolist() for _ in range(samples)]
    shown = ""
    for tokens_B in generate_tokens(
        trained.model,
        prompt_T.expand(samples, -1),
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(temperature=0.8),
        autocast=trained.autocast,
    ):
        for text, token in zip(texts, tokens_B.tolist(), strict=True):
            text.append(token)
        if watch is not None:
            # bytes that are not yet a whole character wait for the next token
            whole = trained.codec.decode(texts[0]).rstrip("\N{REPLACEMENT CHARACTER}")
            if len(whole) > len(shown):
                watch(whole[len(shown) :])
                shown = whole
    return [trained.codec.decode(text) for text in texts]


@torch.inference_mode()
def generate_tokens(
    model: LanguageModel,
    prompt_BT: Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    autocast: AbstractContextManager[object] | None = None,
) -> Iterator[Tensor]:
    """Yield `tokens_B`, the next token of every sequence, as they are generated.

    The model is put in eval mode.

    Args:
        model: a language model.
        prompt_BT: int64 token ids; every sequence has the same length.
        max_new_tokens: tokens that are generated per sequence.
        sampling: how a token is drawn from the logits.
        autocast: context of the forward passes; for a trained model `Trained.autocast`, which
            kernels of half precision need. None computes in the dtype of the weights.

    Raises:
        ValueError: the prompt has no tokens.
    """
    if not prompt_BT.shape[1]:
        raise ValueError("the prompt is empty: give at least one token")
    model.eval()
    passes = autocast or nullcontext()
    generator = torch.Generator(prompt_BT.device).manual_seed(sampling.seed)
    if not model.decodes:
        tokens_BT = prompt_BT
        for _ in range(max_new_tokens):
            with passes:
                logits_BV = model.logits(tokens_BT)[:, -1]
            yield (tokens_B := sampling.choose(logits_BV, generator))
            tokens_BT = torch.cat([tokens_BT, tokens_B[:, None]], 1)
        return
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
