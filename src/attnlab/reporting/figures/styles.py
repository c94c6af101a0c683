"""The style of every figure: a colour, a line and a marker per variant, and matplotlib's settings.

A variant keeps its style in every chart: the hue of its family, a shade, a line and a marker of its
own. Nothing depends on colour alone.

The families are those that the study declares. Otherwise variants with mechanisms of one kind
(several recurrent kinds count as one), or of the same mixture of kinds, are a family. The baseline
and the floor, a model without attention, are grey.
"""

import io
import json
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from attnlab.analysis.analysis import Analysis
from attnlab.analysis.table import Table
from attnlab.analysis.texts import without_common
from attnlab.reporting.tables.rows import plain

BASELINE, FLOOR = "baseline", "floor"
WITHOUT_ATTENTION = frozenset({"identity", "none"})
RECURRENT = (
    *("delta_net", "gated_delta_net", "gated_delta_product", "gla", "kda"),
    *("lightning_attention", "mamba2", "rwkv7"),
)
Families = Mapping[str, tuple[str, ...]]  # by variant, a name that only equal families share

# Okabe and Ito 2008 and Tol 2021: hues that the colour-blind can distinguish
HUES = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"),
    *("#882255", "#999933", "#56B4E9", "#8C564B"),
)
DARKEST, LIGHTEST = -0.4, 0.3  # shades of a hue: mixed with so much black, or white
OF_BASELINE, OF_FLOOR = ("#333333", "#D6D9DE"), ("#9A9A9A", "#85898F")  # on white, on black
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MOST_SHADES = 6  # of the only family; more get a ramp of hues
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "p", "X", "P", "h")
INK, GREY, GRID, PAPER, SHADE = "#000000", "#666666", "#E4E4E4", "#FFFFFF", "#F2F4F7"

