"""Which mechanisms track a state? Parity, and products in the groups S3, A5 and S5.

After each element of a group the answer is the product of all so far. Models of two layers are
trained on 64 elements and measured on up to 256: a shortcut that was learnt for the length of
training does not hold beyond it. Variants are named GROUP_MECHANISM.

What is expected: neither a Transformer of fixed depth nor a linear recurrence with diagonal
transitions tracks S5 or A5 at every length (Merrill, Petty & Sabharwal 2024, arXiv:2404.08819), and
a recurrence with eigenvalues in [0, 1] does not even track parity (Grazzi et al. 2024,
arXiv:2411.12537). `gla`, `mamba2` and `delta` have such eigenvalues, the first two on the diagonal.
`delta_negative`, `deltanet_negative` and `product_negative` have them in (-1, 1) and should track
parity. The transition of `product_negative` is a product of two generalised Householder matrices,
which one layer needs for S3 and A5 (Siems et al. 2025, arXiv:2502.10297).
"""

from dataclasses import replace

from attnlab.analysis.hypotheses.in_range import AccuracyInRange
from attnlab.data.state_tracking import StateTracking
from attnlab.mechanisms.delta_net import DeltaNet
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gated_delta_product import GatedDeltaProduct
from attnlab.mechanisms.gla import GLA
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mamba2 import Mamba2
from attnlab.model.feedforward import Dense
from attnlab.study.shipped import mad
from attnlab.study.study import Study
from attnlab.training.config import EvalConfig
from attnlab.training.run import RunConfig

LENGTH = 64
MECHANISMS = {
    "attention": GroupedQuery(n_heads=4, n_kv_heads=4),
    "gla": GLA(n_heads=4, head_dim=32, expand_v=1.0),
    "mamba2": Mamba2(n_heads=4, head_dim=32),
    "delta": GatedDeltaNet(n_heads=4, head_dim=32),
    "delta_negative": GatedDeltaNet(n_heads=4, head_dim=32, negative_eigenvalues=True),
    "product_negative": GatedDeltaProduct(n_heads=4, head_dim=32, n_householder=2),
    "deltanet_negative": DeltaNet(n_heads=4, head_dim=32, negative_eigenvalues=True),
    "identity": Identity(),
}
TASKS = {
    "parity": StateTracking(group="parity"),
    "s3": StateTracking(group="s3"),
    "a5": StateTracking(group="a5"),
    "s5": StateTracking(group="s5"),
}


def on(task: StateTracking) -> RunConfig:
    """Return the run of attention on a task: that of `mad`, with these changes."""
    config = mad.on(task).with_mechanisms(MECHANISMS["attention"]).with_feedforward(Dense(d_ff=512))
    return replace(
        config,
        train=replace(config.train, warmup_steps=300, eval_batch_size=500),
        eval=EvalConfig(lengths=(LENGTH, 2 * LENGTH, 4 * LENGTH)),
    )


study = Study(
    question=__doc__ or "",
    baseline="parity_attention",
    seeds=4,
    lengths={
        "full": (),
        "fast": (
            "data.length=16",
            "data.train_examples=8000",
            "data.held_out_examples=400",
            "model.d_model=128",
            "train.seq_len=16",
            "train.batch_size=32",
            "train.steps=300",
            "train.eval_every=150",
            "eval.lengths=16,32",
        ),
    },
    hypotheses=(
        *(
            AccuracyInRange(
                variants=(f"parity_{name}",),
                high=0.9,
                length=4 * LENGTH,
                source="Grazzi et al. 2024 (arXiv:2411.12537): eigenvalues in [0, 1]",
            )
            for name in ("gla", "mamba2", "delta")
        ),
        *(
            AccuracyInRange(
                variants=(f"parity_{name}",),
                low=0.9,
                length=4 * LENGTH,
                source="Grazzi et al. 2024 (arXiv:2411.12537): eigenvalues in (-1, 1)",
            )
            for name in ("delta_negative", "deltanet_negative", "product_negative")
        ),
        *(  # Siems et al. trained one layer longer: no claim of theirs is judged here
            AccuracyInRange(variants=(f"{group}_product_negative",), low=0.9, length=4 * LENGTH)
            for group in ("s3", "a5")
        ),
        *(
            AccuracyInRange(
                variants=tuple(f"{group}_{name}" for group in ("a5", "s5")),
                high=0.5,
                length=4 * LENGTH,
                source="Merrill, Petty & Sabharwal 2024 (arXiv:2404.08819)",
            )
            for name in ("attention", "gla", "mamba2")
        ),
    ),
    variants={
        f"{task}_{name}": on(data).with_mechanisms(mechanism)
        for task, data in TASKS.items()
        for name, mechanism in MECHANISMS.items()
    },
)
