"""Does the order of mechanisms hold as the model and the training grow?

Six mechanisms in models of 1.2, 2.4, 6.0 and 14.1 million parameters outside the embedding (of the
Transformer), each on a quarter of a pass, one pass and four passes of 17.6 million tokens of books:
4.4, 17.6 and 70.3 million. Which loses less per FLOP, per parameter, per token, per second; and do
two of them change places within this range?

A variant is compared with those of its own size and training length only. Recipes are searched at
one pass, in the smallest size and the third, and carried from there: of each mechanism, the rate
is the one of its settings, which falls as 1/width, times m (L D^2)^q, m and q through the two
optima. The warm-up is the same share of the steps everywhere, and the training length does not
change the rate.

Heads are 32 wide, feed-forward layers 2.5 times as wide as the model, a sequence has 1,024 tokens
and a step 16 of them. Nothing is compiled, so that the seconds of all sizes are those of one
program. `--length fast` is a tenth of every training length.

The text is a folder `books` in the data folder (ATTNLAB_DATA), with train.txt, valid.txt and
test.txt (.gz is fine). Its 8,192 tokens are trained on it once.
"""

from dataclasses import replace

from attnlab.analysis.hypotheses.pairs import Better
from attnlab.data.text import Text
from attnlab.data.tokenizer import BPE
from attnlab.mechanisms.gated_delta_net import GatedDeltaNet
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.mla import MLA
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.feedforward import SwiGLU
from attnlab.model.language_model import ModelConfig
from attnlab.record import Rung
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig, Tuning
from attnlab.training.run import RunConfig

SIZES = ((4, 160), (8, 160), (8, 256), (12, 320))  # layers and width
BUDGETS = {"short": 268, "medium": 1072, "long": 4288}  # steps of 16,384 tokens
SEARCHED = (SIZES[0], "medium"), (SIZES[2], "medium")

attention = GroupedQuery(n_heads=5, n_kv_heads=5)
delta = GatedDeltaNet(n_heads=5, head_dim=32)
latent = MLA(n_heads=5, kv_lora_rank=80, qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32)
base = RunConfig(
    data=Text(paths=("books",), tokenizer=BPE(vocab_size=8_192)),
    model=ModelConfig(
        mechanisms=(attention,),
        n_layers=4,
        d_model=160,
        feedforward=SwiGLU(d_ff=400),
    ),
    train=TrainConfig(
        steps=1072,
        batch_size=16,
        seq_len=1024,
        learning_rate=2e-3,
        warmup_steps=54,
        weight_decay=0.1,
        log_every=134,
        eval_every=134,
        compile="off",
        keep="none",
    ),
)
families = {
    "transformer": base,
    "sliding_256": base.with_mechanisms(SlidingWindow(n_heads=5, n_kv_heads=5, window=256)),
    "delta": base.with_mechanisms(delta),
    "mla": base.with_mechanisms(latent),
    "hybrid": base.with_mechanisms(delta, delta, delta, attention),
    "identity": base.with_mechanisms(Identity()),
}


def at(config: RunConfig, size: tuple[int, int], steps: int) -> RunConfig:
    """The run at another size, of this many steps: a twentieth of them warm-up."""
    every = max(134, steps // 8)
    sized = config.with_size(*size)
    return replace(
        sized,
        train=replace(
            sized.train,
            steps=steps,
            warmup_steps=round(steps / 20),
            log_every=every,
            eval_every=every,
        ),
    )


places = {
    f"{family}_{layers}x{width}_{budget}": (family, (layers, width), budget)
    for budget in BUDGETS
    for layers, width in SIZES
    for family in families
}

study = Study(
    question=__doc__ or "",
    baseline="transformer_12x320_long",
    seeds=3,
    tuning=Tuning(
        multiples=(1, 2),
        challenge=False,
        only=tuple(name for name, (_, *place) in places.items() if tuple(place) in SEARCHED),
    ),
    margin=0.01,
    lengths={"fast": ("train.steps=429",)},
    hypotheses=(
        Better(variants=("hybrid_12x320_long",), than=("transformer_12x320_long",)),
        Better(variants=("delta_12x320_long",), than=("transformer_12x320_long",)),
        Better(variants=("transformer_12x320_long",), than=("identity_12x320_long",)),
    ),
    ladder={
        name: Rung(family, "x".join(map(str, size)), budget)
        for name, (family, size, budget) in places.items()
    },
    variants={
        name: at(families[family], size, BUDGETS[budget])
        for name, (family, size, budget) in places.items()
    },
)
