"""Which mechanism does MAD's six tasks? Recall of three kinds, copying, compression, memorization.

The tasks are those of Poli et al. 2024 (arXiv:2403.17844) at their first level of difficulty, and
so are the models: width 128, two layers, each with a feed-forward layer, batches of 128. What
differs: 3,000 steps and one learning rate, where MAD trains up to 20,000 and takes the best of six
recipes (`--tune` searches); compression is decoded by the output projection, without MAD's decoder.
Variants are named TASK_MECHANISM. 180 runs are about 20 minutes of one H100.

Published accuracies are means over levels, of which the first is the easiest. A band reaches down
to 5 points below, for the shorter training.
"""

from attnlab.analysis.hypotheses.in_range import AccuracyInRange
from attnlab.data.mad import Compression, InContextRecall, Memorization, SelectiveCopying
from attnlab.data.recall import FuzzyRecall
from attnlab.data.task import Task
from attnlab.data.tokenizer import Ids
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.gla import GLA
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mamba2 import Mamba2
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import SwiGLU
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig
from attnlab.training.run import RunConfig

TASKS: dict[str, Task] = {
    "recall": InContextRecall(tokenizer=Ids(vocab_size=16)),
    "noisy": InContextRecall(noise=0.2, noise_tokens=16),
    "fuzzy": FuzzyRecall(),
    "copying": SelectiveCopying(),
    "compression": Compression(),
    "memorization": Memorization(),
}
MECHANISMS = {
    "attention": GroupedQuery(n_heads=16, n_kv_heads=16),
    "window_32": SlidingWindow(n_heads=16, n_kv_heads=16, window=32),
    "delta": GatedDeltaNet(n_heads=4, head_dim=32),
    "gla": GLA(n_heads=4, head_dim=32, expand_v=1.0),
    "mamba2": Mamba2(n_heads=8, head_dim=32),
    "identity": Identity(),
}
PUBLISHED = {  # accuracy
    "recall_attention": 0.941,
    "noisy_attention": 0.868,
    "copying_attention": 0.996,
    "memorization_attention": 0.852,
    "recall_gla": 0.808,
    "noisy_gla": 0.816,
    "copying_gla": 0.886,
}
POLI = "Poli et al. 2024 (arXiv:2403.17844), as in table 1 of Yang et al. 2024 (arXiv:2406.06484)"


def on(task: Task) -> RunConfig:
    """Return the run of attention on a task."""
    return RunConfig(
        data=task,
        model=ModelConfig(
            mechanisms=(MECHANISMS["attention"],),
            n_layers=2,
            d_model=128,
            feedforward=SwiGLU(d_ff=256),
        ),
        train=TrainConfig(
            steps=3000,
            batch_size=128,
            seq_len=task.length,
            learning_rate=1e-3,
            warmup_steps=150,
            weight_decay=0.1,
            eval_every=1000,
            eval_batch_size=640,
            keep="none",
        ),
    )


study = Study(
    question=__doc__ or "",
    baseline="recall_attention",
    seeds=5,
    hypotheses=(
        *(
            AccuracyInRange(
                variants=(name,),
                low=round(published - 0.05, 3),
                source=f"{POLI}: {published:.1%} over all levels",
            )
            for name, published in PUBLISHED.items()
        ),
        AccuracyInRange(variants=("recall_delta", "noisy_delta", "copying_delta"), low=0.95),
        AccuracyInRange(variants=("copying_window_32",), high=0.5),
        *(
            AccuracyInRange(variants=(f"{name}_identity",), high=round(1.6 * task.chance, 3))
            for name, task in TASKS.items()
        ),
    ),
    variants={
        f"{task}_{name}": on(data).with_mechanisms(mechanism)
        for task, data in TASKS.items()
        for name, mechanism in MECHANISMS.items()
    },
)
