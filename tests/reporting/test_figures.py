"""comparison.png and .svg at any stage of a study, axes and styles."""

import struct
import time
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.font_manager
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from support.reported_study import complete, in_full, partial, plan, write_study

from attnlab.analysis.table import read_table
from attnlab.reporting import write_report
from attnlab.reporting.figures.axes import LINE_HEIGHT, Extent, name_ends, window
from attnlab.reporting.figures.comparison import comparison
from attnlab.reporting.figures.styles import families_of, matplotlib_style, styles_of


@pytest.fixture
def study_dir(tmp_path):
    return tmp_path / "results" / "mechanisms"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A whole study's analysis, and its picture as PNG and SVG."""
    study_dir = tmp_path_factory.mktemp("drawn") / "mechanisms"
    complete(study_dir)
    analysis = in_full(study_dir)
    return analysis, comparison(analysis)


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


@pytest.mark.parametrize("make", [complete, partial, plan], ids=["complete", "partial", "planned"])
def test_the_picture_is_drawn_at_any_stage_in_time(study_dir, make):
    make(study_dir)
    mpl.font_manager.findfont("sans")  # the first ever on a machine makes the font cache
    start = time.process_time()
    write_report(study_dir)
    assert time.process_time() - start < 15  # on a busy machine; 2 s alone
    width, height = size_of((study_dir / "comparison.png").read_bytes())
    assert width == 1800
    assert 700 < height < 1800


def test_the_picture_is_the_same_each_time_whatever_a_users_own_settings(drawn, monkeypatch):
    analysis, first = drawn
    monkeypatch.setitem(mpl.rcParams, "axes.facecolor", "red")
    assert comparison(analysis) == first
    assert mpl.rcParams["axes.facecolor"] == "red"


def test_equal_values_do_not_collapse_an_axis():
    low, high = window([Extent(5.0, 5.0), Extent(5.0 + 1e-13, 5.0 + 1e-13)])
    assert high - low >= 0.02
    low, high = window([Extent(0.0, 0.0), Extent(-1e-12, 1e-12)])
    assert high - low >= 0.02


def test_variants_of_one_study_have_colours_of_their_own():
    styles = styles_of({f"variant {i}": (f"family {i % 12}",) for i in range(40)})
    assert len({style.colour for style in styles.values()}) == 40
    assert len({style.dark for style in styles.values()}) == 40
    looks = {(style.colour, str(style.line), style.marker) for style in styles.values()}
    assert len(looks) == 40


def test_a_family_has_one_hue_and_the_baseline_and_the_floor_are_grey(tmp_path):
    kinds = {
        **{"mha": "grouped_query", "gqa_2": "grouped_query", "gqa_1": "grouped_query"},
        **{"linear": "gated_delta_net", "kda": "kda", "sparse_64": "deepseek_sparse"},
        **{"identity": "identity", "own": "theirs"},
    }
    functions = {name: {"function": kind} for name, kind in kinds.items()}
    study_dir = write_study(tmp_path / "s", {name: [5.0] for name in kinds}, **functions)
    styles = styles_of(families_of(read_table(study_dir)))

    def hue(name):
        hue, saturation, _ = rgb_to_hsv(to_rgb(styles[name].colour))
        return None if saturation < 0.1 else round(float(hue), 1)

    assert hue("mha") is hue("identity") is None
    assert styles["mha"].colour != styles["identity"].colour
    assert hue("gqa_2") == hue("gqa_1") is not None
    assert hue("linear") == hue("kda")
    assert len({hue(name) for name in ("gqa_2", "linear", "sparse_64", "own")}) == 4

    declared = {"one": ("gqa_2", "sparse_64"), "two": ("gqa_1",)}
    write_study(tmp_path / "d", {name: [5.0] for name in kinds}, families=declared, **functions)
    styles = styles_of(families_of(read_table(tmp_path / "d")))
    assert hue("gqa_2") == hue("sparse_64") != hue("gqa_1")


def test_names_at_the_ends_of_lines_do_not_overlap(study_dir):
    axes = Figure(figsize=(5, 4)).subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    ends = {f"v{i}": (1.0, 0.5 + i * 1e-9) for i in range(10)} | {"far": (1.0, 9.0)}
    with matplotlib_style():
        name_ends(axes, ends, styles_of({name: (name,) for name in ends}))
    heights = sorted(label.get_position()[1] for label in axes.texts)
    least = LINE_HEIGHT * axes.figure.dpi / 72 / axes.bbox.height
    assert len(heights) == 11
    assert min(above - below for below, above in pairwise(heights)) > 0.99 * least
    assert {label.get_text() for label in axes.texts} >= {"v0", "far 9 ↑"}


def test_one_far_variant_does_not_squash_the_others():
    near = [Extent(5.0 + i / 100, 5.01 + i / 100) for i in range(10)]
    assert window([*near, Extent(6.2, 6.21)]) == window(near)
    assert window([Extent(1.0, 1.01), *near]) == window(near)
    worse = [Extent(5.0 + i / 10, 5.05 + i / 10) for i in range(4)]
    assert window([*worse, Extent(6.0, 6.1)]) == window(worse)
    low, high = window([Extent(4.6, 4.7), *worse])
    assert low < 4.6  # the best one is what the figure is about
    low, high = window([Extent(1.0, 1.0), Extent(2.0, 2.0), Extent(9.0, 9.0)])
    assert low < 1 < 9 < high
    low, high = window([Extent(5.0, 5.0)])
    assert low < 5 < high


def test_the_picture_is_an_svg_too(drawn):
    _, (_, svg) = drawn
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    tips = {element.text for element in root.iter("{http://www.w3.org/2000/svg}title")}
    assert "identity minus mha: +1.1107 ± 0.0150" in tips
    assert "hybrid 3:1, seed 1: 5.0580" in tips
