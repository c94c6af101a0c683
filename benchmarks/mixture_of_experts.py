"""What does routing cost? A mixture of experts beside a dense model of the same active FLOPs.

The model of the study `fair_search`: eight experts of width 2,048, two of them for each token, and
one dense layer of width 4,096, which is as much arithmetic a token but for the router's.

    attnlab bench benchmarks/mixture_of_experts.py --what train --contexts 512 --batches 16,32,64
"""

from dataclasses import replace

from attnlab import Dense, MixtureOfExperts, RunConfig, Study
from attnlab.study.shipped.fair_search import base

experts = base.model.feedforward
assert isinstance(experts, MixtureOfExperts)


def dense(d_ff: int) -> RunConfig:
    return replace(base, model=replace(base.model, feedforward=Dense(d_ff=d_ff)))


study = Study(
    question=__doc__ or "",
    baseline="dense",
    variants={"dense": dense(experts.top_k * experts.d_ff), "experts": base},
)
