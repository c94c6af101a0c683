"""report.html holds the whole answer in one file, and says nothing that it was not told.

The report of a terminal fits its width; hypotheses stand beside what was published. A browser shows
the page at three widths, light and dark, with and without a pointer.
"""

import io
import json
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from string import ascii_lowercase
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from support.reported_study import (
    COMMAND,
    LOSSES,
    NASTY,
    begin,
    complete,
    edit,
    finish,
    in_full,
    nasty,
    partial,
    plan,
    steady,
    write_study,
)

from attnlab.analysis.analysis import analyse
from attnlab.analysis.hypotheses.ordered import Ordered
from attnlab.cli.console import Output
from attnlab.reporting import TerminalReport, write_results
from attnlab.reporting.figures.styles import mark, matplotlib_style
from attnlab.reporting.figures.svg import whole_svg
from attnlab.reporting.pages import cell, markdown, page
from attnlab.reporting.sentences import how_sure
from attnlab.reporting.tables.data_files import csv_table
from attnlab.reporting.tables.latex import latex
from attnlab.reporting.tables.text_tables import published_tables

COMMANDS = "\x1b\u202e\r"  # a terminal would obey them
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


@pytest.fixture
def no_curves(monkeypatch):
    """Leave the charts of losses against steps and time out: two thirds of the time of a page."""
    monkeypatch.setattr("attnlab.reporting.figures.page_charts.Charts.curves", lambda _: ())


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
    assert time.process_time() - start < 15  # on a busy machine; 3 s alone
    assert len(html.encode()) < 3e6
    assert "No table of all pairs for so many variants" in html
    assert "The best 22 of 200 variants; the tables have all." in html


def test_many_letters_leave_room_for_the_differences_and_points_keep_their_variants(
    study_dir, no_curves
):
    complete(study_dir)
    found = in_full(study_dir)
    many = tuple(ascii_lowercase[:20])
    html = page(replace(found, letters=found.letters | {"mha": many}))
    figure = html[html.index('id="answer"') : html.index('id="picks"')]
    assert "abcdefghi…" in figure
    assert "".join(many) not in figure
    assert "share a letter are not distinguishable; …: more letters, in the table." in figure
    assert "".join(many) in html[html.index('id="ranks"') :]
    cost = html[html.index('id="cost"') : html.index('id="costs"')]
    for chart in re.findall(r"<figure.*?</figure>", cost, re.S):
        tips = re.findall(r'class="(v\d)"[^>]*><title>([^<]+?)(?: \(on the|: )', chart)
        assert [group for group, _ in tips] == [f"v{[*LOSSES].index(of)}" for _, of in tips]
        assert {unescape(of) for _, of in tips} == {*found.order} - {"identity"}  # off the panel
        assert len(re.findall(r'<path [^>]*class="v\d"', chart)) == 2 * len(found.order)  # bars


def test_what_a_user_named_is_text_and_not_markup(study_dir, empty_charts):
    nasty(study_dir)
    html = page(in_full(study_dir))
    outline = Outline(html)
    assert not outline.all("img")
    assert len(outline.all("script")) == 1
    assert not [key for _, attributes in outline.tags for key in attributes if key == "onerror"]
    assert NASTY in outline.said("th")
    assert NASTY in outline.said("li")  # the reason of a failure


def test_a_notebook_shows_headline_ranking_and_figure_and_no_markup_of_a_user(study_dir):
    nasty(study_dir)
    analysis = in_full(study_dir)
    outline = Outline(analysis._repr_html_())
    assert {tag for tag, _ in outline.tags} <= {
        "p",
        "strong",
        "small",
        "table",
        "tr",
        "th",
        "td",
        "img",
    }
    (picture,) = outline.all("img")
    assert picture["src"].startswith("data:image/png;base64,iVBOR")
    assert "onerror" not in picture
    assert analysis.headline[0] in outline.said("strong")
    assert NASTY in outline.said("td")
    plan(study_dir.parent / "planned")
    assert "<img" not in analyse(study_dir.parent / "planned")._repr_html_()


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
    return f"{value}{NASTY}{COMMANDS}" if isinstance(value, str) else value


