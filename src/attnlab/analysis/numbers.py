"""Numbers as text, for every sentence, table and figure. An unknown number is a dash."""

import math
from collections.abc import Sequence
from statistics import median

from attnlab.analysis.statistics.comparisons import Comparison
from attnlab.analysis.statistics.paired import Difference, Estimate

UNKNOWN = "–"

Units = Sequence[tuple[float, str]]  # (factor, name), the smallest first
COUNTS: Units = ((1, ""), (1e3, "K"), (1e6, "M"), (1e9, "G"), (1e12, "T"), (1e15, "P"))
BYTES: Units = tuple((1024.0**i, name) for i, name in enumerate(("B", "KiB", "MiB", "GiB", "TiB")))
MILLISECONDS: Units = ((1e-3, "ms"),)
TIMES: Units = ((1, "s"), (60, "min"), (3600, "h"))


def confidence(level: float) -> str:
    """Return the confidence of intervals with an error rate.

    >>> confidence(0.05), confidence(0.05 / 3)
    ('95 %', '98.3 %')
    """
    return f"{100 * (1 - level):.3g} %"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits after the point."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent.

    >>> significant(0.01234), significant(5.6), significant(1234.5)
    ('0.0123', '5.60', '1234')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 999.9 is 1000, of four digits
    before_point = math.floor(math.log10(abs(rounded))) + 1
    return f"{value:.{max(digits - before_point, 0)}f}"


def nats(value: float) -> str:
    """Return a loss or a difference of losses with its unit.

    >>> nats(0.08401), nats(math.inf)
    ('0.084 nats/token', '∞ nats/token')
    """
    return f"{_end(value, 3)} nats/token"


def estimate(value: Estimate | None, digits: int = 4) -> str:
    """Return mean ± standard deviation over seeds; the mean alone for one seed."""
    if value is None:
        return UNKNOWN
    spread = "" if value.spread is None else f" ± {value.spread:.{digits}f}"
    return f"{number(value.mean, digits)}{spread}"


def comparison(value: Comparison | None, digits: int = 4) -> str:
    """Return mean ± half-width of the interval, or both ends if tuning widens it.

    The mean alone for one seed.
    """
    if value is None:
        return UNKNOWN
    if value.half_width is None:
        return f"{value.mean:+.{digits}f}"
    if value.first_allowance or value.second_allowance:
        ends = interval(value.low, value.high, digits).replace(" to ", ", ")
        return f"{value.mean:+.{digits}f} [{ends}]"
    return f"{value.mean:+.{digits}f} ± {value.half_width:.{digits}f}"


def change(value: Difference | None) -> str:
    """Return mean ± half width of the interval; the mean alone for one seed."""
    if value is None:
        return UNKNOWN
    half = "" if value.half_width is None else f" ± {value.half_width:.4f}"
    return f"{value.mean:+.4f}{half}"


def interval(low: float | None, high: float | None, digits: int = 4) -> str:
    """Return both ends, signed.

    >>> interval(-0.1, 0.02), interval(-math.inf, 0.02)
    ('-0.1000 to +0.0200', '-∞ to +0.0200')
    """
    if low is None or high is None:
        return UNKNOWN
    return " to ".join(_end(end, digits, "+") for end in (low, high))


def ends(interval: tuple[float, float] | None, digits: int, sign: str = "") -> str:
    """Return both ends of an interval in brackets, signed with the sign `+`; empty without one.

    >>> ends((0.16, math.inf), 2), ends((-math.inf, 0.1), 2, "+"), ends(None, 2)
    ('[0.16, ∞]', '[-∞, +0.10]', '')
    """
    if interval is None:
        return ""
    return f"[{', '.join(_end(end, digits, sign) for end in interval)}]"


def _end(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("inf", "∞")


def tokens(length: int) -> str:
    """Return a sequence length, in units of 1,024 where it is a multiple of them.

    >>> tokens(512), tokens(2048), tokens(3000)
    ('512', '2K', '3,000')
    """
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def quantity(value: float | None, unit: str) -> str:
    """Return a cost with its unit, which may be a rate.

    >>> quantity(0.0123, "seconds"), quantity(2**21, "bytes"), quantity(1500, "bytes/token")
    ('12.3 ms', '2.00 MiB', '1.46 KiB/token')
    >>> quantity(11.7e6, "FLOPs"), quantity(4_785_280, ""), quantity(0, "bytes")
    ('11.7 MFLOPs', '4.79 M', '0 B')
    """
    if value is None:
        return UNKNOWN
    unit, slash, per = unit.partition("/")
    if unit == "bytes":
        text = size(value)
    elif unit == "seconds":
        text = f"{milliseconds(value)} ms"
    else:
        text = f"{count(value)} {unit}" if value < 1000 else f"{count(value)}{unit}"
    return f"{text.strip()}{slash}{per}"


def count(value: float | None) -> str:
    """Return a count in thousands, millions and so on, by powers of 1,000.

    >>> count(950), count(118_000), count(4_863_000), count(999_999)
    ('950', '118 K', '4.86 M', '1.00 M')
    """
    return _scaled(value, COUNTS)


def millions(value: float) -> str:
    """Return a model size with a fixed number of decimals, so that close sizes stay comparable.

    >>> millions(118_623_000), millions(950)
    ('118.6 M', '950')
    """
    return f"{value / 1e6:.1f} M" if value >= 1e6 else count(value)


def size(value: float | None) -> str:
    """Return bytes by powers of 1,024.

    >>> size(512), size(262_144), size(3 * 2**30)
    ('512 B', '256 KiB', '3.00 GiB')
    """
    return _scaled(value, BYTES)


def gigabytes(value: float) -> str:
    """Return bytes in units of 10^9, as papers write them.

    >>> gigabytes(81.3e9)
    '81.3 GB'
    """
    return f"{value / 1e9:.1f} GB"


def duration(seconds: float | None) -> str:
    """Return a time in the units in which people read it.

    >>> duration(0.25), duration(75), duration(5400)
    ('0.250 s', '1 min 15 s', '1 h 30 min')
    """
    if seconds is None or seconds < 59.95:
        return UNKNOWN if seconds is None else f"{significant(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def milliseconds(seconds: float | None) -> str:
    """Return a time in milliseconds, without the unit."""
    return UNKNOWN if seconds is None else significant(1000 * seconds)


def common_unit(values: Sequence[float | None], units: Units) -> tuple[float, str]:
    """Return the unit, with its factor, in which the median of the known values is at least 1.

    >>> common_unit([5e5, 2e6, 3e6, None], COUNTS)
    (1000000.0, 'M')
    """
    middle = median([value for value in values if value is not None] or [0.0])
    return next((unit for unit in reversed(units) if middle >= unit[0]), units[0])


def _scaled(value: float | None, units: Units) -> str:
    if value is None:
        return UNKNOWN
    nearly = 0.9995 if units is COUNTS else 1.0  # 999,999 is 1.00 M
    fitting = (unit for unit in reversed(units) if value >= nearly * unit[0])
    factor, name = next(fitting, units[0])
    digits = f"{value:.0f}" if factor == 1 else significant(value / factor)
    return f"{digits} {name}".rstrip()
