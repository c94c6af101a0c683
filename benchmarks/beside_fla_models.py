"""Training at the size of the study `hybrids`: attnlab beside flash-linear-attention's own models.

    python benchmarks/beside_fla_models.py [--only deltanet,hybrid_sparse] [--batch 48] [--json F]

Twelve layers of 768, 1,024 tokens a sequence, on one CUDA device, both sides in one run, random
tokens, medians as `attnlab bench` takes them. For each variant tokens a second and peak memory of

- `fla`: flash-linear-attention's model class of the same sizes, weights in bfloat16, its fused
  norms, SwiGLU and linear cross-entropy, AdamW, clipping; eager, as its examples train it. Its
  attention layer wants the package flash-attn, in whose place torch's fused attention stands.
- `plain`: a model of the same sizes as a first script writes it, the whole of it compiled, its
  loss of float32 logits: bfloat16 autocast over float32 weights, fused AdamW, clipping. Multi-head
  attention alone.
- `attnlab`: the trainer's step, bfloat16 autocast over float32 weights, one recorded CUDA graph.
- `compiled`: the same with the model compiled, as the study runs it.

`gpt2` is the Transformer with GELU in place of SwiGLU: GPT-2's arithmetic, to be held against
others' rates for it. A side that cannot run says why, and the rest goes on.
"""

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, scaled_dot_product_attention, silu

from attnlab.data.batches import window_starts
from attnlab.device.measuring import MOST_CALLS, PeakMemory, time_calls
from attnlab.model.feedforward import Dense
from attnlab.record import write_json
from attnlab.study.shipped.hybrids import N_LAYERS, attention_layers
from attnlab.study.targets import load_study
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep, autocast

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOOP_STEPS = 400  # of a whole training loop
STEPS = LOOP_STEPS + 2 * MOST_CALLS  # all that a step may be asked for


def attnlab_step(name: str, config: RunConfig, *, compiled: bool) -> Callable[[], object]:
    del name  # the settings say all
    return warm(config, DEVICE, compiled=compiled and DEVICE.type == "cuda")[0].advance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="deltanet,hybrid_sparse,transformer,gpt2")
    parser.add_argument("--sides", default="fla,plain,attnlab,compiled")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed steps, about")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    variants, rows = dict(load_study("hybrids").variants), []
    of_transformer = variants["transformer"].model
    gpt2 = replace(of_transformer, feedforward=Dense(d_ff=4 * of_transformer.d_model))
    variants["gpt2"] = replace(variants["transformer"], model=gpt2)
    print(f"{'variant':15}{'side':>10}{'ms/step':>10}{'tokens/s':>12}{'peak GiB':>10}")
    for name in options.only.split(","):
        config = variants[name]
        config = replace(config, train=replace(config.train, batch_size=options.batch))
        for side in options.sides.split(","):
            try:
                took = measured(partial(SIDES[side], name, config), config, options.seconds)
            except (RuntimeError, ImportError, ValueError, TypeError) as error:
                print(f"{name:15}{side:>10}  {type(error).__name__}: {str(error)[:300]}")
                continue
            finally:
                gc.collect()  # a model and its optimizer refer to each other
                torch.cuda.empty_cache()
            rows.append({"variant": name, "side": side} | took)
            print(f"{name:15}{side:>10}{took['ms']:10.2f}{took['tokens_per_second']:12,.0f}"
                  f"{took['peak_bytes'] / 2**30:10.1f}", flush=True)  # fmt: skip
    if options.json:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        write_json(options.json, facts | {"batch": options.batch, "rows": rows})


def measured(
    started: Callable[[], Callable[[], object]], config: RunConfig, seconds: float
) -> dict[str, float]:
    memory = PeakMemory(DEVICE)
    with memory.measuring():
        step = started()
        took = time_calls(step, DEVICE, seconds).seconds
    tokens = config.train.batch_size * config.train.seq_len
    return {
        "ms": 1000 * took,
        "tokens_per_second": tokens / took,
        "peak_bytes": memory.peak_bytes or 0,
    }


