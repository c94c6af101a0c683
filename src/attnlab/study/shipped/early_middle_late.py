"""Is a mixture by depth better than one attention throughout? Early local, middle GQA, late full.

Study 1's model of four layers: a window of 256 tokens in the first, grouped-query attention in the
two in the middle, multi-head or latent attention in the last. Each of the four is also trained
alone, in every layer, and the mixture upside down, which shows whether the places matter.
"""

from attnlab.analysis.hypotheses.pairs import Better, Equivalent
from attnlab.mechanism import MechanismConfig
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.shipped.mechanisms import study as study_1
from attnlab.study.study import Study
from attnlab.training.run import RunConfig

ALONE = ("mha", "mla", "gqa_2", "sliding_256")
mha, mla, gqa, local = (study_1.variants[name].model.per_layer()[0] for name in ALONE)


def by_depth(early: MechanismConfig, late: MechanismConfig) -> RunConfig:
    """`early` in the first layer, grouped-query in the middle, `late` in the last."""
    last = base.model.n_layers - 1
    return base.with_mechanisms(gqa, layers={0: early, last: late})


study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    hypotheses=(
        Better(variants=("local_gqa_mha",), than=("mha", "gqa_2", "sliding_256")),
        Better(variants=("local_gqa_mla",), than=("mla", "gqa_2", "sliding_256")),
        Equivalent(variants=("local_gqa_mha", "mha")),
        Equivalent(variants=("local_gqa_mla", "mla")),
        Better(variants=("local_gqa_mha",), than=("mha_gqa_local",)),
        Better(variants=("local_gqa_mla",), than=("mla_gqa_local",)),
    ),
    variants={
        **{name: study_1.variants[name] for name in ALONE},
        "local_gqa_mha": by_depth(local, mha),
        "local_gqa_mla": by_depth(local, mla),
        "mha_gqa_local": by_depth(mha, local),
        "mla_gqa_local": by_depth(mla, local),
    },
)
