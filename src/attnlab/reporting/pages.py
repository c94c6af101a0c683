"""report.html and report.md: one context, two templates.

report.html is one file that needs no network; everything in it can be read without JavaScript,
since what is switched on and off is form controls and CSS. report.md shows the same with one
picture in place of the charts. Their text is in `templates/`.
"""

import re
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from attnlab.analysis.analysis import Analysis
from attnlab.analysis.sweeps import SweptSetting
from attnlab.config import visible
from attnlab.reporting.context import ReportContext
from attnlab.reporting.profile import CAPTION, against_state, profile, styles_on, tasks_of
from attnlab.reporting.tables import columns
from attnlab.reporting.tables.scaling import QUANTITIES, tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attnlab.reporting.figures.page_charts import Charts
    from attnlab.reporting.figures.svg import Chart


MOST_ABOVE = 2  # charts of tasks on the first screen


def page(analysis: Analysis) -> str:
    """Return report.html."""
    from attnlab.reporting.figures.page_charts import Charts  # matplotlib takes a second to import

    context, charts = ReportContext.of(analysis), Charts(analysis)
    drawn, profiles = charts.all(), _profiles(analysis, charts)
    above = profiles if len(profiles) <= MOST_ABOVE else []
    filled = {
        "quality": drawn["loss"] or drawn["curves"],
        "cost": context.rows,
        "efficiency": context.efficiency,
        "missing": context.missing or context.alarms or context.left_out,
        "loss_parts": False,  # within the loss
        "settings": False,  # within the method
        "again": False,
        "texts": analysis.texts,
        "scaling": context.scaling,
        "profile": context.profile,
        "harness": context.harness,
        "hypotheses": analysis.judgements,
        "families": context.families,
        "lengths": drawn["lengths"],
        "sweep": drawn["sweep"],
        "training_lengths": context.training_lengths,
        "rates": drawn["rates"],
        "bench": drawn["bench"],
    }
    return _rendered(
        "page.html.j2",
        replace(
            context,
            ranking=columns.for_page(context.ranking),
            texts=[replace(of, ranking=columns.for_page(of.ranking)) for of in context.texts],
        ),
        **drawn,
        first=_first(analysis, charts),
        tasks=above,
        laws=_laws(analysis, charts),
        along_lengths=along_lengths(analysis, charts),
        profiles=[it for it in profiles if it not in above],
        colours=charts.styles,
        forests=forests(analysis),
        styles={row.name: charts.styles[row.name] for row in context.rows},
        sections={key: title for key, title in context.titles.items() if filled.get(key, True)},
    )


def forests(analysis: Analysis) -> list["Chart"]:
    """Return the differences to the baseline of each other text, two beside one another."""
    from attnlab.reporting.figures.page_charts import Charts

    drawn = (
        Charts(of, f"text{place}-").forest()
        for place, of in enumerate(analysis.texts.values(), start=2)
    )
    return [replace(it, forms={"": it.forms["narrow"]}) for it in drawn if it is not None]


def _first(analysis: Analysis, charts: "Charts") -> list["Chart"]:
    """Return the charts that answer a ladder or a study of training lengths, at most two."""
    from attnlab.reporting.figures.scaling import first_panels, main_quantity

    panels, found = first_panels(analysis, charts.styles), analysis.scaling
    title = QUANTITIES[quantity][0] if found and (quantity := main_quantity(found)) else ""
    titles = {
        "scaling": f"Loss against {title} (nats/token)",
        "speedup": f"Effective speedup in {title}",
        "lengths_all": "Difference to the baseline by training length (nats/token)",
        "lengths_recall": "The same on recall tokens (nats/token)",
    }

    def chart(name: str) -> "Chart":
        def draw(axes: "Axes") -> None:
            panels[name].draw(axes)
            axes.set(title="", ylabel="")

        return charts.svg_charts.chart(draw, titles[name], panels[name].caption)

    return [chart(name) for name in titles if name in panels]


