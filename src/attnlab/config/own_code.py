"""Classes that the user defines outside this package, named by their file.

The contents of that file are part of a run's identity.
"""

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType


def is_own(cls: type) -> bool:
    """True if the class is defined outside this package."""
    return not cls.__module__.startswith("attnlab.")


def source_name(cls: type) -> str:
    """Return `file.py:Class`, with the path relative to the working directory if it is inside."""
    path, here = Path(inspect.getfile(cls)).resolve(), Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{shown}:{cls.__name__}"


def source_digest(cls: type) -> str:
    """Return the SHA-256 of the file that defines the class: an edit makes another mechanism."""
    return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()


def load_file(path: Path) -> ModuleType:
    """Import a Python file by its path, once. Raises ValueError if the file does not exist."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise ValueError(f"no file {path} (looked for {resolved})")
    name = f"attnlab_file_{resolved.stem}_{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
