"""Make a text per language of Debian's translated manual pages, for studies on several texts.

    sudo apt-get install groff-base manpages-de manpages-fr manpages-es
    python benchmarks/languages.py corpora/languages de fr es
    attnlab run mechanisms data=text data.paths=corpora/languages/de --out results/german

Without root, `apt-get download manpages-de` and `dpkg-deb -x manpages-de_*.deb pages` unpack a
package, and `--pages pages/usr/share/man` reads it. Without languages, all that have pages are
made; `en` are the original pages. Nothing is downloaded here.

Each language has a folder with `pages.jsonl`: a line per page, in the order of their names, with
the page's `name` and its `text` as groff sets it, a paragraph per line. Pages that only refer to
another and links are left out, and so is a paragraph of 40 characters or more that an earlier page
has, such as a licence, so that little of a held-out page is also for training. The text follows
from the packages and from groff's version. Licences are in /usr/share/doc/PACKAGE/copyright.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PAGES = Path("/usr/share/man")
ENGLISH = "en"
REPEATED = 40  # characters; shorter paragraphs, such as headings, are in many pages
SECTION = re.compile(r"man\d\w*")
SET = ("groff", "-t", "-man", "-Tutf8", "-K", "utf8", "-P-c", "-P-b", "-P-o", "-P-u", "-dAD=l")
WIDE = ("-rLL=2000n", "-rHY=0", "-rIN=0")  # a paragraph per line, no word cut


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the texts. Exits with 2 if a language has no pages, or groff is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the folder that gets a folder per language")
    parser.add_argument("languages", nargs="*", help="such as de, pt_BR or en; all by default")
    parser.add_argument("--pages", type=Path, default=PAGES, help=f"default: {PAGES}")
    given = parser.parse_args(arguments)
    try:
        for language, (pages, n_bytes, left_out) in made(
            given.out, given.pages, given.languages
        ).items():
            more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
            also = f"; left out, no text in UTF-8: {', '.join(left_out[:3])}{more}"
            also = also if left_out else ""
            print(f"{language}: {pages} pages, {n_bytes / 1e6:.2f} MB{also}")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


def made(
    out: Path, pages: Path, languages: Sequence[str] = ()
) -> dict[str, tuple[int, int, list[str]]]:
    """Write the text of each language; return pages, UTF-8 bytes and pages that are not UTF-8.

    Raises ValueError if a language has no pages, and OSError if a file cannot be read or written.
    """
    if not pages.is_dir():
        raise ValueError(f"{pages} is no folder of manual pages; name one with --pages DIR")
    if shutil.which(SET[0]) is None:
        raise ValueError("groff is missing: install groff-base, or brew install groff")
    found = by_language(pages)
    wanted = list(dict.fromkeys(languages)) or sorted(found)
    if missing := [language for language in wanted if not found.get(language)]:
        known = ", ".join(sorted(found)) or "none"
        raise ValueError(
            f"{pages} has no pages in {', '.join(missing)}; it has: {known}. "
            f"Install manpages-{missing[0].lower().replace('_', '-')}, or another package of "
            "translated pages"
        )
    if not wanted:
        raise ValueError(f"{pages} has no manual pages; name another folder with --pages DIR")
    return {language: _write(out / language, found[language]) for language in wanted}


def by_language(folder: Path) -> dict[str, list[Path]]:
    """Return the files of pages by language, sorted by name: those of man1 itself are English."""
    found = dict[str, list[Path]]()
    for inside, folders, names in os.walk(folder, onerror=_refuse):
        folders.sort()
        path = Path(inside)
        if SECTION.fullmatch(path.name):
            above = path.parent.relative_to(folder).parts
            language = above[-1].partition(".")[0] if above else ENGLISH
            pages = (path / name for name in names if not name.startswith("."))
            found.setdefault(language, []).extend(page for page in pages if not page.is_symlink())
    return {
        language: sorted(pages, key=lambda page: (page.name, str(page)))
        for language, pages in found.items()
        if pages
    }


def _write(folder: Path, pages: Sequence[Path]) -> tuple[int, int, list[str]]:
    known, n_pages, n_bytes, left_out = set[str](), 0, 0, list[str]()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "pages.jsonl.part"
    with part.open("w", encoding="utf-8") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        for page, text in zip(pages, pool.map(text_of, pages), strict=True):
            if text is None:
                left_out.append(page.name)
            elif (own := _not_in(known, text)).strip():
                n_pages, n_bytes = n_pages + 1, n_bytes + len(own.encode())
                file.write(json.dumps({"name": _name(page), "text": own}, ensure_ascii=False))
                file.write("\n")
    part.replace(folder / "pages.jsonl")
    return n_pages, n_bytes, left_out


def _not_in(known: set[str], text: str) -> str:
    """Return a page without the long paragraphs that are known; add its own to them."""
    own = [line for line in text.splitlines() if len(line) < REPEATED or line not in known]
    known.update(line for line in own if len(line) >= REPEATED)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(own)).strip() + "\n"


def text_of(page: Path) -> str | None:
    """Return the text of a page; "" if it only refers to another, None if it is not UTF-8."""
    raw = page.read_bytes()
    try:
        source = (gzip.decompress(raw) if page.suffix == ".gz" else raw).decode()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error):
        return None
    if re.match(r"(\s*[.']\\\".*\n)*\s*\.so ", source):
        return ""
    done = subprocess.run([*SET, *WIDE], input=source.encode(), capture_output=True, check=False)
    return "\n".join(_lines(done.stdout.decode(errors="replace"))).strip() + "\n"


def _lines(text: str) -> Iterator[str]:
    """Yield lines without the head and foot of a page, indentation, and repeated blank lines."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    filled = [place for place, line in enumerate(lines) if line]
    for place in range(*((filled[0] + 1, filled[-1]) if len(filled) > 1 else (0, 0))):
        if lines[place] or lines[place - 1]:
            yield lines[place]


def _name(page: Path) -> str:
    """Return a page as it is cited, such as `test(1)` for test.1.gz."""
    name, _, section = page.name.removesuffix(".gz").rpartition(".")
    return f"{name}({section})"


def _refuse(error: OSError) -> None:
    raise error


if __name__ == "__main__":
    main(sys.argv[1:])
