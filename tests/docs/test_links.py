"""Links and file names in the documentation lead somewhere."""

import re

import pytest
from support.pages import FENCE, ROOT, WRITTEN, anchors, links

IDS = [page.relative_to(ROOT).as_posix() for page in WRITTEN]
GENERATED = {  # pages of the built site that no file holds
    ROOT / "docs/reference" / name
    for name in ("api.md", "command-line.md", "settings.md", "source-files.md")
}


@pytest.mark.parametrize("page", WRITTEN, ids=IDS)
def test_every_link_leads_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        if target in GENERATED:
            continue
        assert target.exists(), f"{path} in {page.name}"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor} in {page.name}"


@pytest.mark.parametrize("page", WRITTEN, ids=IDS)
def test_every_file_that_is_named_is_there(page):
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    top = "src|tests|docs|results|published|benchmarks"
    packages = "|".join(path.name for path in (ROOT / "src/attnlab").iterdir() if path.is_dir())
    for name in re.findall(rf"`((?:{top})/[\w./-]+|(?:{packages})/[\w./-]*)`", prose):
        if re.match(rf"(?:{top})/", name):
            there = ROOT / name
            made = name.startswith("results/") and re.search(
                "quickstart|mine|my_study|compare", name
            )
            assert made or there.exists(), f"{name} in {page.name}"
        else:
            assert (ROOT / "src/attnlab" / name).exists(), f"{name} in {page.name}"


def test_every_decision_is_in_the_index():
    listed = {path for path, _ in links(ROOT / "docs/decisions/index.md")}
    there = {path.name for path in (ROOT / "docs/decisions").glob("*.md")} - {"index.md"}
    assert listed == there
