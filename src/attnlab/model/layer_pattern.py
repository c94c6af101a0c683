"""The mechanism of every layer: a hybrid model, and where in it a few layers go.

    {"default": {"kind": "gated_delta_net"}, "layers": {"5": {...}, "11": {...}}}

`ByLayer` gives some layers a mechanism of their own; the alternative is a tuple that is tiled over
the layers. The functions return layer indices, ascending, for `with_mechanisms(layers=...)`:

    base.with_mechanisms(GatedDeltaNet(), layers=dict.fromkeys(spread_evenly(12, 2), attention))

Layers are numbered from 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from attnlab.config import Config, Problem
from attnlab.config.problem import with_types
from attnlab.mechanism import MechanismConfig


@dataclass(frozen=True, kw_only=True)
class ByLayer(Config):
    """Mechanisms by layer: `layers` have their own, all others have the default.

    >>> from attnlab import GatedDeltaNet, Identity
    >>> pattern = ByLayer(default=GatedDeltaNet(), layers={2: Identity()})
    >>> [mechanism.kind() for mechanism in pattern.per_layer(4)]
    ['gated_delta_net', 'gated_delta_net', 'identity', 'gated_delta_net']
    """

    default: MechanismConfig | None = None  # mechanism of all other layers; None: no other
    layers: Mapping[int, MechanismConfig]  # mechanism by layer, from 0

    def per_layer(self, n_layers: int) -> list[MechanismConfig]:
        """Return the mechanism of every layer of a model for which `problems_in` finds nothing."""
        found = [self.layers.get(layer, self.default) for layer in range(n_layers)]
        return [mechanism for mechanism in found if mechanism is not None]

    def problems_in(self, n_layers: int, d_model: int) -> Iterator[Problem]:
        """Yield the settings that a model of `n_layers` layers and this width cannot have."""
        last = n_layers - 1
        for layer in self.layers:
            if not 0 <= layer <= last:
                yield Problem(f"layers.{layer}", f"no such layer: layers are 0 to {last}")
        missing = [str(layer) for layer in range(n_layers) if layer not in self.layers]
        if self.default is None and missing:
            some = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
            yield Problem("default", f"needed for the layers that `layers` leaves out: {some}")
        named = {f"layers.{layer}": mechanism for layer, mechanism in self.layers.items()}
        for path, mechanism in {"default": self.default, **named}.items():
            for problem in mechanism.problems_at(d_model) if mechanism else ():
                yield problem.under(path)


def layers_of(
    mechanisms: tuple[MechanismConfig, ...] | ByLayer, n_layers: int
) -> list[MechanismConfig]:
    """Return the mechanism of every layer, in order; a tuple is repeated."""
    if isinstance(mechanisms, ByLayer):
        return mechanisms.per_layer(n_layers)
    return list(islice(cycle(mechanisms), n_layers))


def problems_in(
    mechanisms: tuple[MechanismConfig, ...] | ByLayer, n_layers: int, d_model: int
) -> Iterator[Problem]:
    """Yield what a model of `n_layers` layers and this width cannot have."""
    if isinstance(mechanisms, ByLayer):
        yield from mechanisms.problems_in(n_layers, d_model)
        return
    if not mechanisms:
        yield Problem("", "give at least one")
    elif len(mechanisms) > n_layers >= 1:
        yield Problem("", f"{len(mechanisms)} for n_layers {n_layers}: some are in no layer")
    for i, mechanism in enumerate(mechanisms):
        for problem in mechanism.problems_at(d_model):
            yield problem.under(str(i))


def path_of_layer(mechanisms: tuple[MechanismConfig, ...] | ByLayer, layer: int) -> str:
    """Return the place of a layer's mechanism in the settings.

    >>> from attnlab import Identity
    >>> path_of_layer((Identity(), Identity()), 3), path_of_layer(ByLayer(layers={}), 3)
    ('1', 'default')
    """
    if isinstance(mechanisms, ByLayer):
        return f"layers.{layer}" if layer in mechanisms.layers else "default"
    return str(layer % len(mechanisms))


def shortest_tile(layers: Sequence[MechanismConfig]) -> tuple[MechanismConfig, ...]:
    """Return the shortest tuple whose whole repeats give these layers: one form for one model.

    >>> from attnlab import GatedDeltaNet, Identity
    >>> len(shortest_tile([Identity(), GatedDeltaNet()] * 2))
    2
    """
    divisors = (n for n in range(1, len(layers) + 1) if len(layers) % n == 0)
    n = next(n for n in divisors if all(layers[i] == layers[i % n] for i in range(len(layers))))
    return tuple(layers[:n])


@with_types
def every_nth(n_layers: int, n: int) -> tuple[int, ...]:
    """Return the last of every n layers.

    >>> every_nth(12, 4)
    (3, 7, 11)
    """
    if n < 1:
        raise ValueError(f"every n-th layer: n must be at least 1, got {n}")
    return tuple(range(n - 1, n_layers, n))


@with_types
def first_n(n_layers: int, n: int) -> tuple[int, ...]:
    """Return the first n layers.

    >>> first_n(12, 3)
    (0, 1, 2)
    """
    return tuple(range(_checked(n_layers, n)))


@with_types
def last_n(n_layers: int, n: int) -> tuple[int, ...]:
    """Return the last n layers.

    >>> last_n(12, 4), last_n(12, 0)
    ((8, 9, 10, 11), ())
    """
    return tuple(range(n_layers - _checked(n_layers, n), n_layers))


@with_types
def spread_evenly(n_layers: int, n: int) -> tuple[int, ...]:
    """Return the last layer of each of n groups, whose sizes differ by one at most.

    >>> spread_evenly(12, 2), spread_evenly(12, 5), spread_evenly(12, 0)
    ((5, 11), (1, 3, 6, 8, 11), ())
    """
    return tuple(group * n_layers // n - 1 for group in range(1, _checked(n_layers, n) + 1))


@with_types
def first_middle_last(n_layers: int) -> tuple[int, ...]:
    """Return the first, the middle and the last layer; of two in the middle, the lower one.

    >>> first_middle_last(12), first_middle_last(5), first_middle_last(2)
    ((0, 5, 11), (0, 2, 4), (0, 1))
    """
    return tuple(sorted({0, (n_layers - 1) // 2, n_layers - 1}))


def _checked(n_layers: int, n: int) -> int:
    if not 0 <= n <= n_layers:
        raise ValueError(f"{n} of {n_layers} layers: must be from 0 to {n_layers}")
    return n
