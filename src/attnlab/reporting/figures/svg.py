"""A matplotlib figure as SVG that a page can style, point at and read aloud.

matplotlib writes a sound but verbose file whose ids would clash with those of a second figure on
one page. Here its ids become unique, what `styles.mark` attached becomes classes and <title>
elements, and for a page the colours of `styles` become CSS variables, so that light and dark both
work.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from xml.etree import ElementTree

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from attnlab.config import visible
from attnlab.reporting.figures.styles import (
    GREY,
    GRID,
    INK,
    PAPER,
    SHADE,
    Style,
    Styles,
    lay_out,
    matplotlib_style,
    printed,
)

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
VARIABLES = {
    INK.lower(): "currentColor",
    GREY.lower(): "var(--muted)",
    GRID.lower(): "var(--grid)",
    PAPER.lower(): "var(--paper)",
    SHADE.lower(): "var(--shade)",
}
WIDTH, HEIGHT = 380, 280  # SVG units, in which font sizes are given too
Element = ElementTree.Element
Draw = Callable[[Axes], None]


def inline_svg(
    figure: Figure, name: str, title: str, description: str, variables: Mapping[str, str]
) -> str:
    """Return an <svg> element for an HTML page. `name` is unique on it, and prefixes every id.

    `variables` gives the CSS of colours. Call it within `styles.matplotlib_style`.
    """
    lay_out(figure, FigureCanvasSVG)
    root = _clean(figure, name)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _with_variables(element.attrib["style"], variables))
    for definitions in root.findall("defs"):
        for rule in definitions.findall("style"):  # would hold for the whole page
            definitions.remove(rule)
    del root.attrib["width"], root.attrib["height"]
    named = {"role": "img", "aria-labelledby": f"{name}-title {name}-text", "class": "chart"}
    root.attrib.update(named)
    for tag, text in (("desc", description), ("title", title)):
        child = Element(tag, id=f"{name}-{'title' if tag == 'title' else 'text'}")
        child.text = text
        root.insert(0, child)
    return _written(root)


def whole_svg(figure: Figure) -> bytes:
    """Return an SVG file that looks the same everywhere: its letters are paths."""
    root = _clean(figure, "a")
    root.attrib.update(
        {"xmlns": SVG.strip("{}"), "xmlns:xlink": XLINK.strip("{}"), "version": "1.1"}
    )
    for element in root.iter("use"):  # SVG 1.1 viewers know no other
        element.set("xlink:href", element.attrib.pop("href"))
    return f'<?xml version="1.0" encoding="utf-8"?>\n{_written(root)}\n'.encode()


def _clean(figure: Figure, prefix: str) -> Element:
    text = printed(figure, "svg", {"Date": None, "Creator": None}).decode()
    root = ElementTree.fromstring(visible(text))  # XML has no control characters
    for parent in root.iter():
        parent.tag = parent.tag.removeprefix(SVG)
        parent.text = parent.text if (parent.text or "").strip() else None
        parent.tail = None
        for child in list(parent):
            if child.tag == f"{SVG}metadata":
                parent.remove(child)
    names = {name: f"{prefix}{i}" for i, name in enumerate(sorted(_references(root)))}
    for element in root.iter():
        _clean_attributes(element, names)
    for element in root.iter("g"):
        _hoist(element)
    return root


def _references(root: Element) -> set[str]:
    found: set[str] = set()
    for element in root.iter():
        for value in element.attrib.values():
            found |= set(re.findall(r"url\(#([^)]+)\)", value))
        if f"{XLINK}href" in element.attrib:
            found.add(element.attrib[f"{XLINK}href"].removeprefix("#"))
    return found


def _clean_attributes(element: Element, names: dict[str, str]) -> None:
    own = element.attrib
    target = own.pop(f"{XLINK}href", None)
    if target is not None:
        own["href"] = "#" + names[target.removeprefix("#")]
    _add_marks(element, own.pop("id", ""), names)
    if "clip-path" in own:
        own["clip-path"] = re.sub(r"#([^)]+)", lambda m: f"#{names[m[1]]}", own["clip-path"])
    if "d" in own:
        own["d"] = _short(" ".join(own["d"].split()))
    for key in {"x", "y", "width", "height", "transform"} & own.keys():
        if element.tag != "svg":
            own[key] = _short(own[key])
    if re.match(r"rotate\(-?0 ", own.get("transform", "")):
        del own["transform"]
    if "style" in own:
        own["style"] = re.sub(r"font-family: [^;]*;? ?", "", own["style"])
        own["style"] = own["style"].replace(": ", ":").replace("; ", ";")


def _add_marks(element: Element, identity: str, names: dict[str, str]) -> None:
    """Turn what `styles.mark` attached into classes and a <title> per marker, or for the whole."""
    if identity in names:
        element.set("id", names[identity])
    if not identity.startswith("["):
        return
    groups, tips, *own = cast("list[list[str]]", json.loads(identity))
    if groups:
        element.set("class", " ".join(groups))
    points = _points(element) if own or len(tips) > 1 else []
    for point, group in zip(points, own[0] if own else (), strict=False):
        point.set("class", group)
    for target, tip in zip(points if own or len(points) > 1 else [element], tips, strict=False):
        child = Element("title")
        child.text = visible(tip)
        target.insert(0, child)


def _points(element: Element) -> list[Element]:
    """Return the markers of an artist, or the lines of one without; no definitions."""
    found = [use for use in element.iter() if use.tag in ("use", f"{SVG}use")]
    paths = [
        of for of in element.iter() if of.tag in ("path", f"{SVG}path") and "id" not in of.attrib
    ]
    return found or paths


def _hoist(group: Element) -> None:
    """Move a style that all children share to their group. A definition's own style stays."""
    styles = {child.get("style") for child in group if child.tag == "use"}
    if len(group) > 1 and len(styles) == 1 and all(child.tag == "use" for child in group):
        (style,) = styles
        if style and "style" not in group.attrib:
            group.set("style", style)
            for child in group:
                del child.attrib["style"]


