"""How far must attention see? Study 1's model with windows of 128 to 1,024 tokens in every layer.

A window of 1,024 tokens is full attention, because the sequences of training and validation have
1,024. Through four layers a token can be reached by others up to four windows away.
"""

from attnlab.analysis.hypotheses.ordered import Ordered
from attnlab.analysis.hypotheses.pairs import Equivalent
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.study.shipped.mechanisms import base, tuning
from attnlab.study.study import Study

WINDOWS = (1024, 512, 256, 128)

study = Study(
    question=__doc__ or "",
    baseline="window_1024",
    seeds=5,
    tuning=tuning,
    margin=0.01,
    swept=("model.mechanisms.0.window",),
    hypotheses=(
        Ordered(variants=tuple(f"window_{window}" for window in WINDOWS)),
        *(
            Equivalent(variants=("window_1024", f"window_{window}"))
            for window in WINDOWS
            if window < base.train.seq_len
        ),
    ),
    variants={
        f"window_{window}": base.with_mechanisms(
            SlidingWindow(n_heads=4, n_kv_heads=4, window=window)
        )
        for window in WINDOWS
    },
)
