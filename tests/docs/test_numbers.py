"""Numbers in the documentation are those of the results that ship."""

import json
import re

import yaml
from support.pages import ROOT

from attnlab import __version__, analyse, check


def test_the_verdict_of_the_readme_is_that_of_the_results():
    quoted = re.findall(r"^> (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert " ".join(quoted) == " ".join(analyse(ROOT / "published/mechanisms").headline)


def test_the_times_of_decoding_are_those_that_ship():
    page = (ROOT / "docs/guides/benches.md").read_text()
    points = json.loads((ROOT / "published/decode/bench.json").read_text())["points"]
    rows = re.findall(r"^\| ([\w ,-]+) ((?:\| [\d.]+ ){4})\| \S+ \w+ \|$", page, re.MULTILINE)
    times = [[f"{float(time):.2f}" for time in cells.split("|")[1:]] for _, cells in rows]
    measured: dict[str, list[str]] = {}
    for point in sorted(points, key=lambda point: point["context"]):
        if point["batch"] == 1:
            measured.setdefault(point["variant"], []).append(f"{1000 * point['seconds']:.2f}")
    assert sorted(times) == sorted(measured.values())
    assert len(times) == 6


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert {"message", "title", "authors"} <= citation.keys()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_page_of_checks_lists_every_property():
    (checked,) = check("identity", quick=True)
    page = (ROOT / "docs/guides/checks.md").read_text()
    _, *rows = re.findall(r"^\| ([A-Za-z][^|]+) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(result.name for result in checked.results)
