"""What do DeepSeek's attention features change: latents, a fused kernel, scaled positions, biases?

A mixture of experts (eight, two of them for each token) on WikiText-2 in five variants of its
attention, each with one feature more than the one before. `lora` and `flash` are the same function
on two kernels: their losses differ by rounding alone, and they are compared in time and memory.

`full` has dynamic NTK scaling with the training's length as the original one: in training, and as
far as that length, it changes nothing, and so what `full` shows there is narrow heads and biases.

The vocabulary is 32,000, that of the study `mechanisms`, so that the same tokens are predicted.
500 steps of 32 sequences read the training text about three and a half times. Each variant's recipe
is searched, from a learning rate of 5e-4 upwards.

The held-out text is also read in windows of two and four times the length of training: do the
scalings help there?
"""

from dataclasses import replace

from attnlab.analysis.hypotheses.ordered import Ranked
from attnlab.analysis.hypotheses.pairs import Better, BetterAtLength, Equivalent
from attnlab.data.text import WikiText2
from attnlab.data.tokenizer import BPE
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.language_model import ModelConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.modules.rope_scaling import Dynamic, Linear
from attnlab.study.study import Study
from attnlab.training.config import EvalConfig, TrainConfig, Tuning
from attnlab.training.run import RunConfig

SEQ_LEN = 512

plain = GroupedQuery(n_heads=8, n_kv_heads=8, kernel="math")
lora = replace(plain, q_lora_rank=32, kv_lora_rank=64)
flash = replace(lora, kernel="flash")
rope = replace(flash, rope_scaling=Linear(factor=2.0))
full = replace(
    flash,
    head_dim=32,
    v_head_dim=48,
    bias=True,
    rope_scaling=Dynamic(factor=1.5, original_max_position_embeddings=SEQ_LEN),
)

base = RunConfig(
    data=WikiText2(tokenizer=BPE(vocab_size=32_000)),
    model=ModelConfig(
        mechanisms=(plain,),
        n_layers=6,
        d_model=384,
        feedforward=MixtureOfExperts(n_experts=8, top_k=2, d_ff=1536, balance_loss=0.01),
    ),
    train=TrainConfig(
        steps=500,
        batch_size=32,
        seq_len=SEQ_LEN,
        learning_rate=5e-4,
        warmup_steps=50,
        weight_decay=0.01,
        log_every=25,
        eval_every=100,
        keep="weights",  # to sample and export; `train.keep=last` for runs that are extended
    ),
    eval=EvalConfig(lengths=(SEQ_LEN, 2 * SEQ_LEN, 4 * SEQ_LEN)),
)

study = Study(
    question=__doc__ or "",
    baseline="baseline",
    seeds=4,
    tuning=Tuning(multiples=(1, 2, 4)),
    margin=0.01,
    hypotheses=(
        Ranked(variant="baseline"),
        Better(variants=("lora", "flash"), than=("baseline",)),
        Better(variants=("rope",), than=("flash",)),
        Better(variants=("full",), than=("flash",)),
        BetterAtLength(length=2 * SEQ_LEN, variants=("rope", "full"), than=("flash",)),
        BetterAtLength(length=4 * SEQ_LEN, variants=("rope", "full"), than=("flash",)),
        Equivalent(
            variants=("lora", "flash"),
            source="The definition of the study: they differ in the kernel alone",
        ),
    ),
    variants={
        "baseline": base,
        "lora": base.with_mechanisms(lora),
        "flash": base.with_mechanisms(flash),
        "rope": base.with_mechanisms(rope),
        "full": base.with_mechanisms(full),
    },
)
