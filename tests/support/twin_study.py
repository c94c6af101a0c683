"""A study that tunes the learning rates of two variants with equal settings."""

from dataclasses import replace

from attnlab.training.config import Tuning
from support import tiny_study

_train = replace(tiny_study.base.train, steps=60, eval_every=60, checkpoint_every=20)
_base = replace(tiny_study.base, train=_train)
study = replace(
    tiny_study.study,
    seeds=1,
    variants={"mha": _base, "twin": _base},
    tuning=Tuning(multiples=(1, 2), most=3, warmup=False),
)
