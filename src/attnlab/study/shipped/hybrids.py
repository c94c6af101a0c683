"""How much attention does a Gated DeltaNet need, and in which layers?

A model of twelve layers and about 150 million parameters on 16.5 million tokens of books: Gated
DeltaNet in every layer, attention in every layer, and eleven hybrids of the two. As published, with
one seed, untuned rates and 300 steps, attention in two of twelve layers is best (4.055) and in all
of them worst (5.146), with none at 4.396. Does that hold when every variant has a learning rate of
its own?

The rates published are 1e-3 for pure DeltaNet and 2e-3 for the rest. Each variant is tried at its
own and at twice that, and further out for as long as the best lies at the edge: the published
search, 5e-4 to 4e-3 in steps of two, as far as a variant's losses ask for it, but at full length
and with the warm-up searched, too. 300 steps read 14.7 million tokens, within one pass; `--length
fast` is 200 steps, `thorough` 700, about two passes.

The text is a folder `books` in the data folder (ATTNLAB_DATA), with train.txt, valid.txt and
test.txt (.gz is fine); `gpt2-tokenizer` beside it holds GPT-2's vocab.json and merges.txt.
"""

from typing import Any

from attnlab.analysis.hypotheses.ordered import Ordered, Ranked
from attnlab.analysis.hypotheses.pairs import Better
from attnlab.data.text import Text
from attnlab.data.tokenizer import GPT2
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.feedforward import SwiGLU
from attnlab.model.language_model import ModelConfig
from attnlab.model.layer_pattern import every_nth, last_n, spread_evenly
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig, Tuning
from attnlab.training.run import RunConfig

N_LAYERS = 12
attention = GroupedQuery(n_heads=12, n_kv_heads=12)
delta = GatedDeltaNet(n_heads=12, head_dim=64, expand_v=1.0)

base = RunConfig(
    data=Text(paths=("books",), tokenizer=GPT2()),
    model=ModelConfig(
        mechanisms=(attention,),
        n_layers=N_LAYERS,
        d_model=768,
        feedforward=SwiGLU(d_ff=3072),
    ),
    train=TrainConfig(
        steps=300,
        batch_size=48,
        seq_len=1024,
        learning_rate=2e-3,
        warmup_steps=30,
        weight_decay=0.1,
        log_every=10,
        eval_every=100,
        eval_batch_size=48,
        keep="weights",  # to sample and export; `train.keep=last` for runs that are extended
    ),
)

attention_layers = {
    "hybrid_8": last_n(N_LAYERS, 1),
    "hybrid_sparse": spread_evenly(N_LAYERS, 2),
    "hybrid_25": (4, 8, 11),
    "hybrid_late": last_n(N_LAYERS, 4),
    "hybrid_42": (2, 4, 6, 8, 11),
    "hybrid_alternating": every_nth(N_LAYERS, 2),
    "hybrid_58": (1, 3, 5, 7, 8, 9, 11),
    "hybrid_67": (1, 2, 4, 5, 7, 8, 10, 11),
    "hybrid_75": (1, 2, 3, 5, 6, 7, 9, 10, 11),
    "hybrid_83": (1, 2, 3, 4, 5, 6, 7, 8, 10, 11),
    "hybrid_92": last_n(N_LAYERS, 11),
}
variants = {
    "deltanet": base.with_mechanisms(delta).with_learning_rate(1e-3),
    **{
        name: base.with_mechanisms(delta, layers=dict.fromkeys(layers, attention))
        for name, layers in attention_layers.items()
    },
    "transformer": base,
}

published: dict[str, Any] = {
    "source": "The study as published: one seed, 300 steps, untuned rates",
    "published": (("hybrid_sparse", 4.055), ("deltanet", 4.396), ("transformer", 5.146)),
}

study = Study(
    question=__doc__ or "",
    baseline="transformer",
    seeds=4,
    tuning=Tuning(multiples=(1, 2)),
    margin=0.01,
    lengths={
        "fast": ("train.steps=200", "train.warmup_steps=20"),
        "medium": (),
        "thorough": ("train.steps=700", "train.warmup_steps=70"),
    },
    hypotheses=(
        Ranked(
            variant="hybrid_sparse",
            wording="Attention in 17 % of the layers is best.",
            **published,
        ),
        Ranked(
            variant="transformer",
            among="worst",
            wording="The Transformer is worst, by 0.7 to 1.1 nats.",
            **published,
        ),
        Ordered(variants=("hybrid_sparse", "deltanet", "transformer"), **published),
        Better(variants=("hybrid_sparse",), than=("deltanet",)),
        # three and five layers of attention spread out, against the last four
        Better(variants=("hybrid_25", "hybrid_42"), than=("hybrid_late",)),
    ),
    variants=variants,
)
