"""The columns of every table of variants: one definition for page, Markdown, LaTeX and terminal.

A column gives a text for people and a value to sort by. An unknown value is a dash, and sorts last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attnlab.analysis import numbers
from attnlab.analysis.analysis import Analysis, Comparison
from attnlab.analysis.profile import profile_of, read_by
from attnlab.analysis.table import PARTS
from attnlab.reporting.tables.rows import Row, split_name, split_of

LOSS = "nats/token"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table of variants."""

    title: str
    text: Callable[[Row], str]
    unit: str = ""  # shown in the header, not in the cells
    value: Callable[[Row], float | None] | None = None  # None: sorted by its text
    about: str = ""  # a description, shown on hover
    priority: int = 0  # a narrow terminal drops the largest first, and never 0

    @property
    def heading(self) -> str:
        """The title with its unit, as in `peak memory (GiB)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


VARIANT = Column(title="variant", text=lambda row: row.name)


def ranking(analysis: Analysis, digits: int = 4) -> list[Column]:
    """Return rank, letters, the verdict's loss, its difference to the baseline, other quality.

    `digits` are those after the point, of the loss and of its difference.
    """
    split, name = split_of(analysis), split_name(analysis)
    spread = ", mean ± standard deviation over seeds" if len(analysis.seeds) > 1 else ""
    columns = [Column(title="#", text=_rank, value=lambda r: r.place, about="rank by mean loss")]
    if analysis.judged:
        columns.append(
            Column(
                title="letters",
                text=lambda r: numbers.UNKNOWN if r.letters is None else r.letters,
                about="variants that share a letter are not distinguishable",
            )
        )
    columns += [
        VARIANT,
        Column(
            title=f"{name} loss",
            unit=LOSS,
            text=lambda r: numbers.estimate(r.numbers.get(analysis.metric), digits),
            value=lambda r: r.mean(analysis.metric),
            about=f"lower is better{spread}",
        ),
    ]
    columns += _to_baseline(analysis, digits)
    columns += [
        Column(title="mechanism", text=lambda row: row.mechanism, priority=8),
        Column(
            title="seeds",
            text=lambda row: row.seeds,
            value=lambda r: len(r.variant.finished),
            about="finished / planned",
            priority=4,
        ),
        _number("perplexity", f"{split}_perplexity", 2, "exp of the mean loss", 1),
        _accuracy(analysis, f"{split}_accuracy"),
        _number("bits/byte", f"{split}_bits_per_byte", 4, "of text", 9),
    ]
    if split == "test":
        columns.append(_number("validation loss", "final_loss", 4, "lower is better", 9, LOSS))
    return columns


def for_page(shown: Sequence[Column]) -> list[Column]:
    """Return the columns of the ranking with name and loss first, which a phone keeps in sight.

    There is no rank: the order of means is that of the rows.
    """
    losses = [c for c in shown if c.title.endswith(" loss")]
    first = [VARIANT, *losses[:1], *(c for c in shown if c.title.startswith("Δ "))]
    return [*first, *(c for c in shown if c not in first and c.title != "#")]


def _to_baseline(analysis: Analysis, digits: int) -> list[Column]:
    """Return the difference to the baseline, the parts of its error, and what it amounts to."""
    baseline = analysis.table.study.baseline
    if baseline is None:
        return []
    kind = f"simultaneous {numbers.confidence(analysis.level)} interval"
    interval = f", with its {kind}" if analysis.judged else ""
    columns = [
        Column(
            title=f"Δ {baseline}",
            unit=LOSS,
            text=lambda row: (
                "baseline" if row.baseline else numbers.comparison(row.to_baseline, digits)
            ),
            value=lambda r: 0.0 if r.baseline else r.to_baseline and r.to_baseline.mean,
            about=f"loss minus that of {baseline}{interval}",
        )
    ]
    if not analysis.judged:
        return columns
    columns.append(
        Column(
            title="vs baseline",
            text=_standing,
            about=f"at {numbers.confidence(analysis.level)}, for all differences to the baseline",
            priority=1,
        )
    )
    if any(analysis.tuning.allowance.values()):
        columns += [
            Column(
                title="± seeds",
                unit=LOSS,
                text=lambda r: _of_pair(r, lambda pair: numbers.number(pair.half_width)),
                value=lambda r: r.to_baseline and r.to_baseline.half_width,
                about="half-width of the seeds in the interval of the difference",
                priority=13,
            ),
            Column(
                title="tuning",
                unit=LOSS,
                text=lambda r: _of_pair(r, _bounds),
                about="what tuning may have missed, below and above; adds in quadrature to ± seeds",
                priority=14,
            ),
        ]
    if analysis.on_text:
        noun = read_by(analysis.whole)
        columns.append(
            Column(
                title=f"± {noun}",
                unit=LOSS,
                text=lambda row: numbers.number(_on_text(row)),
                value=_on_text,
                about=f"half-width over blocks of the held-out {noun}, for this difference alone; "
                f"the verdict is on this {noun} and does not include it",
                priority=15,
            )
        )
    return columns


def _on_text(row: Row) -> float | None:
    found = row.analysis.on_text.get(row.name)
    return found and found.half_width


def _bounds(pair: Comparison) -> str:
    found = numbers.interval(-pair.first_allowance, pair.second_allowance)
    return found.replace(" to ", ", ")


def _of_pair(row: Row, text: Callable[[Comparison], str]) -> str:
    return numbers.UNKNOWN if row.to_baseline is None else text(row.to_baseline)


def costs(shown: Sequence[Row]) -> list[Column]:
    """Return size, arithmetic, time and memory, each in one unit that suits all rows."""
    return [
        _scaled("parameters", numbers.COUNTS, _total, "embedding included", 3, shown, 4),
        _scaled(
            *("active parameters", numbers.COUNTS, _active),
            *("used for one token; not shown where all are", 8, shown, 4),
        ),
        _flops(shown),
        _cost("time/step", "step_time", numbers.MILLISECONDS, "median of a run", 2, shown),
        _cost("tokens/s", "tokens_per_second", numbers.COUNTS, "in training", 7, shown),
        _cost("peak memory", "peak_memory_bytes", numbers.BYTES, "in training", 6, shown),
        _cost("decode state", "state_bytes", numbers.BYTES, "one sequence, full context", 5, shown),
        _cost("run time", "total_time", numbers.TIMES, "of one run, total", 11, shown),
        _cost("training time", "train_time", numbers.TIMES, "of one run, steps alone", 12, shown),
        _cost("compile time", "compile_time", numbers.TIMES, "with warm-up calls", 13, shown),
    ]


def parts() -> list[Column]:
    """Return the parameters of each part of the model."""

    def column(part: str) -> Column:
        def value(row: Row) -> float | None:
            count = row.variant.parameters.get(part)
            return None if part == "head" and not count else count  # tied: in the embedding

        def text(row: Row) -> str:
            count = value(row)
            return numbers.UNKNOWN if count is None else f"{count:,}"

        return Column(title=part.replace("_", "-"), text=text, value=value)

    return [column(part) for part in PARTS]


def known(columns: Sequence[Column], shown: Sequence[Row]) -> list[Column]:
    """Leave out the columns that have no known value."""
    return [c for c in columns if any(c.text(row) != numbers.UNKNOWN for row in shown)]


def standing(pair: Comparison | None) -> str:
    """Return in words what a difference amounts to."""
    if pair is None or pair.p is None:
        return numbers.UNKNOWN
    if pair.equivalent:
        return "equivalent"
    if not pair.separable:
        return "not worse" if pair.not_worse else "n.s."
    return "better" if pair.mean < 0 else "worse"


def _total(row: Row) -> float | None:
    return row.variant.parameters.get("total")


def _active(row: Row) -> float | None:
    """None where every parameter is active."""
    parameters = row.variant.parameters
    active = parameters.get("active")
    return None if active == parameters.get("total") else active


def _accuracy(analysis: Analysis, key: str) -> Column:
    """Return the accuracy: of answers with its error in a study of tasks, else of tokens."""
    found = {it.variant: it.accuracy for it in profile_of({"": analysis.table}, split_of(analysis))}
    if not found:
        return _number("accuracy", key, 4, "fraction of tokens predicted correctly", 9)
    return Column(
        title="accuracy of answers",
        text=lambda row: str(found.get(row.name, numbers.UNKNOWN)),
        value=lambda row: found[row.name].mean if row.name in found else None,
        about="over all finished seeds, with its own 95 % interval, or each seed",
        priority=2,
    )


def _standing(row: Row) -> str:
    return "baseline" if row.baseline else standing(row.to_baseline)


def _rank(row: Row) -> str:
    return numbers.UNKNOWN if row.place is None else str(row.place)


def _number(title: str, key: str, digits: int, about: str, priority: int, unit: str = "") -> Column:
    return Column(
        title=title,
        unit=unit,
        text=lambda row: numbers.number(row.mean(key), digits),
        value=lambda row: row.mean(key),
        about=about,
        priority=priority,
    )


def _cost(
    title: str, key: str, units: numbers.Units, about: str, priority: int, shown: Sequence[Row]
) -> Column:
    return _scaled(title, units, lambda row: row.mean(key), about, priority, shown)


def _flops(shown: Sequence[Row]) -> Column:
    """Return the FLOPs, and say where they are unknown, as those of other packages' kernels are."""
    key, about = "flops_per_token", "forward, full context"
    column = _cost("FLOPs/token", key, numbers.COUNTS, about, 10, shown)
    some = any(row.mean(key) is not None for row in shown)

    def text(row: Row) -> str:
        return "not counted" if some and row.mean(key) is None else column.text(row)

    return replace(column, text=text)


def _scaled(
    title: str,
    units: numbers.Units,
    value: Callable[[Row], float | None],
    about: str,
    priority: int,
    shown: Sequence[Row],
    digits: int = 3,
) -> Column:
    """Return a column in the unit that suits the median of its values."""
    factor, unit = numbers.common_unit([value(row) for row in shown], units)

    def text(row: Row) -> str:
        number = value(row)
        return numbers.UNKNOWN if number is None else numbers.significant(number / factor, digits)

    return Column(title=title, unit=unit, text=text, value=value, about=about, priority=priority)
