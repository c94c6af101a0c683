"""report.html holds the whole answer in one file, and says nothing that it was not told."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from support.reported_study import (
    COMMAND,
    LOSSES,
    NASTY,
    begin,
    complete,
    edit,
    in_full,
    nasty,
    partial,
    plan,
    steady,
    write_study,
)

from attnlab.analysis.analysis import analyse
from attnlab.reporting.pages import markdown, page

VOID = {"meta", "link", "input", "br", "img"}


class Outline(HTMLParser):
    """What a page is made of; raises where an element is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, *tags):
        return " ".join("".join(self.text.get(tag, [])) for tag in tags)


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "mechanisms"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    study_dir = tmp_path_factory.mktemp("page") / "mechanisms"
    complete(study_dir)
    point = {"variant": "mha", "what": "decode", "batch": 1, "status": "ok", "state_bytes": 2**20}
    lost = {**point, "context": 8192, "status": "out_of_memory", "seconds": None}
    points = [{**point, "context": 1024, "seconds": 0.002}, lost]
    (study_dir / "bench.json").write_text(json.dumps({"device": {}, "points": points}))
    return page(in_full(study_dir))


def test_the_verdict_comes_first_and_everything_else_has_its_place(whole):
    places = [
        whole.index(expected)
        for expected in (
            "<b>mechanisms</b>: Which attention mechanism?",
            "<h1>The hybrid is best.</h1>",
            "The floor is far.",
            "3 seeds per variant; intervals of seeds, at this recipe",
            "<h3>Difference to mha at this recipe (nats/token)</h3>",
            "no winner",
            '<nav aria-label="Sections">',
            '<h2 id="ranking-h">',
            "<summary>Differences of all pairs</summary>",
            '<h2 id="hypotheses-h">',
            'mha is better than identity.<div class="source">“<code>mha</code> beats',
            "by 1.1 nats, too",
            "<h3>Validation loss in training",
            "<h3>Training loss",
            "<h3>Validation loss by variant",
            "<h3>Validation loss in training minus",
            "Loss by position in the sequence",
            "on recall tokens",
            "against the peak learning rate",
            "Loss against parameters",
            "Loss against time per step",
            "Cost per variant",
            "<summary>Question and method</summary>",
            "gqa_1 and mqa are one function and tie.",
            "<summary>Settings</summary>",
            "Settings that differ",
            "<summary>How to reproduce</summary>",
            COMMAND,
            "Hardware and software",
        )
    ]
    assert places == sorted(places)


def test_the_page_is_one_file_that_asks_no_network(whole):
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", whole)
    assert "http" not in re.sub(r'xmlns[:\w]*="[^"]*"', "", whole)
    assert "@import" not in whole
    assert len(whole.encode()) < 3e6


def test_a_screen_reader_finds_its_way(whole):
    outline = Outline(whole)
    assert not outline.open
    assert len(outline.all("h1")) == 1
    for landmark in ("header", "nav", "main", "footer"):
        assert len(outline.all(landmark)) == 1
    assert outline.all("html") == [{"lang": "en"}]
    assert len(outline.all("caption")) == len(outline.all("table"))
    assert all(cell.get("scope") in ("col", "row") for cell in outline.all("th"))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {
        name
        for _, attributes in outline.tags
        for key in ("aria-labelledby", "aria-controls", "for")
        for name in (attributes.get(key) or "").split()
    }
    referred |= {a["href"][1:] for a in outline.all("a")}
    referred |= {use["href"][1:] for use in outline.all("use")}
    assert referred <= set(ids)
    charts = [svg for svg in outline.all("svg") if svg.get("class") == "chart"]
    assert len(charts) > 15
    assert all(svg["role"] == "img" and "aria-labelledby" in svg for svg in charts)
    ornaments = [svg for svg in outline.all("svg") if svg.get("class") == "sample"]
    assert all(svg["aria-hidden"] == "true" for svg in ornaments)


def test_charts_take_their_colours_from_the_page(whole):
    drawings = "".join(re.findall(r"<svg.*?</svg>", whole, re.S))
    assert "var(--v0)" in drawings
    assert re.search(r"@media screen and \(prefers-color-scheme: dark\) { :root { --v0: #", whole)
    assert "var(--muted)" in drawings
    assert not re.findall(r"#[0-9a-f]{6}", drawings)
    assert "font-family" not in drawings


def test_every_point_says_what_it_is(whole):
    tips = set(re.findall(r"<title>([^<]*)</title>", whole))
    assert "mha, step 1,000: 5.1273 ± 0.0035" in tips
    assert "identity minus mha: +1.1107 ± 0.0150" in tips
    assert "mha, learning rate 0.0003: 5.1003" in tips
    assert "mha, 0.001: diverged" in tips


