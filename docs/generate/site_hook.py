"""MkDocs hook: pages that are generated from the code, and links that leave the docs folder.

A link of a page that leads to a file of `published/` leads to a copy of it in the built site; one
to a report in Markdown leads to the report's page, which is made from the packed runs as
`attnlab report` makes it. So the same link works on the site, which needs no network, and where the
Markdown is read as it stands.
"""

import os
import re
import sys
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
DOCS, ROOT = HERE.parent, HERE.parent.parent

PAGES = {
    "index.md": ROOT / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
}
REPORT = "report.html"
SHOWN_BY = ("record", "analysis", "reporting")  # packages of the source
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_config(config: "MkDocsConfig") -> None:
    """Add every decision record to the navigation."""
    records = sorted(path for path in (DOCS / "decisions").glob("*.md") if path.stem != "index")
    assert config.nav is not None
    _section(config.nav, "Decisions").extend(f"decisions/{path.name}" for path in records)


def on_files(files: "Files", config: "MkDocsConfig") -> None:
    """Add the generated pages, and the result files that pages link to."""
    sys.path[:0] = [str(HERE), str(ROOT / "src")]
    import reference
    import settings
    from mkdocs.structure.files import File

    generated = {
        "reference/api.md": reference.api(),
        "reference/command-line.md": reference.command_line(),
        "reference/settings.md": settings.page(),
        "reference/source-files.md": reference.source_files(),
        **{uri: source.read_text(encoding="utf-8") for uri, source in PAGES.items()},
    }
    for uri, content in generated.items():
        files.append(File.generated(config, uri, content=content))
    sources = {uri: DOCS / uri for uri in (file.src_uri for file in files.documentation_pages())}
    linked = {
        path
        for source in ({**sources, **PAGES}).values()
        if source.exists()
        for _, target, _ in LINK.findall(source.read_text(encoding="utf-8"))
        if (path := _published(source, target)) is not None
    }
    pages = report_pages({path for path in linked if path.name == REPORT})
    for path in linked:
        made = pages.get(path, path)
        files.append(File.generated(config, _uri(path), abs_src_path=str(made)))


def report_pages(paths: Collection[Path]) -> dict[Path, Path]:
    """Return a file with the page of every report, made from the runs beside it.

    A page is kept in `build/`, and made again when its runs or the code that shows them change.
    """
    from attnlab import analyse
    from attnlab.reporting.pages import page

    pages = {path: ROOT / "build" / _uri(path) for path in paths}
    code = _latest(path for name in SHOWN_BY for path in (ROOT / "src/attnlab" / name).rglob("*.*"))
    stale = [
        path
        for path, kept in pages.items()
        if not kept.exists() or kept.stat().st_mtime < max(code, _latest(path.parent.glob("*.*")))
    ]
    if stale:
        with ProcessPoolExecutor() as pool:  # seconds of a CPU core per page
            analyses = pool.map(analyse, (path.parent for path in stale))
            for path, text in zip(stale, pool.map(page, analyses), strict=True):
                pages[path].parent.mkdir(parents=True, exist_ok=True)
                pages[path].write_text(text, encoding="utf-8")
    return pages


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    """Return the page with links that leave the docs folder pointing into the site."""
    source = PAGES.get(page.file.src_uri, DOCS / page.file.src_uri)
    return relink(markdown, source, page.file.src_uri)


def relink(markdown: str, source: Path, uri: str) -> str:
    """Return `markdown`, written at the path `source`, with its links as of the site's page `uri`.

    Links that are not to a result file or to one of `PAGES` stay, relative to the new place.
    """

    def there(link: "re.Match[str]") -> str:
        target = link[2]
        if "://" in target:
            return link[0]
        path = (source.parent / target).resolve()
        result = _published(source, target)
        pages = {page: name for name, page in PAGES.items()}
        if result is not None:
            goal = _uri(result)
        elif path in pages:
            goal = pages[path]
        elif path.is_relative_to(DOCS):
            goal = path.relative_to(DOCS).as_posix()
        else:
            return link[0]
        return link[1] + os.path.relpath(goal, Path(uri).parent).replace(os.sep, "/") + link[3]

    return LINK.sub(there, markdown)


def _published(source: Path, target: str) -> Path | None:
    """Return the file of `published/` that a link leads to; of a report in any form, its page."""
    if "://" in target:
        return None
    path = (source.parent / target).resolve()
    if not path.is_relative_to(ROOT / "published"):
        return None
    if path.stem == "report" and (path.parent / "runs.jsonl.gz").is_file():
        return path.with_name(REPORT)
    return path if path.is_file() else None


def _latest(paths: Iterable[Path]) -> float:
    """Return when the last of the files was changed, in seconds."""
    return max(path.stat().st_mtime for path in paths)


def _uri(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _section(nav: list[Any], title: str) -> list[Any]:
    """Return the list of a section's pages, at whatever depth it lies."""
    for entry in nav:
        for name, inside in entry.items() if isinstance(entry, dict) else ():
            if name == title:
                return inside
            if isinstance(inside, list) and (found := _section(inside, title)):
                return found
    return []
