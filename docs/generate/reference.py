"""Reference of the Python API, of the command line, and of the source files, from the code itself.

The API has the names that `attnlab` exports, with their docstrings; the command line the help texts
of the commands; the source files the sentence that opens each.
"""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
API = """# Python API

Every name below is importable from `attnlab`, and loaded when it is first used. Every command of
the [command line](command-line.md) is one function here. The fields of all settings are listed in
[Settings](settings.md), too.
"""
COMMAND_LINE = """# Command line

`attnlab COMMAND --help` shows the same. Every command is also a function of the
[Python API](api.md). Wherever settings are accepted, `section.key=value` changes one
([list of settings](settings.md)).

| exit code | meaning |
| --: | -- |
| 0 | done |
| 1 | done, and a run failed or diverged, a property is violated, a measurement failed; or a plan \
that cannot be run |
| 2 | invalid input, in one line; nothing was run |
| 128 + n | ended by signal n: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP; what was finished \
is kept and reported, and the same command continues |

A second signal ends the command at once. A reader that closes the pipe (`| head`) ends nothing.
The name of a study stands for its folder in `results/`, or else in `published/`.
"""
SOURCE = Path(__file__).parents[2] / "src/attnlab"
SOURCE_FILES = """# Source files

Every file of `src/attnlab/` with the sentence that opens it. The packages and their layers are
explained in [Architecture](../architecture.md).
"""
ORDER = (  # of the layers, from the top; `make lint` enforces it
    *("cli", "runner", "checks", "benchmarking", "study", "inference", "reporting", "training"),
    *(
        "model",
        "data",
        "device",
        "analysis",
        "mechanisms",
        "modules",
        "kernels",
        "record",
        "config",
    ),
)


def api() -> str:
    """Return the page of the Python API: a section per package, an entry per exported name."""
    groups: dict[str, list[str]] = {heading: [] for heading in GROUPS.values()}
    for name, module in sorted(exported().items(), key=lambda item: item[0].lower()):
        package = "hypotheses" if ".hypotheses" in module else module.split(".")[1]
        groups.setdefault(GROUPS.get(package, "Other names"), []).append(name)
    parts = [API]
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


def command_line() -> str:
    """Return the page of the command line: a section per command, with arguments and options."""
    import typer.main

    from attnlab.cli import app

    group: Any = typer.main.get_command(app)
    parts = [COMMAND_LINE]
    for name in group.list_commands(None):
        command = group.commands[name]
        parts.append(f"## attnlab {name}\n\n{_text(command.help)}\n")
        parts.append(f"```\nattnlab {name} {_usage(command)}\n```\n")
        arguments = [_row(p) for p in command.params if p.param_type_name == "argument"]
        options = [_row(p) for p in command.params if p.param_type_name == "option"]
        for title, rows in (("argument", arguments), ("option", options)):
            if rows:
                head = f"| {title} | meaning | default |\n|---|---|---|"
                parts.append("\n".join([head, *rows]) + "\n")
    return "\n".join(parts)


def _usage(command: Any) -> str:
    words = [
        (word if p.required else f"[{word}]") + ("..." if p.nargs == -1 or p.multiple else "")
        for p in command.params
        if p.param_type_name == "argument"
        for word in [_metavar(p)]
    ]
    return " ".join([*words, "[OPTIONS]"])


def _metavar(parameter: Any) -> str:
    return (parameter.metavar or parameter.name).upper()


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = _metavar(parameter)
    else:
        name = ", ".join(parameter.opts)
        if not parameter.is_flag:
            name += f" {parameter.metavar or 'TEXT'}"
    return f"| `{name}` | {_cell(parameter.help)} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return _cell(shown)
    value = parameter.default
    if parameter.required:
        return "required"
    absent = value is None or value is False or value == () or "UNSET" in repr(value).upper()
    return "" if absent else f"`{value}`"


def _text(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def source_files() -> str:
    """Return the page of the source: a section per package, a row per file."""
    parts = [SOURCE_FILES, _files("attnlab", SOURCE.glob("*.py"))]
    packages = [path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()]
    parts += [
        _files(f"{name}/", (SOURCE / name).rglob("*.py")) for name in sorted(packages, key=_place)
    ]
    return "\n".join(parts)


def _files(title: str, files: Iterable[Path]) -> str:
    rows = [
        f"| `{path.relative_to(SOURCE).as_posix()}` | {opening} |"
        for path in sorted(files)
        if (opening := _opening(path))
    ]
    return f"## {title}\n\n| file | idea |\n|---|---|\n" + "\n".join(rows) + "\n"


def _opening(path: Path) -> str:
    """Return the first sentence of a file's docstring, without its final full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = " ".join(text.split("\n\n")[0].split()).split(". ")[0]
    return sentence.rstrip(".").replace("|", "\\|")


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)
