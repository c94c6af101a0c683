"""Does training on long contexts pay, and for which mechanisms? Books in windows of 4K, 8K and 16K.

Study 1's model with full, latent, windowed and sparse attention, Gated DeltaNet, and a hybrid with
attention in the last of four layers. All lengths read 16,384 tokens per step in as many steps: four
windows of 4,096 tokens, two of 8,192 or one of 16,384. Each length is a study of its own:

    attnlab run long_context --length 4k
    attnlab run long_context --length 8k
    attnlab run long_context

Mechanisms are compared within one length. Does attention gain more on a memory of fixed size, and
on a window, where the context is longer? Is a model better for it at all? Two hypotheses read the
results at 4K. Both lengths see as many tokens of one text in as many steps, and predict the same
tokens of the held-out text; the windows differ, and with them the context that most tokens have,
and the number of sequences per step. Where context helps, the loss by position falls towards the
end of the window.

The books are a folder `books` in the data folder (ATTNLAB_DATA), with train.txt, valid.txt and
test.txt (.gz is fine); `gpt2-tokenizer` beside it holds GPT-2's vocab.json and merges.txt.
"""

from dataclasses import replace
from typing import Any

from attnlab.analysis.hypotheses.across_studies import AdvantageGrows, BetterThanInStudy
from attnlab.analysis.hypotheses.pairs import Better, Equivalent
from attnlab.data.text import Text
from attnlab.data.tokenizer import GPT2
from attnlab.mechanisms.deepseek_sparse import DeepseekSparse
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.study.shipped.mechanisms import base as of_study_1
from attnlab.study.shipped.mechanisms import study as study_1
from attnlab.study.study import Study
from attnlab.training.config import TrainConfig, Tuning
from attnlab.training.run import RunConfig

TOKENS_PER_STEP = 16_384

base = RunConfig(
    data=Text(paths=("books",), tokenizer=GPT2()),
    model=replace(of_study_1.model, dropout=0.0),
    train=TrainConfig(
        steps=300,
        batch_size=1,
        seq_len=TOKENS_PER_STEP,
        learning_rate=8e-3,
        warmup_steps=90,
        weight_decay=0.1,
        log_every=20,
        eval_every=100,
        eval_batch_size=4,
        keep="none",
    ),
)
attention, mla, delta = (
    study_1.variants[name].model.per_layer()[0] for name in ("mha", "mla", "linear")
)


def at(seq_len: int) -> tuple[str, ...]:
    """Settings of a length: as many tokens per step, and per batch of an evaluation."""
    sequences = TOKENS_PER_STEP // seq_len
    return (
        f"train.seq_len={seq_len}",
        f"train.batch_size={sequences}",
        f"train.eval_batch_size={4 * sequences}",
    )


of_4k: dict[str, Any] = {
    "study": "long_context_4k",
    "apart": ("train.seq_len", "train.batch_size"),
    "command": "attnlab run long_context --length 4k",
}

study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=4,
    tuning=Tuning(multiples=(1, 2), warmup=False),
    margin=0.01,
    lengths={"4k": at(4096), "8k": at(8192), "16k": ()},
    hypotheses=(
        Better(variants=("mha",), than=("linear",)),
        Better(variants=("mha",), than=("sliding_1024",)),
        Better(variants=("hybrid",), than=("linear", "mha")),
        Equivalent(variants=("mha", "sparse_512")),
        Equivalent(variants=("mha", "mla")),
        AdvantageGrows(variants=("mha",), than=("linear", "sliding_1024"), **of_4k),
        AdvantageGrows(variants=("mha",), than=("hybrid",), **of_4k),
        BetterThanInStudy(variants=("mha",), **of_4k),
        BetterThanInStudy(variants=("linear", "hybrid"), **of_4k),
    ),
    variants={
        "mha": base,
        "mla": base.with_mechanisms(mla),
        "sliding_1024": base.with_mechanisms(SlidingWindow(n_heads=4, n_kv_heads=4, window=1024)),
        "sparse_512": base.with_mechanisms(DeepseekSparse(n_heads=4, n_kv_heads=4, top_k=512)),
        "linear": base.with_mechanisms(delta),
        "hybrid": base.with_mechanisms(delta, delta, delta, attention),
    },
)
