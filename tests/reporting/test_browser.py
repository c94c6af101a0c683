"""The page as a browser shows it: at three widths, light and dark, with and without a pointer."""

import json
import re
import shutil
import subprocess
import tempfile
from html import unescape

import pytest
from support.reported_study import LOSSES, complete, in_full

from attnlab.reporting.pages import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

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


def test_light_and_dark_follow_the_reader(path, found_at):
    light, dark = found_at[768], probed(path, 768, dark=True)[768]

    def brightness(colour):
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert brightness(light["paper"]) > 700 > 150 > brightness(light["ink"])
    assert brightness(dark["ink"]) > 600 > 150 > brightness(dark["paper"])


def test_it_prints(path, tmp_path):
    plain = tmp_path / "report.html"
    plain.write_text(path.read_text().replace(PROBE, ""))
    _, console = browse(plain, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pages = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes()))
    assert not console
    assert 3 <= pages <= 20