def _short(numbers: str) -> str:
    return re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), numbers)


def _with_variables(style: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda m: variables.get(m[0], m[0]), style)


def _written(root: Element) -> str:
    return cast("str", cast("Any", ElementTree).tostring(root, encoding="unicode"))


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawing, or several forms of it, of which a switch on the page shows one."""

    title: str
    text: str  # the caption, also the description that a screen reader reads
    forms: Mapping[str, str]  # {class by which a switch shows it: <svg>}


class SvgCharts:
    """Draws the charts of one page, with ids that are unique on it."""

    def __init__(self, styles: Styles, prefix: str = "") -> None:
        """`prefix` begins the ids, where a page has charts of several."""
        self._drawn, self._prefix = 0, prefix
        own = {style.colour.lower(): f"var(--{style.group})" for style in styles.values()}
        self._variables = own | VARIABLES

    def chart(self, draw: Draw, title: str, text: str) -> Chart:
        """Return a chart with one form."""
        return Chart(title=title, text=text, forms={"": self.svg(draw, title, text)})

    def svg(
        self, draw: Draw, title: str, text: str, size: tuple[int, int] = (WIDTH, HEIGHT)
    ) -> str:
        """Return inline SVG."""
        with matplotlib_style(page=True):
            inches = (size[0] / 72, size[1] / 72)  # a point is one unit of the SVG
            figure = Figure(figsize=inches, layout="constrained")
            draw(figure.subplots())
            self._drawn += 1
            return inline_svg(
                figure, f"{self._prefix}chart{self._drawn}-", title, text, self._variables
            )


def samples(styles: Styles) -> str:
    """Return a line with its marker per style, to be shown by `<use href="#style-v0">`."""
    return "".join(
        f'<g id="style-{style.group}"><path d="M0 7H38" style="fill:none;{_stroke(style)}"/>'
        f'<path d="{_marker(style.marker)}" transform="translate(19 7) scale(3.5 -3.5)" '
        f'style="fill:var(--{style.group});stroke:var(--paper);stroke-width:0.14"/></g>'
        for style in styles.values()
    )


def _stroke(style: Style) -> str:
    dashes = "" if style.line == "-" else " ".join(f"{1.8 * of:g}" for of in style.line[1])
    return f"stroke:var(--{style.group});stroke-width:1.8;stroke-dasharray:{dashes or 'none'}"


def _marker(name: str) -> str:
    marker: Any = MarkerStyle(name)  # a unit wide
    outlines = marker.get_path().transformed(marker.get_transform()).to_polygons()
    return "".join(
        "M" + "L".join(f"{2 * x:.2f} {2 * y:.2f}" for x, y in outline) + "Z" for outline in outlines
    )
