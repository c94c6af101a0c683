"""Settings: frozen and strict, converted to JSON and back, hashed into a run's identity."""

from attnlab.config.differences import differences, drop_unset
from attnlab.config.override import override, settings
from attnlab.config.own_code import is_own, load_file
from attnlab.config.problem import ConfigError, Problem, suggestion
from attnlab.config.tree import Choice, Config, kind_name, own_sources
from attnlab.config.values import TokenCount, token_count

__all__ = [
    "Choice",
    "Config",
    "ConfigError",
    "Problem",
    "TokenCount",
    "differences",
    "drop_unset",
    "is_own",
    "kind_name",
    "load_file",
    "override",
    "own_sources",
    "settings",
    "suggestion",
    "token_count",
]