def fla_step(name: str, config: RunConfig) -> Callable[[], object]:
    """An update of flash-linear-attention's model on a batch of random tokens."""
    model = fla_model(name, config).to(DEVICE, torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    shape = config.train.batch_size, config.train.seq_len
    tokens_BT = torch.randint(config.data.tokenizer.vocab_size, shape, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens_BT, labels=tokens_BT).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def fla_model(name: str, config: RunConfig) -> torch.nn.Module:
    import fla.layers.attn
    from fla.models import (
        GatedDeltaNetConfig,
        GatedDeltaNetForCausalLM,
        TransformerConfig,
        TransformerForCausalLM,
    )

    fla.layers.attn.flash_attn_func = torchs_attention
    feedforward: Any = config.model.feedforward
    if name == "gpt2":
        raise ValueError("it has no class without SwiGLU")
    shared = {
        "hidden_size": config.model.d_model,
        "num_hidden_layers": N_LAYERS,
        "intermediate_size": feedforward.d_ff,
        "vocab_size": config.data.tokenizer.vocab_size,
        "tie_word_embeddings": True,
        "fuse_cross_entropy": False,
        "fuse_linear_cross_entropy": True,
    }
    if name == "transformer":
        return TransformerForCausalLM(TransformerConfig(num_heads=12, **shared))
    layers = list(attention_layers.get(name, ()))
    attention = {"layers": layers, "num_heads": 12, "window_size": None} if layers else None
    return GatedDeltaNetForCausalLM(
        GatedDeltaNetConfig(num_heads=12, head_dim=64, expand_v=1.0, attn=attention, **shared)
    )


class PlainBlock(nn.Module):
    """Attention with rotary positions, and SwiGLU; each behind a norm, and added to its input."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out, self.gate, self.up, self.down = (
            nn.Linear(columns, rows, bias=False)
            for columns, rows in (
                *((width, 3 * width), (width, width)),
                *((width, hidden), (width, hidden), (hidden, width)),
            )
        )

    def forward(self, x_BTD: Tensor, turn_TK: tuple[Tensor, Tensor]) -> Tensor:
        qkv = self.qkv(self.norm_1(x_BTD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = (x * turn_TK[0] + half_turned(x) * turn_TK[1] for x in (q, k))
        y = scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x_BTD = x_BTD + self.out(y.transpose(1, 2).flatten(2))
        h_BTD = self.norm_2(x_BTD)
        return x_BTD + self.down(silu(self.gate(h_BTD)) * self.up(h_BTD))


class PlainModel(nn.Module):
    """The loss of a Transformer of the sizes of a variant, with tied embeddings."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model: Any = config.model
        heads, width = model.mechanisms[0].n_heads, model.d_model
        self.embed = nn.Embedding(config.data.tokenizer.vocab_size, width)
        sizes = width, heads, model.feedforward.d_ff
        self.blocks = nn.ModuleList(PlainBlock(*sizes) for _ in range(model.n_layers))
        self.norm = nn.RMSNorm(width)
        rate_K = 10_000.0 ** -torch.arange(0, 1, 2 * heads / width)
        angle_TK = torch.outer(torch.arange(config.train.seq_len), rate_K).repeat(1, 2)
        self.register_buffer("turn", torch.stack((angle_TK.cos(), angle_TK.sin())))

    def forward(self, tokens_BT1: Tensor) -> Tensor:
        x_BTD = self.embed(tokens_BT1[:, :-1])
        for block in self.blocks:
            x_BTD = block(x_BTD, self.turn)
        logits_BTV = linear(self.norm(x_BTD), self.embed.weight)
        return cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT1[:, 1:].flatten())


def half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def plain_step(name: str, config: RunConfig) -> Callable[[], object]:
    """An update of the plain model on a batch of random tokens."""
    if name not in ("transformer", "mha"):
        raise ValueError("it is multi-head attention with SwiGLU")
    model = PlainModel(config).to(DEVICE).train()
    run = torch.compile(model) if DEVICE.type == "cuda" else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=0.1, fused=DEVICE.type == "cuda"
    )
    shape = config.train.batch_size, config.train.seq_len + 1
    tokens_BT1 = torch.randint(config.data.tokenizer.vocab_size, shape, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(config.train, DEVICE):
            loss = run(tokens_BT1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def torchs_attention(q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, **_: object) -> Tensor:
    """Causal over everything, with the arguments of flash-attn's function."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
    return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def warm(config: RunConfig, device: torch.device, *, compiled: bool) -> tuple[TrainingStep, float]:
    """Return a training step that has been recorded, and the seconds that took."""
    train_config = replace(config.train, steps=STEPS, warmup_steps=0)
    vocab_size = config.data.tokenizer.vocab_size
    tokens = random_tokens(vocab_size, device)
    starts = window_starts(
        len(tokens), seq_len=train_config.seq_len, batch_size=train_config.batch_size,
        steps=STEPS, seed=0,
    )  # fmt: skip
    model = config.model.build(vocab_size).to(device).train()
    step = TrainingStep(train_config, model, tokens, starts, seed=0, compiled=compiled)
    started = time.perf_counter()
    while not step.warm:
        step.advance()
    step.means(0, step.step)  # waits
    return step, time.perf_counter() - started


def time_plain(config: RunConfig, device: torch.device, seconds: float) -> float:
    """Return the milliseconds of the eager loop of a first script, with the same model."""
    vocab_size, t = config.data.tokenizer.vocab_size, config.train
    tokens = random_tokens(vocab_size, device)
    model = config.model.build(vocab_size).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)

    def step() -> None:
        start = torch.randint(len(tokens) - t.seq_len - 1, (t.batch_size,))
        batch = torch.stack([tokens[s : s + t.seq_len + 1] for s in start.tolist()]).long()
        optimizer.zero_grad()
        with autocast(t, device):
            loss = cross_entropy(model.logits(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return 1000 * time_calls(step, device, seconds).seconds


def random_tokens(vocab_size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (1 << 20,), generator=generator).int().to(device)


SIDES: dict[str, Callable[[str, RunConfig], Callable[[], object]]] = {
    "fla": fla_step,
    "plain": plain_step,
    "attnlab": partial(attnlab_step, compiled=False),
    "compiled": partial(attnlab_step, compiled=True),
}

if __name__ == "__main__":
    main()
