"""Where the page's charts are drawn: one size, one style, ids that are unique on the page."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnlab.reporting.figures.drawing import style
from attnlab.reporting.figures.styles import Look, Looks
from attnlab.reporting.html.svg import inline_svg

WIDTH, HEIGHT = 380, 280  # in the SVG's own units, which letters of size 11 are measured in
Draw = Callable[[Axes], None]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One drawing, or several forms of one of which a switch shows the first."""

    title: str
    text: str  # for who does not see it, and under it for who does
    forms: Mapping[str, str]  # classes that a switch goes by: <svg>


class Canvas:
    """One a page."""

    def __init__(self) -> None:
        self._drawn = 0

    def chart(self, draw: Draw, title: str, text: str) -> Chart:
        """One that has one form."""
        return Chart(title=title, text=text, forms={"": self.svg(draw, title, text)})

    def svg(
        self,
        draw: Draw,
        title: str,
        text: str,
        size: tuple[int, int] = (WIDTH, HEIGHT),
        *,
        bare: bool = False,
    ) -> str:
        """As inline SVG; `bare` is without margins, for an ornament."""
        with style(page=True):
            inches = (size[0] / 72, size[1] / 72)  # a point is one unit of the SVG
            figure = Figure(figsize=inches, layout=None if bare else "constrained")
            draw(figure.add_axes((0, 0, 1, 1)) if bare else figure.subplots())
            self._drawn += 1
            return inline_svg(figure, f"chart{self._drawn}-", title, text)

    def samples(self, looks: Looks) -> str:
        """A small line with its marker for each look, to be shown with `<use href="#look-v0">`."""

        def one(look: Look) -> Draw:
            def draw(axes: Axes) -> None:
                axes.set_axis_off()
                axes.set(xlim=(0, 1), ylim=(0, 1))
                axes.plot([0, 1], [0.5, 0.5], color=look.colour, ls=look.line, lw=1.8)
                axes.plot(0.5, 0.5, look.marker, color=look.colour, ms=7, mec="white", mew=0.5)

            return draw

        drawn = {
            look.group: self.svg(one(look), "", "", (38, 14), bare=True) for look in looks.values()
        }
        return "".join(f'<g id="look-{group}">{svg}</g>' for group, svg in drawn.items())