DOTS_PER_INCH = 150
BACKENDS = {"pdf": FigureCanvasPdf, "png": FigureCanvasAgg, "svg": FigureCanvasSVG}
SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,  # every tick shows its whole value
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a variant's name is a dollar sign
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "svg.hashsalt": "attnlab",  # the same figure gives the same bytes
}
PAGE_SETTINGS: Any = {
    "svg.fonttype": "none",  # letters stay letters: to find, to copy, to read aloud
    "axes.titlesize": 11,
    "axes.titleweight": "normal",
    "axes.titlecolor": GREY,
    "axes.labelcolor": GREY,
    "xtick.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
PAPER_SETTINGS: Any = {
    "font.size": 7.5,
    "axes.linewidth": 0.6,
}


class Style(NamedTuple):
    """The style of one variant in every panel."""

    colour: str  # on a light page
    dark: str  # on a dark page
    line: Any
    marker: str
    label: str  # its name in figures
    group: str  # class of all that is drawn of it, by which a page shows and hides it


Styles = Mapping[str, Style]


def families_of(table: Table) -> Families:
    """Return the family of each variant, in the order of the study."""
    declared = {name: f for f, names in table.study.families.items() for name in names}
    found: dict[str, tuple[str, ...]] = {}
    for variant in table.variants:
        found[variant.name] = family_of(variant.name, variant.config)
        if variant.name == table.study.baseline:
            found[variant.name] = (BASELINE,)
        elif variant.name in declared and found[variant.name] != (FLOOR,):
            found[variant.name] = ("declared", declared[variant.name])
    return found


def family_of(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the family of a variant by the kinds of its mechanisms; its own if none is known."""
    kinds = kinds_of(config)
    if kinds and kinds <= WITHOUT_ATTENTION:
        return (FLOOR,)
    families = {"recurrent" if kind in RECURRENT else kind for kind in kinds}
    return ("kinds", *sorted(families or {name}))


def kinds_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the kinds of the mechanisms of all layers; empty where the settings do not say."""
    mechanisms = config.get("model", {}).get("mechanisms") or ()
    if isinstance(mechanisms, Mapping):
        layers: Iterable[Any] = mechanisms.get("layers", {}).values()
        mechanisms = [mechanisms.get("default"), *layers]
    return frozenset(str(of["kind"]) for of in mechanisms if of and "kind" in of)


def styles_of(families: Families, labels: Mapping[str, str] | None = None) -> Styles:
    """Return the style of each variant from its family, in the order given.

    `labels` are names for figures, where they are not those of the variants. Families beyond the
    number of hues share one, with shades of their own.

    """
    places = {family: i for i, family in enumerate(_with_hue(families))}
    slots: dict[int, list[str]] = {}
    for name, family in sorted(families.items(), key=lambda item: places.get(item[1], -1)):
        if family in places:
            slots.setdefault(places[family] % len(HUES), []).append(name)
    ramp = len(slots) == 1 and len(families) > MOST_SHADES
    colours: dict[str, tuple[str, str]] = {}
    for slot, names in slots.items():
        for place, name in enumerate(names):
            among = place / (len(names) - 1) if len(names) > 1 else 0.4
            colours[name] = _of_ramp(among) if ramp else _shades(HUES[slot], among)
    return {
        name: Style(
            *(colours.get(name) or (OF_BASELINE if family == (BASELINE,) else OF_FLOOR)),
            LINES[i % len(LINES)] if name in colours else "-",
            MARKERS[i % len(MARKERS)],
            plain((labels or {}).get(name, name)),
            f"v{i}",
        )
        for i, (name, family) in enumerate(families.items())
    }


def styles_in(analysis: Analysis) -> Styles:
    """Return the styles of an analysis: of its variants, and of each other family of a ladder.

    On a ladder, and of several texts, labels are short: the family, or the mechanism's name.
    """
    table, rungs = analysis.table, analysis.whole.study.rungs
    names = [variant.name for variant in table.variants]
    short = dict(zip(names, without_common(names), strict=True)) if analysis.several_texts else {}
    if analysis.cell is not None:
        started = {
            rungs[v.name].family: v for v in analysis.whole.variants if v.name in rungs and v.config
        }
        here = {rungs[name].family: name for name in names if name in rungs}
        of_family = [replace(v, name=here.get(of, v.name)) for of, v in started.items()]
        known = {v.name for v in of_family}
        table = replace(
            table, variants=(*of_family, *(v for v in table.variants if v.name not in known))
        )
        short = {name: rung.family for name, rung in rungs.items()}
    return styles_of(families_of(table), short | dict(table.study.labels))


def _with_hue(families: Families) -> dict[tuple[str, ...], None]:
    return dict.fromkeys(f for f in families.values() if f not in ((BASELINE,), (FLOOR,)))


def _shades(hue: str, among: float) -> tuple[str, str]:
    """Return a shade for a light and for a dark page; `among` is 0 for the darkest, 1 lightest."""
    amount = DARKEST + among * (LIGHTEST - DARKEST)
    return _mixed(hue, amount), _mixed(_mixed(hue, 0.3), 0.6 * amount)


def _of_ramp(among: float) -> tuple[str, str]:
    """Return a colour of viridis, which rises in lightness, for many variants of one family."""
    ramp = mpl.colormaps["viridis"]
    return to_hex(ramp(0.85 * among)), to_hex(ramp(0.3 + 0.7 * among))


def _mixed(colour: str, amount: float) -> str:
    """Return a colour with so much black in it (negative), or white.

    >>> _mixed("#0080ff", -0.5), _mixed("#0080ff", 0.5)
    ('#004080', '#80c0ff')
    """
    other = 1.0 if amount > 0 else 0.0
    red, green, blue = (of + abs(amount) * (other - of) for of in to_rgb(colour))
    return to_hex((red, green, blue))


def mark(artist: Any, *groups: str, tips: Sequence[str] = ()) -> None:
    """Attach to an artist the classes it belongs to, and a text for it or each of its points.

    `figures.svg` makes classes and hover texts of them; in a PNG they have no effect.
    """
    artist.set_gid(json.dumps([list(groups), list(tips)]))


def mark_each(artist: Any, groups: Sequence[str], tips: Sequence[str] = ()) -> None:
    """Attach a class and a text to each point of an artist that holds those of many variants."""
    artist.set_gid(json.dumps([[], list(tips), list(groups)]))


def scale() -> float:
    """Return the size of marks relative to those of a page: 1, or less in a paper's column."""
    return float(mpl.rcParams["font.size"]) / SETTINGS["font.size"]


@contextmanager
def matplotlib_style(*, page: bool = False, paper: bool = False) -> Generator[None, None, None]:
    """Set matplotlib's settings, whatever the user's own are; make and save figures within it.

    `page` is for SVG within a page, `paper` for one column of a paper. A letter that the font lacks
    is drawn as a box, without a warning.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS | (PAGE_SETTINGS if page else PAPER_SETTINGS if paper else {}))
        yield


def lay_out(figure: Figure, backend: type[FigureCanvasBase]) -> None:
    """Place everything as it will be saved: `savefig` would draw the figure once more for that."""
    backend(figure)  # the sizes of letters depend on it
    figure.dpi = 72  # of vector graphics
    place(figure)


def place(figure: Figure) -> None:
    """Execute the figure's layout, once for all drawings of it."""
    for axes in figure.axes:
        for artist in (*axes.lines, *axes.collections):  # what is clipped takes no room
            artist.set_in_layout(not artist.get_clip_on())
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def pdf(figure: Figure) -> bytes:
    """Return the bytes of a PDF file, with letters as text."""
    lay_out(figure, FigureCanvasPdf)
    return printed(figure, "pdf", {"CreationDate": None, "Producer": None})


def png(figure: Figure) -> bytes:
    """Return the bytes of a PNG file."""
    figure.dpi = DOTS_PER_INCH
    return printed(figure, "png", {"Software": None})


def printed(figure: Figure, form: str, metadata: Mapping[str, None]) -> bytes:
    """Return the bytes of a file, where `savefig` would draw everything once more to place it."""
    file = io.BytesIO()
    backend: Any = BACKENDS[form](figure)
    getattr(backend, f"print_{form}")(file, metadata=metadata)
    return file.getvalue()
