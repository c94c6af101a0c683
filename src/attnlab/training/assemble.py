"""The assembly of a training step: model, tokens, windows and optimizer, ready for step 0.

Runs, the timing of runs and benchmarks all train with the step that is assembled here.
"""

import dataclasses
from contextlib import suppress
from functools import lru_cache

import torch
from torch import Tensor

from attnlab.data import Corpus
from attnlab.data.batches import window_starts
from attnlab.device.ranks import Ranks
from attnlab.kernels.cross_entropy import CHUNK
from attnlab.model.language_model import LanguageModel, ModelConfig
from attnlab.training.config import TrainConfig
from attnlab.training.quality import AnswerTable
from attnlab.training.run import RunConfig
from attnlab.training.step import TrainingStep


def step_of_run(
    config: RunConfig, corpus: Corpus, device: torch.device, ranks: Ranks | None = None
) -> TrainingStep:
    """Return the training step of a run, at step 0, on the device.

    `ranks` are the processes of the run; None: this one alone.

    The model has the initial values of the run's seed. It is compiled if the settings say so, or
    leave the choice to the arithmetic of the run.

    Raises ValueError if the training split is shorter than one window, or if a task's sequences
    have another length.
    """
    train, model = config.train, config.model.build(corpus.vocab_size, config.seed)
    answers = None
    if corpus.examples is not None:
        answers = AnswerTable(corpus.examples["train"], device, seq_len=train.seq_len)
    return TrainingStep(
        train,
        model if ranks is not None and ranks.count > 1 else model.to(device),
        torch.from_numpy(corpus.train.astype("int32")).to(device),
        window_starts(
            len(corpus.train),
            seq_len=train.seq_len,
            batch_size=train.batch_size,
            steps=train.steps,
            seed=config.seed,
        ),
        seed=config.seed,
        compiled=train.compiles_on(device.type, config.petaflops(corpus.vocab_size)),
        ranks=ranks,
        answers=answers,
    )


def memory_per_gpu(config: RunConfig, vocab_size: int, gpus: int, peak_bytes: int | None) -> int:
    """Return an estimate of the bytes of training on each of some GPUs.

    Weights, gradients and two moments in float32 are shared by the GPUs. On several, embedding,
    head and the block that is computed are whole, with their gradients. `peak_bytes` are those
    measured on one GPU, which tell the activations; None: they are estimated from the settings.
    """
    train, parts = config.train, config.model.parts(vocab_size)
    state = 16 * parts.total
    part = min(train.micro_batch_size or train.batch_size, train.batch_size)
    rows = max(1, min(part, train.batch_size // gpus))
    activations = activation_bytes(config, vocab_size, rows)
    if peak_bytes is not None:
        on_one = activation_bytes(config, vocab_size, part)
        activations = max(0, peak_bytes - state) * activations // on_one
    ends = parts.embedding + parts.head
    block = (parts.total - ends) // config.model.n_layers
    whole = 8 * (ends + block) if gpus > 1 else 0
    return state // gpus + activations + whole


def activation_bytes(config: RunConfig, vocab_size: int, rows: int) -> int:
    """Return an estimate of the bytes of a pass over some sequences, beside the state of training.

    Of every block: two inputs of norms in float32; and in the precision of a GPU two outputs of
    norms, the outputs of all projections, and half of those of the mechanism once more. Then the
    logits of a chunk of the loss, its gradients, and the weights in bfloat16. Mechanisms that keep
    scores of all pairs, or states of all chunks, take more.
    """
    model, d_model = config.model, config.model.d_model
    tokens = rows * config.train.seq_len
    low = 2 if config.train.precision_on("cuda") == "bfloat16" else 4
    fed = model.feedforward.active_params(d_model) / d_model
    blocks = [
        8 * d_model + low * (2 * d_model + 1.5 * each.cost(d_model, 1).params / d_model + fed)
        for each in model.per_layer()
    ]
    kept = sum(blocks)
    if config.train.activation_checkpointing:
        kept = 4 * d_model * len(blocks) + max(blocks)
    loss = low * min(tokens, CHUNK) * vocab_size + low * tokens * d_model
    weights = 2 * model.parts(vocab_size).total if low == 2 else 0
    return round(tokens * kept) + loss + weights


def memory_advice(train: TrainConfig, device: torch.device, gpus_per_run: int) -> str:
    """Return which settings reduce the memory of a training step, for one that had too little."""
    rows = train.batch_size // gpus_per_run
    part = min(train.micro_batch_size or rows, rows)
    settings = [f"train.micro_batch_size={part // 2}"] if part > 1 else []
    if not train.activation_checkpointing:
        settings.append("train.activation_checkpointing=true")
    if device.type == "cuda" and train.batch_size % (2 * gpus_per_run) == 0:
        settings.append(f"--gpus-per-run {2 * gpus_per_run}")
    if not settings:
        return (
            "No setting is left that takes less memory with the same results: use a larger device."
        )
    return f"The results stay the same with less memory: set {' or '.join(settings)}."


def warm_up(config: RunConfig, vocab_size: int, device: torch.device) -> None:
    """Make one step of one sequence, and discard it, if this process has not made one before.

    On a CPU the first step loads libraries, starts threads and fills the allocator. Its peak memory
    and its time are not those of the steps that follow.
    """
    if device.type == "cpu":
        _step_once(config.model, config.train, vocab_size)


@lru_cache(maxsize=256)
def _step_once(model: ModelConfig, train: TrainConfig, vocab_size: int) -> None:
    distinct = tuple(dict.fromkeys(model.per_layer()))
    small = dataclasses.replace(model, mechanisms=distinct, n_layers=len(distinct))
    one = dataclasses.replace(train, batch_size=1, extends=None, compile="off")
    one = dataclasses.replace(one, micro_batch_size=None, activation_checkpointing=False)
    tokens_BT1 = torch.zeros(1, train.seq_len + 1, dtype=torch.int64)
    with suppress(Exception):  # training raises it again, and then it is reported
        step_of_one_batch(one, small.build(vocab_size), tokens_BT1, compiled=False).advance()


def step_of_one_batch(
    config: TrainConfig, model: LanguageModel, tokens_BT1: Tensor, *, compiled: bool
) -> TrainingStep:
    """Return a training step, at step 0, that trains on the same batch in every step.

    `tokens_BT1` are token ids on the model's device, `seq_len` + 1 per sequence.
    """
    batch, window = tokens_BT1.shape
    starts_SB = (torch.arange(batch) * window).expand(config.steps, -1).numpy()
    tokens = tokens_BT1.flatten().int()
    return TrainingStep(config, model, tokens, starts_SB, seed=0, compiled=compiled)