def test_no_text_of_any_file_of_a_strangers_folder_is_markup_or_commands_a_terminal(study_dir):
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
    out = Output(file=io.StringIO(), width=200)
    out.print(TerminalReport(analysis))
    files = (html, text, latex(analysis), csv_table(analysis), out.file.getvalue())
    for said in files:
        assert not [character for character in COMMANDS if character in said]
    assert min(said.count("\\x1b") for said in (html, text, out.file.getvalue()))


@pytest.mark.parametrize("page_style", [True, False])
def test_no_text_in_a_figure_damages_its_file(page_style):
    with matplotlib_style(page=page_style):
        axes = (figure := Figure()).subplots()
        mark(axes.plot([0, 1], label=COMMANDS)[0], tips=[COMMANDS])
        axes.set_title(f"{COMMANDS}\u4e2d")  # a warning of a letter would be an error
        svg = ElementTree.fromstring(whole_svg(figure))
    assert "\\x1b\\u202e\\r" in [element.text for element in svg.iter()]


@pytest.mark.parametrize("text", ["```", "~~~ a", "# a", "> a", "- a"])
def test_a_text_in_markdown_begins_no_block(text):
    assert cell(text) == f"\\{text}"
    assert cell(f"a {text}") == f"a {text}"
    assert cell("#") == "#"


@pytest.mark.parametrize("make", [plan, partial], ids=["planned", "partial"])
def test_there_is_a_page_at_any_stage(study_dir, make, empty_charts):
    make(study_dir)
    html = page(analyse(study_dir))
    assert not Outline(html).open
    assert COMMAND in html
    assert "still to run" in html
    linked = re.findall(r'<li><a href="#(\w+)">', html)
    assert [name for name in linked if f'id="{name}"' not in html] == []
    assert "nan" not in re.sub(r"loss is nan", "", "".join(Outline(html).text.get("td", [])))


def test_a_failure_and_what_is_left_out_are_named_with_their_reasons(study_dir, empty_charts):
    partial(study_dir)
    analysis = replace(in_full(study_dir), left_out={"mqa": "no seed has finished"})
    html = page(analysis)
    assert "identity, seed 2: diverged: loss is nan" in html
    assert re.search(r"<th scope=\"row\">mqa</th><td>no seed has finished</td>", html)


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


def in_terminal(study_dir, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(analyse(study_dir)))
    return console.file.getvalue()


def test_a_study_may_have_no_baseline_and_may_have_a_test_split(study_dir, empty_charts):
    plan(study_dir, baseline=None, variants=("mha", "identity"))
    for variant in ("mha", "identity"):
        for seed in (0, 1, 2):
            finish(study_dir, variant, seed, test_loss=LOSSES[variant] - 0.1)
    analysis = in_full(study_dir, "test_loss")
    report, html = markdown(analysis, None), page(analysis)
    assert "| test loss (nats/token) |" in report
    assert "| 5.0000 ± 0.0000 |" in report
    assert "| validation loss (nats/token) |" in report
    assert "Test loss by variant" in html
    assert "None" not in report + in_terminal(study_dir, 140)
    assert ">None<" not in html


@pytest.mark.parametrize("written", ["report.md", "terminal"])
def test_one_seed_gets_no_verdict(study_dir, written):
    complete(study_dir, seeds=(0,))
    write_results(study_dir)
    text = in_terminal(study_dir, 100)
    if written == "report.md":
        text = (study_dir / written).read_text()
    assert "One seed per variant: no intervals." in " ".join(text.split())
    assert "letters" not in text
    assert "±" not in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_study_of_one_variant_awaits_no_verdict(tmp_path, seeds):
    found = analyse(write_study(tmp_path, {"mha": steady(5.0)[:seeds]}))
    shown = f"One variant, {seeds} seed{'' if seeds == 1 else 's'}: nothing to compare. "
    assert how_sure(found).startswith(shown)


def test_the_page_of_two_variants_needs_no_table_of_pairs_and_names_schedule_and_optimizer(
    tmp_path,
):
    unset = {name: {"train": {"optimizer": None}} for name in ("mha", "mla")}
    two = analyse(write_study(tmp_path, {"mha": steady(5.0), "mla": steady(5.1)}, **unset))
    assert "No table of all pairs" not in page(two)
    text = markdown(two, None)
    assert "cosine decay after the warm-up; AdamW" in text
    assert "| none |" not in text.partition("## Settings")[2].partition("## ")[0]


