"""Reference of the Python API: every name that `attnlab` exports, with its docstring."""

import ast
from pathlib import Path

import attnlab

GROUPS = {  # package of `attnlab` -> heading
    "runner": "Run studies",
    "analysis": "Read results",
    "reporting": "Reports",
    "checks": "Check mechanisms",
    "benchmarking": "Measure costs",
    "kernels": "Choose kernels",
    "inference": "Use trained models",
    "record": "Read run folders",
    "study": "Define a study",
    "training": "Training",
    "hypotheses": "Hypotheses",
    "mechanism": "The contract of a mechanism",
    "mechanisms": "Mechanisms",
    "model": "Model and layers",
    "data": "Data",
}
INTRO = """# Python API

Every name below is importable from `attnlab`, and loaded when it is first used. Every command of
the [command line](command-line.md) is one function here. The fields of all settings are listed in
[Settings](settings.md), too.
"""


def page() -> str:
    """Return the page: a section per package, an entry per exported name."""
    groups: dict[str, list[str]] = {heading: [] for heading in GROUPS.values()}
    for name, module in sorted(exported().items(), key=lambda item: item[0].lower()):
        package = "hypotheses" if ".hypotheses" in module else module.split(".")[1]
        groups.setdefault(GROUPS.get(package, "Other names"), []).append(name)
    parts = [INTRO]
    for heading, names in groups.items():
        if names:
            parts.append(f"## {heading}\n")
            parts.extend(f"::: attnlab.{name}\n" for name in names)
    return "\n".join(parts)


def exported() -> dict[str, str]:
    """Return the module of each name that `attnlab/__init__.py` imports for type checkers."""
    tree = ast.parse(Path(attnlab.__file__).read_text(encoding="utf-8"))
    return {
        alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("attnlab.")
        for alias in node.names
        if alias.asname and alias.name != "__version__"
    }
