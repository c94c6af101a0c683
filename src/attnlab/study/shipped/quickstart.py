"""A first look in minutes: study 1's eleven mechanisms, small, on Python's own standard library.

Three seeds each on two CPU cores. The text is always there: nothing is downloaded.
"""

from attnlab.analysis.hypotheses.ordered import Ranked
from attnlab.analysis.hypotheses.pairs import Better
from attnlab.data.stdlib import Stdlib
from attnlab.data.tokenizer import Bytes
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig
from attnlab.training.run import RunConfig

base = RunConfig(
    data=Stdlib(tokenizer=Bytes(), max_bytes=500_000),
    model=ModelConfig(
        mechanisms=(GroupedQuery(n_heads=4, n_kv_heads=4),),
        n_layers=2,
        d_model=64,
        feedforward=Dense(d_ff=256),
    ),
    train=TrainConfig(
        steps=200,
        batch_size=8,
        seq_len=128,
        learning_rate=5e-3,
        warmup_steps=40,
        weight_decay=0.01,
        log_every=25,
        eval_every=100,
        checkpoint_every=100,
    ),
)

study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=3,
    hypotheses=(
        Ranked(variant="mha"),
        Better(variants=("mha",), than=("sparse_64", "sparse_32", "linear")),
        Better(variants=("mha",), than=("identity",)),
    ),
    variants={  # slow ones first, so that no core is idle for long at the end
        "mha": base,
        "linear": base.with_mechanisms(GatedDeltaNet(n_heads=4, head_dim=16)),
        "sparse_64": base.with_mechanisms(
            DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=64, index_head_dim=16)
        ),
        "sparse_32": base.with_mechanisms(
            DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=32, index_head_dim=16)
        ),
        "mla": base.with_mechanisms(
            MLA(
                n_heads=4,
                kv_lora_rank=32,
                qk_nope_head_dim=16,
                qk_rope_head_dim=16,
                v_head_dim=16,
            )
        ),
        "gqa_2": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=2)),
        "gqa_1": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=1)),
        "mqa": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=1)),
        "sliding_64": base.with_mechanisms(SlidingWindow(n_heads=4, n_kv_heads=4, window=64)),
        "sliding_32": base.with_mechanisms(SlidingWindow(n_heads=4, n_kv_heads=4, window=32)),
        "identity": base.with_mechanisms(Identity()),
    },
)
