"""A model of another size: what follows from its number of layers and its width.

From L layers of width D to L' layers of width D', with r = D' / D:

    times r      query heads, the ranks of latents, index heads, the width of feed-forward layers
    KV heads     times r, so that their share stays; one KV head stays one
    unchanged    the width of a head, windows, `top_k`, convolutions, experts, RoPE, dropout
    layers       a pattern is repeated; layers with mechanisms of their own keep their share of the
                 depth: layer i has the mechanism of layer floor(i L / L')

The number of parameters outside the embedding grows by (L' / L) r^2, but for the few that grow with
the width alone or not at all. From 4 layers of 128 to 24 of 1,024 they are up to 5 % for the
mechanisms of study 1, 8 % for KDA and Mamba-2, and 21 % for NSA, whose compression depends on the
width of a head alone. A mechanism of your own names in `grows_with_width` its fields that are
multiplied by r.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from attnlab.config import Config, ConfigError, Problem
from attnlab.mechanism import MechanismConfig
from attnlab.model.language_model import MOST_LAYERS, MOST_WIDTH, ModelConfig
from attnlab.model.layer_pattern import ByLayer

KV_HEADS, HEADS = ("n_kv_heads", "num_kv_heads"), ("n_heads", "num_heads")


def size_of(model: ModelConfig, name: str, text: str) -> tuple[int, int]:
    """Return layers and width, as typed: `size` is LAYERSxWIDTH, `scale` multiplies both.

    >>> from attnlab import GroupedQuery
    >>> model = ModelConfig(mechanisms=(GroupedQuery(),), n_layers=4, d_model=128)
    >>> size_of(model, "size", "12x512"), size_of(model, "scale", "1.5")
    ((12, 512), (6, 192))

    Raises:
        ConfigError: the text is no size, or the scaled size is no whole number.
    """
    if name == "size":
        found = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
        if not found or not int(found[1]) or not int(found[2]):
            raise _error(name, f"write LAYERSxWIDTH, such as 8x256; got {text!r}")
        return int(found[1]), int(found[2])
    try:
        factor = Fraction(text) if math.isfinite(float(text)) else Fraction(0)
    except ValueError:
        factor = Fraction(0)
    if factor <= 0:
        raise _error(name, f"write a positive number, such as 2; got {text!r}")
    layers, width = model.n_layers * factor, model.d_model * factor
    if layers.denominator != 1 or width.denominator != 1:
        now = f"{model.n_layers} layers of width {model.d_model}"
        raise _error(name, f"{now} times {text} are no whole numbers; model.size sets both")
    return int(layers), int(width)


def scaled(model: ModelConfig, n_layers: int, d_model: int, name: str = "size") -> ModelConfig:
    """Return the model with this many layers of this width, and what follows.

    Raises:
        ConfigError: a number that follows is no whole one, or the pattern of layers does not fit.
    """
    problems = list(_problems(model, n_layers, d_model))
    if problems:
        raise ConfigError(dict.fromkeys(Problem(name, message) for message in problems))
    ratio = Fraction(d_model, model.d_model)

    def wider(mechanism: MechanismConfig) -> MechanismConfig:
        return dataclasses.replace(mechanism, **_grown(mechanism, ratio))

    pattern = model.mechanisms
    if isinstance(pattern, ByLayer):
        longer = n_layers // model.n_layers
        pattern = ByLayer(
            default=pattern.default and wider(pattern.default),
            layers={
                longer * layer + place: wider(mechanism)
                for layer, mechanism in pattern.layers.items()
                for place in range(longer)
            },
        )
    else:
        pattern = tuple(map(wider, pattern))
    fed = dataclasses.replace(model.feedforward, **_grown(model.feedforward, ratio))
    return dataclasses.replace(
        model, mechanisms=pattern, n_layers=n_layers, d_model=d_model, feedforward=fed
    )


def _grown(config: MechanismConfig | Config, ratio: Fraction) -> dict[str, Any]:
    """Return the fields that grow with the width, grown; they must be whole numbers."""
    return {name: int(value) for name, value in _wanted(config, ratio).items()}


def _wanted(config: Any, ratio: Fraction) -> dict[str, Fraction]:
    found = {
        name: Fraction(value)
        for name in type(config).grows_with_width
        if isinstance(value := getattr(config, name, None), int)
    }
    heads = next((found[name] for name in HEADS if name in found), None)
    return {
        name: value if name in KV_HEADS and value == 1 != heads else value * ratio
        for name, value in found.items()
    }


def _problems(model: ModelConfig, n_layers: int, d_model: int) -> Iterator[str]:
    """Yield why a model cannot have this size."""
    if n_layers > MOST_LAYERS or d_model > MOST_WIDTH:
        yield f"at most {MOST_LAYERS:,} layers of width {MOST_WIDTH:,}; got {n_layers}x{d_model}"
        return
    layers = model.n_layers
    if isinstance(model.mechanisms, ByLayer):
        of_one = {f"layers.{layer}": one for layer, one in model.mechanisms.layers.items()}
        named = of_one | ({"default": default} if (default := model.mechanisms.default) else {})
        if n_layers % layers:
            own = f"{layers} layers, some with mechanisms of their own"
            yield f"{own}, become a multiple of {layers}; got {n_layers}"
    else:
        named = {str(i): one for i, one in enumerate(model.mechanisms)}
        if n_layers % len(named):
            yield f"a pattern of {len(named)} layers needs a multiple of that; got {n_layers}"
    parts: dict[str, Any] = {f"mechanisms.{at}": one for at, one in named.items()}
    parts["feedforward"] = model.feedforward
    fields = {
        f"{at}.{name}": (getattr(one, name), value)
        for at, one in parts.items()
        for name, value in _wanted(one, Fraction(d_model, model.d_model)).items()
    }
    grown = [was for was, value in fields.values() if value != was]
    step = math.lcm(*(model.d_model // math.gcd(model.d_model, was) for was in grown))
    for path, (was, value) in fields.items():
        if value.denominator != 1:
            yield (
                f"width {d_model} makes model.{path} {float(value):g}, from {was} at width "
                f"{model.d_model}; choose a multiple of {step}"
            )


def _error(name: str, message: str) -> ConfigError:
    return ConfigError([Problem(name, message)])
