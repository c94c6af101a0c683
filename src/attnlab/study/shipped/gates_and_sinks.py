"""Which setting of attention pays? Study 1's model with gates, sinks or other scores.

Each variant is multi-head attention with one setting changed: a gate on the heads' outputs, a sink
in the softmax, a cap on the scores, a norm of queries and keys, another notion of position, no
share of the token's own value, or the difference of two softmaxes. `gate_and_qk_norm` has two. In
`value_residual` all layers but the first add its values to theirs; in `shared_kv` every second
layer has the keys and values of the one before. The gates have more parameters, and they and
`differential` more FLOPs than the others, `shared_kv` fewer; nothing is changed to make up for it.
"""

from attnlab.analysis.hypotheses.pairs import Better
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.study import Study

SETTINGS = {
    "mha": GroupedQuery(),
    "gate_per_head": GroupedQuery(output_gate="head"),
    "gate_per_element": GroupedQuery(output_gate="element"),
    "sinks": GroupedQuery(sinks=True),
    "softcap": GroupedQuery(logit_softcap=50.0),
    "qk_norm": GroupedQuery(qk_norm=True),
    "exclusive": GroupedQuery(exclusive=True),
    "differential": GroupedQuery(differential=True),
    "alibi": GroupedQuery(rope_head_dim=0, alibi=True),
    "half_rope": GroupedQuery(rope_head_dim=16),
    "no_position": GroupedQuery(rope_head_dim=0),
    "gate_and_qk_norm": GroupedQuery(output_gate="element", qk_norm=True),
}

study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    hypotheses=(
        Better(
            variants=("gate_per_head", "gate_per_element"),
            than=("mha",),
            source="Qiu et al. 2025 (arXiv:2505.06708): models of 1.7 B and 15 B parameters",
        ),
        Better(
            variants=("exclusive",),
            than=("mha",),
            source="Zhai 2026 (arXiv:2603.09078): models of up to 2.7 B parameters",
        ),
        Better(
            variants=("differential",),
            than=("mha",),
            source="Ye et al. 2024 (arXiv:2410.05258): models of 830 M to 13 B parameters",
        ),
        Better(variants=("mha", "alibi", "half_rope"), than=("no_position",)),
        Better(
            variants=("value_residual",),
            than=("mha",),
            source="Zhou et al. 2024 (arXiv:2410.17897)",
        ),
    ),
    variants={
        **{name: base.with_mechanisms(config) for name, config in SETTINGS.items()},
        "value_residual": base.in_every_layer(GroupedQuery(value_residual=True)),
        "shared_kv": base.with_mechanisms(GroupedQuery(), GroupedQuery(shared_kv=True)),
    },
)
