"""Which positions and which mechanisms keep working beyond the length of training?

The small model of the study `mechanisms`, trained on windows of 1,024 tokens and then measured on
windows of up to 16,384. A window longer than any in training gives more context to use, and
positions to use it at that were never seen.

The scalings of RoPE are on in training, too, with its length as the original one and a factor of 8.
That is not how they are used to stretch a model that was trained without: `linear`, `yarn` and
`llama3` then turn more slowly from the first step, the model learns with that, and what is asked is
whether it reads further for it. `dynamic` does nothing as far as the original length, so it is
trained as `rope` is and stretched only where it is measured: at the length of training the two are
one function. Their original length stays 1,024 where `train.seq_len` is set to another. `nope` has
no positions but the order that the causal mask gives.
"""

from dataclasses import replace

from attnlab.data.text import WikiText2
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.modules.rope_scaling import Dynamic, Linear, Llama3, Yarn
from attnlab.study.study import Study
from attnlab.training.config import EvalConfig, TrainConfig
from attnlab.training.run import RunConfig

SEQ_LEN, FACTOR = 1024, 8.0

rope = GroupedQuery(n_heads=4, n_kv_heads=4)
scalings = {
    "linear": Linear(factor=FACTOR),
    "dynamic": Dynamic(factor=FACTOR, original_max_position_embeddings=SEQ_LEN),
    "yarn": Yarn(factor=FACTOR, original_max_position_embeddings=SEQ_LEN),
    "llama3": Llama3(factor=FACTOR, original_max_position_embeddings=SEQ_LEN),
}

base = RunConfig(
    data=WikiText2(),
    model=ModelConfig(
        mechanisms=(rope,),
        n_layers=4,
        d_model=128,
        feedforward=Dense(d_ff=512),
        dropout=0.1,
    ),
    train=TrainConfig(
        steps=1000,
        batch_size=4,
        seq_len=SEQ_LEN,
        learning_rate=2.4e-3,
        warmup_steps=100,
        weight_decay=0.01,
        log_every=50,
        eval_every=100,
    ),
    eval=EvalConfig(lengths=(1024, 2048, 4096, 8192, 16_384)),
)

study = Study(
    question=__doc__ or "",
    baseline="rope",
    seeds=4,
    margin=0.01,
    variants={
        "rope": base,
        "nope": base.with_mechanisms(replace(rope, rope_head_dim=0)),
        **{
            name: base.with_mechanisms(replace(rope, rope_scaling=scaling))
            for name, scaling in scalings.items()
        },
        "sliding_256": base.with_mechanisms(SlidingWindow(n_heads=4, n_kv_heads=4, window=256)),
        "gated_delta_net": base.with_mechanisms(GatedDeltaNet(n_heads=4, head_dim=32)),
        "mla": base.with_mechanisms(MLA(n_heads=4)),
        "sparse_256": base.with_mechanisms(DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=256)),
    },
)
