"""Studies that train in seconds: four variants of a very small model, and twins that are tuned."""

from dataclasses import replace

from attnlab.data.stdlib import Stdlib
from attnlab.data.tokenizer import Bytes
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig, Tuning
from attnlab.training.run import RunConfig

base = RunConfig(
    data=Stdlib(tokenizer=Bytes(), max_bytes=100_000),
    model=ModelConfig(
        mechanisms=(GroupedQuery(n_heads=2, n_kv_heads=2),),
        n_layers=2,
        d_model=16,
        feedforward=Dense(d_ff=32),
        dropout=0.1,
    ),
    train=TrainConfig(
        steps=12,
        batch_size=2,
        seq_len=32,
        learning_rate=1e-2,
        warmup_steps=2,
        log_every=3,
        eval_every=6,
        eval_batch_size=64,
        checkpoint_every=4,
    ),
)

study = Study(
    question="Does the machinery work?",
    baseline="mha",
    seeds=2,
    variants={
        "mha": base,
        "mqa": base.with_mechanisms(GroupedQuery(n_heads=2, n_kv_heads=1)),
        "sparse": base.with_mechanisms(
            DeepseekSparse(
                n_heads=2,
                n_kv_heads=2,
                top_k=8,
                index_n_heads=2,
                index_head_dim=8,
                dense_warmup_steps=5,
            )
        ),
        "identity": base.with_mechanisms(Identity()),
    },
)

_longer = replace(
    base.train,
    steps=20,
    learning_rate=5e-3,
    eval_every=20,
    eval_batch_size=512,
    checkpoint_every=5,
)
_shallow = replace(base.model, n_layers=1)
twins = replace(
    study,
    seeds=1,
    variants=dict.fromkeys(("mha", "twin"), replace(base, model=_shallow, train=_longer)),
    tuning=Tuning(multiples=(1, 2), most=3, warmup=False),
)
