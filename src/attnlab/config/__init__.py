"""Settings: frozen, strict, to JSON and back, hashed into a run's identity."""

from attnlab.config.differences import differences
from attnlab.config.override import override, settings
from attnlab.config.own_code import load_file
from attnlab.config.present import present
from attnlab.config.problem import ConfigError, Problem, suggestion
from attnlab.config.tree import Choice, Config, own_sources
from attnlab.config.typed_length import TokenCount, token_count

__all__ = [
    "Choice",
    "Config",
    "ConfigError",
    "Problem",
    "TokenCount",
    "differences",
    "load_file",
    "override",
    "own_sources",
    "present",
    "settings",
    "suggestion",
    "token_count",
]
