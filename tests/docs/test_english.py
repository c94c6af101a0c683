"""What users read uses the standard terms of the field and of statistics, not private ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import reported_study
from support.pages import ROOT, WRITTEN

from attnlab.reporting.files import write_report

COUNTED = "nats|tokens|bytes|FLOPs|seeds|sequences|milliseconds|ms|rates|kernels|workers"
BANNED = [
    rf"\b({COUNTED}) an? (token|step|second|sequence|variant|run|seed|device|process|line|point)\b"
    r"(?! sees)",
    r"\bone an? (CUDA |GPU |CPU )?(device|core|gpu|worker|run|line|variant|file|row|process)\b",
    r"\ba (CUDA )?device or core\b",
    r"\bcannot be told\b",
    r"\btold (apart|from|so)\b",
    r"\b(is|are|was|were|be) told\b",
    r"\bgo(es)? unseen\b",
    r"\bsmallest difference found\b",
    r"\b(4|four) times in (5|five)\b",
    r"\bvariants share taken out\b",
    r"\bown spreads\b",
    r"\bpractically (nothing|equal|as good)\b",
    r"\boff by (2x|two) costs\b",
    r"\bwhere to be\b",
    r"\bnot worth (its|their)\b",
    r"\bnothing was started\b",
    r"\b\d+ wrong\b",
    r"\bother settings than those asked for\b",
    r"\ball the same, and says so\b",
    r"\bcan be asked for\b",
    r"\bgo on from a prompt\b",
    r"\b(un)?seal(s|ed)?\b",
    r"\bledgers?\b",
    r"\bcanvas(es)?\b",
    r"\bat a time, one\b",
]
PATTERN = re.compile("|".join(BANNED), re.IGNORECASE)
COLUMNS = re.compile(r"\|\s*(which is|interior)\s*\||<th[^>]*>\s*(which is|interior)\b")
OPENINGS = ("What", "Of", "Whether", "How", "Where", "Whatever", "Those", "That")
SOURCE = ROOT / "src/attnlab"
MODULES = sorted(SOURCE.rglob("*.py"))
TEMPLATES = sorted((SOURCE / "reporting").rglob("*.j2"))


def offences(text: str) -> list[str]:
    """Return each banned phrase with a few words around it."""
    flat = " ".join(text.split())
    return [flat[max(0, m.start() - 30) : m.end() + 30] for m in PATTERN.finditer(flat)]


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of a module and of all classes and functions in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def test_the_list_finds_what_it_is_for():
    assert offences("0.1 nats a token")
    assert offences("Runs at a time: one a CUDA device or core")
    assert offences("a and b cannot be\ntold apart")
    assert offences("2 wrong; nothing was started")
    assert not offences("0.1 nats/token; a worker per GPU; a and b are not distinguishable")


@pytest.mark.parametrize("page", WRITTEN, ids=[p.relative_to(ROOT).as_posix() for p in WRITTEN])
def test_pages(page):
    assert not offences(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a study with a report in every form."""
    folder = tmp_path_factory.mktemp("reported")
    reported_study.complete(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnlab.reporting.figures.comparison.panel_pdfs", lambda _: {})
        patch.setattr("attnlab.reporting.figures.comparison.png", lambda _: b"")
        write_report(folder)
    return folder


@pytest.mark.parametrize("form", ["report.md", "report.html", "table.tex", "comparison.svg"])
def test_reports(report, form):
    text = (report / form).read_text(encoding="utf-8")
    assert not offences(re.sub(r"<(style|script)[^>]*>.*?</\1>", "", text, flags=re.DOTALL))
    assert not COLUMNS.search(text)


def test_help_texts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs/generate"))
    import reference

    assert not offences(reference.command_line())


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(SOURCE)) for p in MODULES])
def test_docstrings_messages_and_comments(path):
    text = path.read_text(encoding="utf-8")
    assert not offences(text.replace("\n    # ", " "))
    openings = [
        f"{name}: {doc.splitlines()[0]}"
        for name, doc in docstrings(ast.parse(text))
        if re.match(rf"({'|'.join(OPENINGS)})\b", doc)
    ]
    is_a_question = path.parent.name == "shipped"  # the docstring is the study's question
    assert not openings or is_a_question


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates(path: Path):
    assert not offences(path.read_text(encoding="utf-8"))
