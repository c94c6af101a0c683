"""Does this trainer reach nanoGPT's loss? Shakespeare by characters: six layers, width 384.

nanoGPT's `train_shakespeare_char.py` (Karpathy 2022) reports a best validation loss of 1.4697
nats/character. Model size, dropout, batches, steps, learning rate, betas and weight decay are its.

What differs: positions are rotary, not learned; norms are RMSNorm, not LayerNorm; the hidden layer
has SiLU, not GELU; tokens are bytes, of which 65 occur, so that nats/token are nats/character; the
loss is that of the whole validation split at the best of 20 evaluations, where nanoGPT averages
200 random batches of it. The band is 0.04 nats to either side: seeds and positions change the best
loss of so small a text by about 0.01 to 0.03 nats, and an error in data, optimizer or evaluation by
more. The text overfits, so that the last loss is far above the best.
"""

from attnlab.analysis.hypotheses.in_range import LossInRange
from attnlab.data.text import TinyShakespeare
from attnlab.mechanisms.grouped_query import GroupedQuery
from attnlab.model.feedforward import Dense
from attnlab.model.language_model import ModelConfig
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig
from attnlab.training.run import RunConfig

study = Study(
    question=__doc__ or "",
    baseline="gpt",
    seeds=3,
    hypotheses=(
        LossInRange(
            variants=("gpt",),
            low=1.4297,
            high=1.5097,
            best=True,
            source="Karpathy 2022, nanoGPT (github.com/karpathy/nanoGPT), README: 1.4697",
        ),
    ),
    variants={
        "gpt": RunConfig(
            data=TinyShakespeare(),
            model=ModelConfig(
                mechanisms=(GroupedQuery(n_heads=6, n_kv_heads=6),),
                n_layers=6,
                d_model=384,
                feedforward=Dense(d_ff=1536),
                dropout=0.2,
            ),
            train=TrainConfig(
                steps=5000,
                batch_size=64,
                seq_len=256,
                learning_rate=1e-3,
                warmup_steps=100,
                final_learning_rate_ratio=0.1,
                weight_decay=0.1,
                betas=(0.9, 0.99),
                eval_every=250,
                eval_batch_size=64,
                keep="none",
            ),
        )
    },
)
