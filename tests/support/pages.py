"""The documentation as it is written: its pages, and the code blocks and links in them."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
WRITTEN = (
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "published/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    page: str  # relative to the repository
    language: str  # "" for shell
    text: str


def blocks(language: str) -> list[Block]:
    """Return every code block of one language, in all pages."""
    return [
        Block(page.relative_to(ROOT).as_posix(), language, text)
        for page in WRITTEN
        for found, text in FENCE.findall(page.read_text(encoding="utf-8"))
        if found == language
    ]


def python_block(marker: str) -> str:
    """Return the text of the block of Python that contains `marker`; it is the same everywhere."""
    (found,) = {block.text for block in blocks("python") if marker in block.text}
    return found


class Command(NamedTuple):
    page: str
    words: list[str]  # after `attnlab`
    whole: bool  # False: named in a sentence, perhaps without its arguments
    fails: bool  # shown with a prompt and its error


def commands() -> list[Command]:
    """Return every `attnlab` command that is shown, in blocks and within sentences."""
    found = list[Command]()
    for block in blocks(""):
        for line in block.text.splitlines():
            if re.match(r"(\$ )?(\.venv/bin/)?attnlab ", line):
                words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
                found.append(Command(block.page, words, True, line.startswith("$ ")))
    for page in WRITTEN:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for span in re.findall(r"`attnlab ([a-z]+(?: [^`]+)?)`", prose):
            name = page.relative_to(ROOT).as_posix()
            found.append(Command(name, shlex.split(span), False, False))
    return found


def links(page: Path) -> list[tuple[str, str]]:
    """Return path and anchor of every link of a page that leads to another file."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose)
    return [(path, anchor) for path, anchor in found if "://" not in path]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower() for title in titles)
    return {re.sub(r"\s+", "-", title) for title in plain}
