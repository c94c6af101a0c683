"""Is attention needed in every layer, and must it see far? Study 1's model, layer by layer.

Two things take the place of full attention, in one layer at a time, in the first layers, in the
last and in all: `identity`, one linear projection of each token, which sees no other; and
`sliding`, attention to the nearest 256 tokens alone. What the loss rises by is what full attention
in those layers is worth.
"""

from collections.abc import Iterator

from attnlab.analysis.hypotheses.pairs import Better
from attnlab.mechanism import MechanismConfig
from attnlab.mechanisms.identity import Identity
from attnlab.mechanisms.sliding_window import SlidingWindow
from attnlab.model.layer_pattern import first_n, last_n
from attnlab.study.shipped.mechanisms import base, tuning
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
    tuning=tuning,
    margin=0.01,
    hypotheses=tuple(
        Better(variants=("mha",), than=others)
        for others in (
            ("identity",),
            *(named(part, of=unmixed) for part in ("at", "first", "last")),
            tuple(windowed),
        )
    ),
    variants={"mha": base, **unmixed, **windowed},
)
