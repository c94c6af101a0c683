"""Settings: frozen and strict, converted to JSON and back, hashed into a run's identity."""

from attnlab.config.dotted_paths import (
    differences,
    drop_unset,
    override,
    require_once,
    setting_at,
    settings,
)
from attnlab.config.own_code import (
    OwnCodeError,
    is_interrupt,
    is_out_of_memory,
    is_own,
    load_file,
    own_error,
)
from attnlab.config.own_kinds import (
    OwnKind,
    classes_of,
    forget_names,
    kind_name,
    own_kind,
    read_from_record,
)
from attnlab.config.own_sources import (
    carried_sources,
    digest,
    identity_sources,
    original_files,
    without_folders,
)
from attnlab.config.problem import ConfigError, Problem, naming, suggestion, visible
from attnlab.config.tree import Choice, Config, own_classes
from attnlab.config.values import expanded, names_in, texts_in, whole_number

__all__ = [
    "Choice",
    "Config",
    "ConfigError",
    "OwnCodeError",
    "OwnKind",
    "Problem",
    "carried_sources",
    "classes_of",
    "differences",
    "digest",
    "drop_unset",
    "expanded",
    "forget_names",
    "identity_sources",
    "is_interrupt",
    "is_out_of_memory",
    "is_own",
    "kind_name",
    "load_file",
    "names_in",
    "naming",
    "original_files",
    "override",
    "own_classes",
    "own_error",
    "own_kind",
    "read_from_record",
    "require_once",
    "setting_at",
    "settings",
    "suggestion",
    "texts_in",
    "visible",
    "whole_number",
    "without_folders",
]
