"""Reference of the source: every file, with the sentence that opens it."""

import ast
from collections.abc import Iterable
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src/attnlab"
INTRO = """# Source files

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


def page() -> str:
    """Return the page: a section per package, a row per file."""
    parts = [INTRO, _section("attnlab", SOURCE.glob("*.py"))]
    packages = [path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()]
    parts += [
        _section(f"{name}/", (SOURCE / name).rglob("*.py")) for name in sorted(packages, key=_place)
    ]
    return "\n".join(parts)


def _section(title: str, files: Iterable[Path]) -> str:
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
