"""How many key-value heads does attention need? Study 1's model with 4, 2 and 1 of them.

Four are multi-head attention, one is multi-query attention. Fewer heads make the decode state and
the model smaller: nothing else grows to make up for their parameters.
"""

from attnlab.analysis.hypotheses.ordered import Ordered
from attnlab.analysis.hypotheses.pairs import Equivalent
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.study import Study

study = Study(
    question=__doc__ or "",
    baseline="kv_heads_4",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    swept=("model.mechanisms.0.n_kv_heads",),
    hypotheses=(
        Ordered(
            variants=("kv_heads_4", "kv_heads_2", "kv_heads_1"),
            source="DeepSeek-AI 2024, DeepSeek-V2 (arXiv:2405.04434): models of 7 B parameters",
            published=(("kv_heads_4", 45.2), ("kv_heads_2", 41.2), ("kv_heads_1", 37.9)),
            measure="MMLU, %",
        ),
        Equivalent(
            variants=("kv_heads_4", "kv_heads_2"),
            source="Ainslie et al. 2023 (arXiv:2305.13245): T5 of 11 B parameters, 8 groups",
        ),
    ),
    variants={
        f"kv_heads_{n}": base.with_mechanisms(GroupedQuery(n_heads=4, n_kv_heads=n))
        for n in (4, 2, 1)
    },
)
