"""Is attention needed in every layer? Study 1's model with one layer, and with all, left unmixed.

Where attention is taken out, a layer is one linear projection of each token: it sees no other. What
the loss rises by is what attention in that layer is worth.
"""

from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.question import GivesUp, Needed
from attnlab.run_config import RunConfig
from attnlab.studies.mechanisms import base, learning_rates
from attnlab.study import Study

N_LAYERS = base.model.n_layers


def without_layer(layer: int) -> RunConfig:
    """Attention in all layers but one."""
    attention = GroupedQuery(n_heads=4, n_kv_heads=4)
    return base.with_mechanisms(*(Identity() if i == layer else attention for i in range(N_LAYERS)))


study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=5,
    learning_rates=learning_rates,
    margin=0.01,
    questions=(
        Needed(text="Is attention needed at all?"),
        GivesUp(
            text="What does a model give up without it in one layer?",
            variants=tuple(f"identity_at_{i}" for i in range(N_LAYERS)),
        ),
    ),
    variants={
        "mha": base,
        **{f"identity_at_{i}": without_layer(i) for i in range(N_LAYERS)},
        "identity": base.with_mechanisms(Identity()),
    },
)
