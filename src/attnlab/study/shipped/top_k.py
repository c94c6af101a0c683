"""To how many tokens must attention attend? Study 1's model with DSA's `top_k` from 128 to 512.

The lightning indexer of DeepSeek sparse attention chooses the `top_k` positions that a token
attends to, of up to 1,024 before it. Multi-head attention attends to all of them: the differences
to it are what the choice costs.
"""

from attnlab.analysis.hypotheses.ordered import Ordered
from attnlab.analysis.hypotheses.pairs import Better, Equivalent
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.study import Study

TOP_K = (512, 256, 128)
NAMES = tuple(f"top_k_{k}" for k in TOP_K)

study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    swept=("model.mechanisms.0.top_k",),
    hypotheses=(
        Ordered(variants=("mha", *NAMES)),
        *(
            Equivalent(
                variants=("mha", name),
                source="DeepSeek-AI 2025, DeepSeek-V3.2 (arXiv:2512.02556): top_k 2,048 in a model "
                "of 671 B parameters that was trained with full attention before",
            )
            for name in NAMES
        ),
        Better(variants=("mha",), than=NAMES),
    ),
    variants={
        "mha": base,
        **{
            name: base.with_mechanisms(DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=k))
            for name, k in zip(NAMES, TOP_K, strict=True)
        },
    },
)
