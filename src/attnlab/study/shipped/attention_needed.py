"""Is attention needed in every layer, and must it see far? Study 1's model, layer by layer.

Two things take the place of full attention, in one layer at a time, in the first layers, in the
last and in all: `identity`, one linear projection of each token, which sees no other; and
`sliding`, attention to the nearest 256 tokens alone. What the loss rises by is what full attention
in those layers is worth.
"""

from collections.abc import Iterator

from attnlab.analysis.hypotheses.question import GivesUp, Needed
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.layer_pattern import first_n, last_n
from attnlab.study.shipped.mechanisms import base, learning_rates
from attnlab.study.study import Study
from attnlab.training.run import RunConfig

N_LAYERS = base.model.n_layers
(attention,) = base.model.per_layer()[:1]


def in_place_of_attention(name: str, other: MechanismConfig) -> Iterator[tuple[str, RunConfig]]:
    """`other` in one layer, in the first and last n layers, and in all."""

    def at(*layers: int) -> RunConfig:
        return base.with_mechanisms(attention, layers=dict.fromkeys(layers, other))

    yield from ((f"{name}_at_{i}", at(i)) for i in range(N_LAYERS))
    yield from ((f"{name}_first_{n}", at(*first_n(N_LAYERS, n))) for n in range(2, N_LAYERS))
    yield from ((f"{name}_last_{n}", at(*last_n(N_LAYERS, n))) for n in range(2, N_LAYERS))
    yield name, base.with_mechanisms(other)


unmixed = dict(in_place_of_attention("identity", Identity()))
windowed = dict(
    in_place_of_attention("sliding", SlidingWindow(n_heads=4, n_kv_heads=4, window=256))
)


def named(part: str, *, of: dict[str, RunConfig]) -> tuple[str, ...]:
    return tuple(name for name in of if f"_{part}_" in name)


study = Study(
    question=__doc__ or "",
    baseline="mha",
    seeds=5,
    learning_rates=learning_rates,
    margin=0.01,
    questions=(
        Needed(text="Is attention needed at all?"),
        GivesUp(
            text="What does a model give up without it in one layer?",
            variants=named("at", of=unmixed),
        ),
        GivesUp(text="And without it in the first layers?", variants=named("first", of=unmixed)),
        GivesUp(text="Or in the last?", variants=named("last", of=unmixed)),
        GivesUp(
            text="What does it give up where one layer sees 256 tokens alone, or several do?",
            variants=tuple(windowed),
        ),
    ),
    variants={"mha": base, **unmixed, **windowed},
)