def test_a_verdict_that_never_comes_is_not_awaited(tmp_path):
    equal = analyse(write_study(tmp_path, {"mha": [5.0, 5.1], "twin": [5.0, 5.1]}))
    assert how_sure(equal).startswith("No verdict. ")


@pytest.mark.parametrize("width", [60, 80, 100, 160, 220])
def test_the_terminal_table_fits_and_names_stay_whole(study_dir, width):
    complete(study_dir)
    lines = in_terminal(study_dir, width).splitlines()
    assert max(len(line) for line in lines) <= width
    rows = [line for line in lines if re.match(r"\d  [a-c]  ", line)]
    assert len(rows) == len(LOSSES)
    assert "hybrid 3:1  " in rows[0]
    assert "5.0507 ± 0.0070" in rows[0]
    assert ("mechanism" in lines[1]) == (width >= 160)
    assert any("not shown at this width: " in line for line in lines) == (width < 220)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_name_is_folded_in_a_terminal_and_whole_in_a_pipe(tmp_path, terminal):
    name = "sliding_window_of_256_tokens_after_a_gated_delta_net"
    study_dir = write_study(tmp_path / "s", {"mha": steady(5.1, 1), name: steady(5.0, 3)})
    console = Console(width=80, file=io.StringIO(), color_system=None, force_terminal=terminal)
    console.print(TerminalReport(analyse(study_dir)), crop=terminal)
    lines = console.file.getvalue().splitlines()
    (row,) = [line for line in lines if line.startswith("1  a ")]
    assert re.search(r"5\.0\d{3} ± 0\.\d{4}", row)
    assert (name in row) != terminal
    assert name[:20] in row


def test_the_terminal_lists_failures(study_dir):
    partial(study_dir)
    text = in_terminal(study_dir, 140)
    assert "identity, seed 2: diverged: loss is nan (2 of 3 seeds finished; not compared)" in text
    assert "2/3" in text


def test_the_terminal_says_the_verdict_in_two_sentences_and_how_sure_it_is(study_dir):
    complete(study_dir)
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(TerminalReport(in_full(study_dir)))
    text = console.file.getvalue()
    assert "The hybrid is best.\nThe floor is far.\n3 seeds per variant;" in text
    assert text.splitlines()[1].split()[:3] == ["#", "letters", "variant"]


DELTA_LOSSES = {"mha": steady(5.1, 1), "delta": steady(5.0, 3), "identity": steady(5.4, 4)}
SOURCED = {"variants": ("delta", "mha"), "source": "Somebody 2020"}


def analysed(folder, hypothesis):
    return analyse(
        write_study(folder, DELTA_LOSSES, hypotheses=[hypothesis.to_dict()], baseline="mha")
    )


@pytest.mark.parametrize(("published", "holds"), [(3.4, "yes"), (3.25, "no"), (3.49, "no")])
def test_a_published_difference_is_compared_with_the_interval_of_the_one_found(
    tmp_path, published, holds
):
    """Delta is better than mha by 0.1000 nats/token here, to a part of a thousandth or so."""
    numbers = (("delta", published), ("mha", 3.5), ("gone", 4.0))
    (table,) = published_tables(analysed(tmp_path, Ordered(**SOURCED, published=numbers)))
    assert table.heading[4:6] == ["published Δ mha", "Δ mha here"]
    delta, mha, gone = (line[4:] for line in table.lines)
    assert delta[0] == f"{published - 3.5:+.3g}"
    assert delta[1].startswith("-0.1000 ± 0.0")
    assert delta[2] == holds
    assert delta[3:] == delta[:3]  # of three, each also against the next one: here the same
    assert mha == ["0", "0", "", "-0.5", "–", "–"]
    assert gone == ["+0.5", "–", "–", "", "", ""]


def test_of_published_numbers_other_than_losses_no_differences_are_shown(tmp_path):
    numbers = (("delta", 30.0), ("mha", 33.0))
    hypothesis = Ordered(**SOURCED, published=numbers, measure="perplexity per word")
    (table,) = published_tables(analysed(tmp_path, hypothesis))
    assert len(table.heading) == len(table.lines[0]) == 4


