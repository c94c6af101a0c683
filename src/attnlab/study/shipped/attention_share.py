"""How should a layer share its parameters between attention and feed-forward?

Study 1's model, with the same number of parameters in every layer. A head of 32 has as many as 64
hidden units, so that n heads leave 768 - 64 n units: 12 heads and no feed-forward layer, 8 and 256,
4 and 512 (study 1's), and so on to no attention. In place of attention is then one linear map of
each token, which has the parameters of one head.
"""

from attnlab.analysis.hypotheses.ordered import Ranked
from attnlab.analysis.hypotheses.pairs import Better
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.model.feedforward import Dense, NoFeedForward
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.study import Study
from attnlab.training.run import RunConfig

HEADS = (1, 2, 4, 8)
HEAD_DIM, UNITS_PER_HEAD, MOST_HEADS = 32, 64, 12


def shared(mechanism: MechanismConfig, n_heads: int) -> RunConfig:
    """Study 1's run with `mechanism`, of as many parameters as `n_heads` heads."""
    d_ff = UNITS_PER_HEAD * (MOST_HEADS - n_heads)
    return base.with_mechanisms(mechanism).with_feedforward(
        Dense(d_ff=d_ff) if d_ff else NoFeedForward()
    )


def heads(n: int) -> GroupedQuery:
    return GroupedQuery(n_heads=n, n_kv_heads=n, head_dim=HEAD_DIM)


study = Study(
    question=__doc__ or "",
    baseline="heads_4",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    swept=("model.mechanisms.0.n_heads",),
    hypotheses=(
        Better(variants=("heads_4",), than=("no_attention",)),
        Better(variants=("heads_4",), than=("no_feed_forward",)),
        Better(variants=("no_feed_forward",), than=("no_attention",)),
        Ranked(variant="heads_4"),
    ),
    variants={
        "no_attention": shared(Identity(), 1),
        **{f"heads_{n}": shared(heads(n), n) for n in HEADS},
        "no_feed_forward": shared(heads(MOST_HEADS), MOST_HEADS),
    },
)
