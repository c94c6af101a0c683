"""Does the order of mechanisms hold on other texts? Five of study 1's on four texts.

An encyclopaedia (WikiText-2), books, source code (Python's standard library) and arithmetic. The
model, its training and the search for a recipe are those of study 1; each text has a tokenizer of
its own. Losses of different texts are not comparable, so that mechanisms are compared within each
text only. Kendall's tau says how far two texts agree on the order.

The books are a folder `books` in the data folder (ATTNLAB_DATA), with train.txt, valid.txt and
test.txt (.gz is fine); WikiText-2 lies beside it. Code and arithmetic need no files.
"""

from dataclasses import replace

from attnlab.analysis.hypotheses.ordered import SameOrder
from attnlab.data.arithmetic import Arithmetic
from attnlab.data.source import DataConfig
from attnlab.data.stdlib import Stdlib
from attnlab.data.text import Text
from attnlab.data.tokenizer import BPE
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.shipped.mechanisms import study as mechanisms
from attnlab.study.study import Study

TEXTS: dict[str, DataConfig] = {
    "wikitext2": base.data,
    "books": Text(paths=("books",)),
    "code": Stdlib(max_bytes=12_000_000, tokenizer=BPE(vocab_size=8_192)),
    "arithmetic": Arithmetic(),
}
MECHANISMS = ("mha", "mqa", "mla", "sliding_256", "linear")

study = Study(
    question=__doc__ or "",
    baseline="mha_wikitext2",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    hypotheses=(SameOrder(least=0.6),),
    variants={
        f"{name}_{text}": replace(mechanisms.variants[name], data=data)
        for text, data in TEXTS.items()
        for name in MECHANISMS
    },
)