def test_published_and_found_stand_side_by_side_in_the_reports(tmp_path):
    numbers = (("delta", 3.25), ("mha", 3.5), ("gone", 4.0))
    hypothesis = Ordered(**SOURCED, wording="Delta <beats> it.", published=numbers)
    analysis = analysed(tmp_path, hypothesis)
    (table,) = published_tables(analysis)
    assert table.heading[1:3] == ["published loss, nats/token", "validation loss here (nats/token)"]
    assert [line[:2] for line in table.lines] == [["delta", "3.25"], ["mha", "3.5"], ["gone", "4"]]
    assert table.lines[0][2].startswith("5.0000 ± ")
    assert [line[3] for line in table.lines] == ["1", "2", "–"]
    text, html = markdown(analysis, None), page(analysis)
    for shown in (text, html):
        assert "Hypotheses" in shown
        assert "Somebody 2020" in shown
        assert "order, spread and differences are compared" in shown
        assert "“Delta &lt;beats" in shown
    row = "| The order is delta and mha, the best first. | “Delta &lt;beats> it.” Somebody 2020 | "
    assert f"{row}**supported** | delta is better than mha by " in text
    assert "| delta | 3.25 | 5.0000 ± " in text
    assert '<strong class="ruling supported">supported</strong>' in html


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

PROBE = """
<script>
{
const found = {};
const shown = (element) => !element
  || (getComputedStyle(element).display !== "none" && shown(element.parentElement));
const click = (selector) => document.querySelector(selector).click();
const all = (selector) => [...document.querySelectorAll(selector)];
found.width = innerWidth;
found.overflow = document.documentElement.scrollWidth - innerWidth;
found.outside = all("main *, header *").filter((e) => shown(e)
  && !e.closest(".scroll, .switches, svg, pre, nav")
  && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80));
found.letters = Math.min(...all("svg.chart text").filter(shown).map((text) => {
  const chart = text.ownerSVGElement;
  const scale = chart.getBoundingClientRect().width / chart.viewBox.baseVal.width;
  return parseFloat(getComputedStyle(text).fontSize) * scale;
}));
const place = (selector) => document.querySelector(selector).getBoundingClientRect();
found.picture_ends = place("#answer svg.chart").bottom || place("#answer .narrow svg").bottom;
found.picks_end = place("#picks").bottom;
document.getElementById("cost").scrollIntoView();
found.bar = Math.round(place("#bar").top);
scrollTo(0, 0);
found.charts = all("svg.chart").filter(shown).length;
found.paper = getComputedStyle(document.body).backgroundColor;
found.ink = getComputedStyle(document.body).color;

const ranks = document.querySelector("#ranks").closest(".scroll");
ranks.scrollLeft = 10000;
const left = ranks.getBoundingClientRect().left;
found.in_sight = [...document.querySelector("#ranks tbody tr").cells].slice(0, 2)
  .filter((cell) => cell.getBoundingClientRect().left >= left - 1
    && cell.getBoundingClientRect().right < innerWidth)
  .map((cell) => cell.textContent);
ranks.scrollLeft = 0;

const names = () => all("#ranks tbody tr").map((row) => row.querySelector("th").textContent);
const header = (text) => all("#ranks thead th")
  .find((th) => th.textContent.trim().startsWith(text));
header("variant").querySelector("button").click();
found.by_name = [names(), header("variant").ariaSort];
header("validation loss").querySelector("button").click();
found.by_loss = names();
header("validation loss").querySelector("button").click();
found.by_loss_down = [names(), header("validation loss").ariaSort, header("variant").ariaSort];

const filter = document.getElementById("filter");
filter.value = "IDENT";
filter.dispatchEvent(new Event("input"));
found.filtered = [all("#ranks tbody tr").filter(shown).length, matches.value];

found.of_v0 = all("svg .v0").some(shown);
click("#show-v0");
found.of_v0_off = all("svg .v0").some(shown);
click("[data-show=none]");
found.none = all("svg.chart [class^=v]").some(shown);
click("[data-show=all]");
found.again = all("svg .v0").some(shown);

const forms = () => all(".form").filter(shown).map((form) => form.className.slice(5)).sort();
found.first_forms = forms().join();
click("#axes-log"); click("#against-time");
found.other_forms = forms().join();
found.seeds = all(".curves .seed").some(shown);
click("#lines-seed");
found.seeds_on = [all(".curves .seed").some(shown), all(".curves .mean").some(shown)];

const target = all("[data-tip]").find(shown);
target.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: 5, clientY: 50 }));
found.tip = [tip.hidden, tip.textContent === target.dataset.tip];
document.body.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
found.tip_gone = tip.hidden;
parent.postMessage(JSON.stringify(found), "*");
}
</script>
"""

