"""Which mechanisms recall? Multi-query associative recall against state, layers and window.

Each sequence holds eight pairs of a key and a value, then asks for the value of each key (Arora et
al. 2023, Zoology, arXiv:2312.04927, figure 2, at 128 tokens). The models are as there: width 64,
two layers, one head, no feed-forward layer, 8,192 tokens. What differs: positions are rotary, not
learned, and a search finds each learning rate. Training reads 512,000 sequences, drawn from
100,000; there it reads 6.4 million.

`attention_1_layer` attends in its last layer alone: no token can then find what stands after an
equal one before it. `window_32` cannot look back as far as the pairs. `delta_16`, `delta_32` and
`delta_64` are Gated DeltaNet with keys and values of so many numbers, whose state grows with their
square; `delta_1_layer` has one such layer, whose convolutions make up for the other. Longer
sequences, of up to four times the length and with up to four times as many pairs, are measured
after training.
"""

from attnlab.analysis.hypotheses.in_range import AccuracyInRange
from attnlab.analysis.hypotheses.pairs import Better
from attnlab.data.recall import MQAR
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gla import GLA
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import NoFeedForward
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.training.config import EvalConfig, TrainConfig, Tuning
from attnlab.training.run import RunConfig

base = RunConfig(
    data=MQAR(length=128, pairs=(8,), held_out_pairs=(8, 16, 32)),
    model=ModelConfig(
        mechanisms=(GroupedQuery(n_heads=1, n_kv_heads=1),),
        n_layers=2,
        d_model=64,
        feedforward=NoFeedForward(),
    ),
    train=TrainConfig(
        steps=2000,
        batch_size=256,
        seq_len=128,
        learning_rate=1e-3,
        warmup_steps=200,
        weight_decay=0.1,
        eval_every=500,
        eval_batch_size=500,
        keep="none",
    ),
    eval=EvalConfig(lengths=(128, 256, 512)),
)
attention, delta = GroupedQuery(n_heads=1, n_kv_heads=1), GatedDeltaNet(n_heads=1, head_dim=64)

study = Study(
    question=__doc__ or "",
    baseline="attention",
    seeds=4,
    tuning=Tuning(multiples=(1, 2, 4), most=4, warmup=False, challenge=False),
    lengths={
        "full": (),
        "fast": (
            "data.length=16",
            "data.pairs=4",
            "data.held_out_pairs=none",
            "data.tokenizer.vocab_size=32",
            "data.train_examples=50000",
            "data.held_out_examples=500",
            "train.seq_len=16",
            "train.batch_size=64",
            "train.steps=600",
            "train.eval_every=300",
            "eval.lengths=16,32",
        ),
    },
    hypotheses=(
        AccuracyInRange(
            variants=("attention",),
            low=0.99,
            source="Arora et al. 2023 (arXiv:2312.04927), figure 2: attention solves every length",
        ),
        AccuracyInRange(
            variants=("attention_1_layer",),
            high=0.5,
            source="Sanford, Hsu & Telgarsky 2024 (arXiv:2408.14332): one layer must be very wide",
        ),
        AccuracyInRange(variants=("identity",), high=0.01),
        AccuracyInRange(variants=("delta_1_layer",), low=0.9),
        Better(
            variants=("delta_64",),
            than=("delta_16",),
            source="Arora et al. 2024 (arXiv:2402.18668): recall grows with the state",
        ),
        Better(
            variants=("attention",),
            than=("gla_64", "window_32"),
            source="Arora et al. 2023 (arXiv:2312.04927): without attention, recall needs width",
        ),
    ),
    variants={
        "attention": base,
        "attention_1_layer": base.with_mechanisms(Identity(), attention),
        "window_32": base.with_mechanisms(SlidingWindow(n_heads=1, n_kv_heads=1, window=32)),
        "gla_64": base.with_mechanisms(GLA(n_heads=1, head_dim=64, expand_v=1.0)),
        **{
            f"delta_{width}": base.with_mechanisms(GatedDeltaNet(n_heads=1, head_dim=width))
            for width in (16, 32, 64)
        },
        "delta_1_layer": base.with_mechanisms(Identity(), delta),
        "identity": base.with_mechanisms(Identity()),
    },
)
