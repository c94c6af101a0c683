"""Which kind of mechanism? All kinds that attnlab ships, in study 1's model on WikiText-2, tuned.

One variant per kind, called after it, with four heads of width 32 (`mamba2`: eight) and the
settings of study 1 where that has the kind; chosen tokens, blocks or a window reach 256 of the
1,024. Sizes are from 4.7 to 5.4 million parameters, of which `nsa` has the most; nothing is changed
to make up for it. Recurrent kinds have a decode state of 16 to 66 KiB per layer, full attention one
of 512.

195 runs or more, 13 per variant: about 20 minutes of one H100 at study 1's 6.7 seconds per run.
"""

from attnlab.analysis.hypotheses.pairs import Better
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.delta_net import DeltaNet
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gated_delta_product import GatedDeltaProduct
from attnlab.mechanisms.gla import GLA
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.kda import KDA
from attnlab.mechanisms.lightning_attention import LightningAttention
from attnlab.mechanisms.mamba2 import Mamba2
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.moba import MOBA
from attnlab.mechanisms.nsa import NSA
from attnlab.mechanisms.rwkv7 import RWKV7
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.study import Study

OTHERS = {
    "mla": MLA(n_heads=4, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32),
    "sliding_window": SlidingWindow(n_heads=4, n_kv_heads=4, window=256),
    "deepseek_sparse": DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=256),
    "moba": MOBA(n_heads=4, n_kv_heads=4, block_size=64, top_k=4),
    "nsa": NSA(n_heads=4, n_kv_heads=4, block_size=64, top_k=4, window=128),
    "gated_delta_net": GatedDeltaNet(n_heads=4, head_dim=32),
    "gated_delta_product": GatedDeltaProduct(n_heads=4, head_dim=32, n_householder=2),
    "delta_net": DeltaNet(n_heads=4, head_dim=32),
    "kda": KDA(n_heads=4, head_dim=32),
    "gla": GLA(n_heads=4, head_dim=32),
    "mamba2": Mamba2(n_heads=8, head_dim=32, d_state=64),
    "rwkv7": RWKV7(n_heads=4, head_dim=32),
    "lightning_attention": LightningAttention(n_heads=4, head_dim=32),
    "identity": Identity(),
}

study = Study(
    question=__doc__ or "",
    baseline="grouped_query",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    hypotheses=(
        Better(
            variants=("gated_delta_net",),
            than=("mamba2", "delta_net"),
            source="Yang, Kautz & Hatamizadeh 2024 (arXiv:2412.06464): models of 1.3 B parameters",
        ),
        Better(
            variants=("kda",),
            than=("gated_delta_net",),
            source="Kimi Team 2025 (arXiv:2510.26692): models of up to 48 B parameters",
        ),
        Better(variants=("grouped_query",), than=("identity",)),
    ),
    variants={
        "grouped_query": base,
        **{name: base.with_mechanisms(mechanism) for name, mechanism in OTHERS.items()},
    },
)
