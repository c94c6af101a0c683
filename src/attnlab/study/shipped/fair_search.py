"""Do low-rank projections, head widths, biases and RoPE scaling matter at one model size?

A mixture of experts of about 165 million parameters (67 million of them active) on WikiText-2 in
thirteen variants of its attention. As published, with one seed and 50 steps, all thirteen losses
lie within 0.11 of each other (7.757 to 7.863), `rope_small` first and `baseline` among the last.
Which of these differences exist?

The vocabulary is 49,152. WikiText-2's training split has pairs that occur twice for 47,611 tokens;
the other 1,541 ids never occur, in any variant alike. The learning rate is 1e-4 for all, as
published, so that a difference is not one of tuning. `--length fast` is the study as it stands: 50
steps of 16 sequences; `medium` is 200 of 32 and `thorough` 500 of 64, about 0.2, 1.5 and 7.4 times
the training text.

Parameters, in millions. With d = 512, 8 heads of widths K (queries, keys) and V (values) and ranks
r and s, the attention of a layer has, but for norms and biases,

    (d + 8 K) r  +  d s + 8 (K + V) s  +  8 V d        where there are latents
    d (16 K + 8 V)  +  8 V d                           where there are none

and the rest of the model 159.4: embedding 25.2, experts 134.2. The published range is 162.6 to
177.8. Three variants lie outside it:

    enhanced_small    161.8     as lora_small, 162.6, but with heads of 32 and 48 in place of 64
    rope_large        180.4     heads of 128 and 192, read out of the whole token: 2.6 a layer,
                                where those of the baseline take 1.0
    enhanced_xl       181.5     the same heads, and latents so wide that they save nothing: 2.8
"""

from attnlab.analysis.hypotheses import Hypothesis
from attnlab.analysis.hypotheses.in_range import CostInRange
from attnlab.analysis.hypotheses.ordered import Ordered, Ranked
from attnlab.analysis.hypotheses.pairs import Better, Equivalent
from attnlab.data.text import WikiText2
from attnlab.data.tokenizer import BPE
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.language_model import ModelConfig
from attnlab.model.mixture_of_experts import MixtureOfExperts
from attnlab.modules.rope_scaling import Linear
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig
from attnlab.training.run import RunConfig

base = RunConfig(
    data=WikiText2(tokenizer=BPE(vocab_size=49_152)),
    model=ModelConfig(
        mechanisms=(GroupedQuery(n_heads=8, n_kv_heads=8),),
        n_layers=8,
        d_model=512,
        feedforward=MixtureOfExperts(n_experts=8, top_k=2, d_ff=2048, balance_loss=0.01),
    ),
    train=TrainConfig(
        steps=50,
        batch_size=16,
        seq_len=512,
        learning_rate=1e-4,
        warmup_steps=5,
        weight_decay=0.01,
        log_every=10,
        eval_every=25,
        keep="weights",  # to sample and export; `train.keep=last` for runs that are extended
    ),
)


def attention(
    ranks: tuple[int, int] | None = None,  # of the queries' latent, and of keys' and values'
    widths: tuple[int, int] | None = None,  # of a query and key head, and of a value head
    *,
    bias: bool = False,
    scaling: float | None = None,  # of the positions, linearly
) -> RunConfig:
    q_lora_rank, kv_lora_rank = ranks or (None, None)
    head_dim, v_head_dim = widths or (None, None)
    return base.with_mechanisms(
        GroupedQuery(
            n_heads=8,
            n_kv_heads=8,
            q_lora_rank=q_lora_rank,
            kv_lora_rank=kv_lora_rank,
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            bias=bias,
            rope_scaling=None if scaling is None else Linear(factor=scaling),
        )
    )


variants = {
    "baseline": base,
    "lora_small": attention(ranks=(32, 64)),
    "lora_medium": attention(ranks=(64, 128)),
    "lora_large": attention(ranks=(128, 256)),
    "lora_xl": attention(ranks=(256, 512)),
    "enhanced_small": attention((32, 64), (32, 48), bias=True, scaling=1.5),
    "enhanced_medium": attention((64, 128), (64, 96), bias=True, scaling=2.0),
    "enhanced_large": attention((128, 256), (128, 192), bias=True, scaling=2.5),
    "enhanced_xl": attention((256, 512), (128, 192), bias=True, scaling=3.0),
    "rope_only": attention(widths=(64, 96), scaling=2.0),
    "rope_small": attention(widths=(32, 48), scaling=1.5),
    "rope_large": attention(widths=(128, 192), scaling=2.5),
    "bias_only": attention(bias=True),
}

PUBLISHED = (
    ("rope_small", 7.7571),
    ("enhanced_medium", 7.7807),
    ("rope_only", 7.7881),
    ("lora_small", 7.7888),
    ("bias_only", 7.7914),
    ("baseline", 7.8146),
)
SOURCE = "The study as published: one seed, 50 steps, another text and tokenizer"

published: tuple[Hypothesis, ...] = (
    Ranked(
        variant="rope_small",
        wording="`rope_small` is the best of all thirteen.",
        source=SOURCE,
    ),
    Ordered(
        variants=tuple(name for name, _ in PUBLISHED),
        wording="The order is `rope_small`, `enhanced_medium`, `rope_only`, `lora_small`, "
        "`bias_only`, `baseline`.",
        source=SOURCE,
        published=PUBLISHED,
    ),
    Better(
        variants=("rope_small",),
        than=("baseline",),
        wording="`rope_small` is better than `baseline`, by 0.0575 nats.",
        source=SOURCE,
    ),
    Ranked(
        variant="baseline",
        among="worst",
        places=6,
        wording="`baseline` is among the last: in the worse half.",
        source=SOURCE,
    ),
    Equivalent(
        margin=0.1056,
        wording="All thirteen lie within 0.1056 nats (7.7571 to 7.8627).",
        source=SOURCE,
    ),
    CostInRange(
        cost="parameters",
        low=162.6e6,
        high=177.8e6,
        resolution=0.05e6,
        wording="All have 162.6 to 177.8 M parameters.",
        source=SOURCE,
    ),
    CostInRange(
        cost="peak_memory_bytes",
        low=15.2e9,
        high=17.0e9,
        resolution=0.05e9,
        wording="All need 15.2 to 17.0 GB of memory.",
        source=f"{SOURCE}; another program; GB read as 10^9 bytes",
    ),
)

FAMILIES = {
    "baseline": ("baseline",),
    "lora": ("lora_small", "lora_medium", "lora_large", "lora_xl"),
    "enhanced": ("enhanced_small", "enhanced_medium", "enhanced_large", "enhanced_xl"),
    "rope": ("rope_only", "rope_small", "rope_large"),
    "bias": ("bias_only",),
}

study = Study(
    question=__doc__ or "",
    baseline="baseline",
    seeds=4,
    margin=0.01,
    lengths={
        "fast": (),
        "medium": (
            "train.steps=200",
            "train.batch_size=32",
            "train.warmup_steps=20",
            "train.eval_every=50",
        ),
        "thorough": (
            "train.steps=500",
            "train.batch_size=64",
            "train.warmup_steps=50",
            "train.log_every=25",
            "train.eval_every=100",
        ),
    },
    hypotheses=(
        Ranked(variant="baseline"),
        *(
            Better(variants=FAMILIES[family], than=("baseline",))
            for family in ("lora", "rope", "enhanced", "bias")
        ),
        *published,
    ),
    families=FAMILIES,
    variants=variants,
)
