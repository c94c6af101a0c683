"""Which attention mechanism? Eleven of them in one small language model on WikiText-2.

Is multi-head attention still the best, or are efficient variants as good? Which has the best
quality for its cost? How much do sparse and linear attention give up? Is attention needed at all?
`gqa_1` and `mqa` are the same function: a verdict that separates them is wrong.

Two rankings by what each mechanism computes, of quality and of speed, are among the hypotheses. In
quality, the more of the past a layer sees, and the less is shared or compressed, the better: full
attention, then fewer key-value heads, then chosen tokens, then the nearest, then a memory of fixed
size, then nothing. In speed, the less a layer computes with the past, the faster. Nobody published
them, and they were written down after the first results.
"""

from attnlab.analysis.hypotheses.across_studies import NeededInEveryLayer
from attnlab.analysis.hypotheses.ordered import Ordered, OrderedByCost, Ranked
from attnlab.analysis.hypotheses.pairs import Better, Equivalent
from attnlab.data.text import WikiText2
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig, Tuning
from attnlab.training.run import RunConfig

base = RunConfig(
    data=WikiText2(),
    model=ModelConfig(
        mechanisms=(GroupedQuery(n_heads=4, n_kv_heads=4),),
        n_layers=4,
        d_model=128,
        feedforward=Dense(d_ff=512),
        dropout=0.1,
    ),
    train=TrainConfig(
        steps=1000,
        batch_size=4,
        seq_len=1024,
        learning_rate=3e-4,
        warmup_steps=100,
        weight_decay=0.01,
        log_every=50,
        eval_every=100,
    ),
)

# 3e-4 is low for so small a model and so short a run: the grid lies above it
tuning = Tuning(multiples=(4, 8, 16, 32))

EXPECTED = "A ranking by what each mechanism computes, written after the first results"
QUALITY = (
    *("mha", "mla", "gqa_2", "mqa", "sparse_512", "sparse_256", "sliding_512", "sliding_256"),
    *("linear", "identity"),
)
SPEED = (
    *("identity", "linear", "sliding_256", "sliding_512", "sparse_256", "sparse_512"),
    *("mqa", "gqa_2", "mha", "mla"),
)

study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    hypotheses=(
        Ranked(variant="mha"),
        Better(variants=("mha",), than=("sparse_512", "sparse_256", "linear")),
        Better(variants=("mha",), than=("identity",)),
        NeededInEveryLayer(study="attention_needed"),
        Ordered(
            variants=("mha", "gqa_2", "mqa"),
            source="DeepSeek-AI 2024, DeepSeek-V2 (arXiv:2405.04434): models of 7 B parameters",
            published=(("mha", 45.2), ("gqa_2", 41.2), ("mqa", 37.9)),
            measure="MMLU, %",
        ),
        Ordered(variants=QUALITY, source=EXPECTED),
        OrderedByCost(cost="step_time", variants=SPEED, source=EXPECTED),
        Equivalent(
            variants=("gqa_1", "mqa"),
            source="The definition of the study: one key-value head under two names",
        ),
    ),
    variants={
        "mha": base,
        "mla": base.with_mechanisms(
            MLA(
                n_heads=4,
                kv_lora_rank=64,
                qk_nope_head_dim=32,
                qk_rope_head_dim=32,
                v_head_dim=32,
            )
        ),
        "gqa_2": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=2)),
        "gqa_1": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=1)),
        "mqa": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=1)),
        "sliding_512": base.with_mechanisms(SlidingWindow(n_heads=4, n_kv_heads=4, window=512)),
        "sliding_256": base.with_mechanisms(SlidingWindow(n_heads=4, n_kv_heads=4, window=256)),
        "sparse_512": base.with_mechanisms(DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=512)),
        "sparse_256": base.with_mechanisms(DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=256)),
        "linear": base.with_mechanisms(GatedDeltaNet(n_heads=4, head_dim=32)),
        "identity": base.with_mechanisms(Identity()),
    },
)