def _laws(analysis: Analysis, charts: "Charts") -> list["Chart"]:
    """Return the charts of a ladder, two per quantity; empty for a study that is none."""
    from attnlab.reporting.figures.scaling import scaling_differences, scaling_laws

    found, drawn = analysis.scaling, list["Chart"]()
    for quantity, (title, where) in QUANTITIES.items():
        if found is None or (along := found.along.get(quantity)) is None:
            continue
        more: dict[str, Any] = {
            "along": along,
            "styles": charts.styles,
            "text": partial(tick, quantity=quantity),
        }
        sure = any(fit.exponent for fit in along.fits.values())
        drawn.append(
            charts.svg_charts.chart(
                partial(scaling_laws, **more),
                f"Loss against {title} (nats/token)",
                f"Points: means over seeds, filled {where}. Lines: power laws"
                f"{' with 95 % intervals' if sure else '; one seed gives no intervals'}.",
            )
        )
        if found.baseline in along.fits and len(along.fits) > 1:
            drawn.append(
                charts.svg_charts.chart(
                    partial(scaling_differences, baseline=found.baseline, **more),
                    f"Loss minus that of {found.baseline} at equal {title} (nats/token)",
                    "Below 0 is better. Lines through the means that are filled in the figure "
                    f"before{', with 95 % intervals of the seeds' if sure else ''}.",
                )
            )
    return drawn


def along_lengths(analysis: Analysis, charts: "Charts") -> list["Chart"]:
    """Return the charts over the training lengths of a study, one per part of the loss."""
    from attnlab.reporting.figures.loss_against import along_setting

    found, drawn = analysis.training_lengths, list["Chart"]()
    for part in ("all", "recall", "other") if found else ():
        assert found is not None
        setting = found.along_part(part)
        if not setting.lines:
            continue

        def draw(axes: "Axes", setting: SweptSetting = setting) -> None:
            along_setting(axes, setting, charts.styles)
            axes.set_xlabel(setting.path)

        drawn.append(
            charts.svg_charts.chart(
                draw,
                f"Difference to {analysis.table.study.baseline} on {part} tokens, by training "
                "length (nats/token)",
                f"Below 0 is better than {analysis.table.study.baseline} of the same length. Bars: "
                f"intervals of each study, of seeds{' and tuning' if part == 'all' else ''}.",
            )
        )
    return drawn


def _profiles(analysis: Analysis, charts: "Charts") -> list["Chart"]:
    """Return the charts of a study of tasks, one per task; empty for a study of texts."""
    found = profile(analysis)
    styles = styles_on(found, charts.styles) if found else {}
    return [
        charts.svg_charts.chart(
            partial(against_state, found=of_task, styles=styles, named=True),
            f"{task}: accuracy of answers against decode state",
            CAPTION,
        )
        for task, of_task in tasks_of(found).items()
    ]


def markdown(analysis: Analysis, picture: str | None) -> str:
    """Return report.md. `picture` is the path to show, relative to the report, or None."""
    return _rendered("report.md.j2", ReportContext.of(analysis), picture=picture)


def prose(text: str) -> Markup:
    """Return HTML of a sentence: escaped, with `code` between backticks as such.

    >>> prose("`gqa_1` & <b>")
    Markup('<code>gqa_1</code> &amp; &lt;b&gt;')
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def cell(value: Any) -> str:
    r"""Return one line of Markdown, without what would be read as a cell, emphasis, link or tag.

    Nor does it begin a block, such as a fence that would hide the rest of the page.

    >>> cell("a|b\n*c*")
    'a\\|b \\*c\\*'
    """
    escapes = {"\\": "\\\\", "<": "&lt;", "|": "\\|", "*": "\\*", "[": "\\["}
    text = " ".join(str(value).split())
    text = "".join(escapes.get(character, character) for character in text)
    return re.sub(r"^(?=#{1,6} |>|[-+] |~~~|```)", r"\\", text)


def _visible(value: Any) -> Any:
    """Return a value of a template without control characters, which `cat` would not show."""
    return type(value)(visible(value)) if isinstance(value, str) else value


def _rendered(template: str, context: ReportContext, **more: Any) -> str:
    return _templates().get_template(template).render(**vars(context), **more)


@cache
def _templates() -> Environment:
    """Return the templates, each of which is compiled at its first use."""
    environment = Environment(
        loader=PackageLoader("attnlab.reporting"),
        undefined=StrictUndefined,
        autoescape=lambda name: name is not None and ".html" in name,
        finalize=_visible,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"prose": prose, "cell": cell}
    return environment