def test_each_difference_stands_once_and_all_pairs_are_folded(whole):
    shown = re.sub(r'<title>[^<]*</title>|data-tip="[^"]*"', "", whole)
    assert shown.count("-0.0497 ± 0.0150") == 1
    folded = shown[shown.index("<summary>Differences of all pairs") :].split("</details>")[0]
    lines = re.findall(r"<tr><th scope=\"row\">.*?</tr>", folded)
    assert [len(re.findall(r">[+-]\d", line)) for line in lines] == [1, 2, 3, 4, 5]
    assert 'data-tip="mha minus hybrid 3:1: +0.0497 ± 0.0150">+0.050<' in whole


def test_two_hundred_variants_make_a_page_that_a_browser_opens_in_time(tmp_path):
    losses = {f"variant {i}": steady(5 + i / 100, i, seeds=2) for i in range(200)}
    study_dir = write_study(tmp_path / "many", losses, baseline="variant 0")
    start = time.process_time()
    html = page(analyse(study_dir))
    assert time.process_time() - start < 20  # on a busy machine; 5 s alone
    assert len(html.encode()) < 3e6
    assert "No table of all pairs for so many variants" in html
    assert "The best 22 of 200 variants; the tables have all." in html


def test_what_a_user_named_is_text_and_not_markup(study_dir):
    nasty(study_dir)
    html = page(in_full(study_dir))
    outline = Outline(html)
    assert not outline.all("img")
    assert len(outline.all("script")) == 1
    assert not [key for _, attributes in outline.tags for key in attributes if key == "onerror"]
    assert NASTY in outline.said("th")
    assert NASTY in outline.said("li")  # the reason of a failure


STRUCTURE = {"status", "kind", "identity", "sha256", "variant", "variants", "baseline", "started"}


def with_markup(value, key=""):
    """Return a JSON value in which every text that is free has markup."""
    if isinstance(value, dict):
        return {
            name: with_markup(of, name) if name not in STRUCTURE else of
            for name, of in value.items()
        }
    if isinstance(value, list):
        return [with_markup(of) for of in value]
    return f"{value}{NASTY}" if isinstance(value, str) else value


def test_no_text_of_any_file_of_a_strangers_folder_is_markup(study_dir):
    complete(study_dir)
    begin(study_dir, "mqa", 7).fail(NASTY)
    for name in ("study.json", "config.json", "environment.json", "summary.json"):
        for path in study_dir.rglob(name):
            edit(path, **with_markup(json.loads(path.read_text())))
    analysis = analyse(study_dir)
    html = page(analysis)
    outline = Outline(html)
    assert html.count("onerror") > 10
    assert not outline.all("img")
    assert len(outline.all("script")) == 1
    assert not [key for _, attributes in outline.tags for key in attributes if key == "onerror"]
    text = re.sub(r"```.*?```", "", markdown(analysis, None), flags=re.DOTALL)
    assert "<img" not in text


@pytest.mark.parametrize("make", [plan, partial], ids=["planned", "partial"])
def test_there_is_a_page_at_any_stage(study_dir, make):
    make(study_dir)
    html = page(analyse(study_dir))
    assert not Outline(html).open
    assert COMMAND in html
    assert "still to run" in html
    assert "nan" not in re.sub(r"loss is nan", "", "".join(Outline(html).text.get("td", [])))


def test_a_failure_and_what_is_left_out_are_named_with_their_reasons(study_dir):
    partial(study_dir)
    analysis = replace(in_full(study_dir), left_out={"identity": "a seed diverged"})
    html = page(analysis)
    assert "identity, seed 2: diverged: loss is nan" in html
    assert re.search(r"<th scope=\"row\">identity</th><td>a seed diverged</td>", html)


def test_one_seed_gets_no_verdict_and_no_error_bars(study_dir):
    complete(study_dir, seeds=(0,))
    html = page(analyse(study_dir))
    assert "One seed per variant: no intervals." in html
    assert "letters" not in Outline(html).said("th", "figcaption", "td")
    assert "±" not in Outline(html).said("td", "title")


def test_a_diverged_run_is_not_averaged_into_a_curve(study_dir):
    plan(study_dir, variants=tuple(LOSSES))
    begin(study_dir, "mha", 0).finish({"status": "diverged", "reason": "loss is nan"})
    html = page(analyse(study_dir))
    assert "Validation loss in training" not in html


def test_what_the_bench_measured_stands_on_the_page(whole):
    assert "Time to decode one token against context" in whole
    assert "mha, context 1,024: 2.00 ms" in whole
    assert "8,192" not in whole
    assert "Time to the first token" not in whole