FRAMES = """<!DOCTYPE html><meta charset="utf-8"><title>no answer</title>
<script>
const found = [];
addEventListener("message", (event) => {
  found.push(event.data);
  document.title = "probe [" + found + "]";
});
</script>
"""
FRAME = '<iframe src="report.html" style="width: WIDTHpx; height: 900px; border: 0"></iframe>'


def browse(path, *options):
    profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *(
            "--enable-logging=stderr",
            "--force-prefers-reduced-motion",
            f"--user-data-dir={profile.name}",
        ),
        *(*options, path.as_uri()),
    ]
    with profile:  # one of its own: browsers that share one do not run beside each other
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def probed(path, *widths, dark=False):
    """Return what the probe found, by width; nothing may be written to the console.

    In frames, because a window is never as narrow as a phone.
    """
    frames = path.with_name("frames.html")
    frames.write_text(FRAMES + "".join(FRAME.replace("WIDTH", str(width)) for width in widths))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = ("--window-size=1400,950", "--virtual-time-budget=3000", "--dump-dom", scheme)
    dom, console = browse(frames, *options)
    assert not console
    said = re.search(r"<title>probe (.*?)</title>", dom, re.S)
    assert said, "the probe did not get to its end"
    found = json.loads(unescape(said[1]))
    assert len(found) == len(widths), "a probe did not get to its end"
    return {of_one["width"]: of_one for of_one in found}


WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page of a whole study, with the probe in it."""
    folder = tmp_path_factory.mktemp("page")
    complete(folder / "mechanisms")
    path = folder / "report.html"
    path.write_text(page(in_full(folder / "mechanisms")).replace("</body>", f"{PROBE}</body>"))
    return path


@pytest.fixture(scope="module")
def found_at(path):
    return probed(path, *WIDTHS)


@in_chromium
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_works_at_every_width(found_at, width):
    found = found_at[width]
    assert found["overflow"] <= 0
    assert found["outside"] == []
    assert found["letters"] >= 7.5
    assert found["charts"] >= 12
    assert found["bar"] == 0  # it stays in sight, far down the page
    if width == 1280:  # the first screen, 900 pixels high, is the answer and its picture
        assert max(found["picture_ends"], found["picks_end"]) < 900
    if width == 360:  # however far the table is scrolled
        assert found["in_sight"] == ["hybrid 3:1", "5.0507 ± 0.0070"]

    best_first = sorted(LOSSES, key=lambda name: (LOSSES[name], name != "cost|$^$", name))
    names, sort = found["by_name"]
    assert [name.lower() for name in names] == sorted(name.lower() for name in LOSSES)
    assert sort == "ascending"
    assert found["by_loss"][0] == best_first[0] == "hybrid 3:1"
    names, sort, before = found["by_loss_down"]
    assert (names[0], sort, before) == ("identity", "descending", None)
    assert found["filtered"] == [1, "1 of 6 variants"]

    assert found["of_v0"]
    assert not found["of_v0_off"]
    assert not found["none"]
    assert found["again"]
    assert "step linear" in found["first_forms"]
    assert "log" not in found["first_forms"]
    assert "time" not in found["first_forms"]
    assert "time log" in found["other_forms"]
    assert "step" not in found["other_forms"]
    assert not found["seeds"]
    assert found["seeds_on"] == [True, False]
    assert found["tip"] == [False, True]
    assert found["tip_gone"]


@in_chromium
def test_light_and_dark_follow_the_reader(path, found_at):
    light, dark = found_at[768], probed(path, 768, dark=True)[768]

    def brightness(colour):
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness(light["paper"]) > 700 > 150 > brightness(light["ink"])
    assert brightness(dark["ink"]) > 600 > 150 > brightness(dark["paper"])


@in_chromium
def test_it_prints(path, tmp_path):
    plain = tmp_path / "report.html"
    plain.write_text(path.read_text().replace(PROBE, ""))
    _, console = browse(plain, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert not console
    assert 3 <= pages <= 20
