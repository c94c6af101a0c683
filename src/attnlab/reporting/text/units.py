"""How numbers read in every table and figure. What is not known reads as a dash."""

import math

from attnlab.analysis.analysis import Comparison
from attnlab.analysis.statistics.paired import Difference, Estimate

UNKNOWN = "–"


def number(value: float | None, digits: int = 4) -> str:
    """With so many digits after the point."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """With so many digits that count.

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


def estimate(value: Estimate | None, digits: int = 4) -> str:
    """Mean ± standard deviation over seeds; the mean alone for one seed."""
    if value is None:
        return UNKNOWN
    spread = "" if value.spread is None else f" ± {value.spread:.{digits}f}"
    return f"{number(value.mean, digits)}{spread}"


def comparison(value: Comparison | None) -> str:
    """Mean ± half width of the simultaneous 95 % interval; the mean alone for one seed."""
    if value is None:
        return UNKNOWN
    if value.low is None or value.high is None:
        return f"{value.mean:+.4f}"
    return f"{value.mean:+.4f} ± {(value.high - value.low) / 2:.4f}"


def interval(low: float | None, high: float | None) -> str:
    """
    >>> interval(-0.1, 0.02)
    '-0.1000 to +0.0200'
    """
    return UNKNOWN if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def tokens(length: int) -> str:
    """A length of sequences, by powers of two where it is whole in them.

    >>> tokens(512), tokens(2048), tokens(3000)
    ('512', '2K', '3,000')
    """
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def change(value: Difference | None) -> str:
    """Mean ± half width of the interval; the mean alone for one seed."""
    if value is None:
        return UNKNOWN
    half = "" if value.half_width is None else f" ± {value.half_width:.4f}"
    return f"{value.mean:+.4f}{half}"


def measured(value: float | None, unit: str) -> str:
    """A cost in its unit, as `analysis.pareto.Front` names it.

    >>> measured(0.0123, "seconds"), measured(2**21, "bytes"), measured(1.2e7, "FLOPs")
    ('12.3 ms', '2.00 MiB', '12.0 M')
    """
    if unit == "bytes":
        return size(value)
    if unit == "seconds":
        return UNKNOWN if value is None else f"{milliseconds(value)} ms"
    return count(value)


def count(value: float | None) -> str:
    """Thousands, millions and so on, by powers of 1,000.

    >>> count(950), count(118_000), count(4_863_000), count(999_999)
    ('950', '118 K', '4.86 M', '1.00 M')
    """
    return _scaled(value, 1000, ("", "K", "M", "G", "T", "P"))


def size(value: float | None) -> str:
    """Bytes by powers of 1,024.

    >>> size(512), size(262_144), size(3 * 2**30)
    ('512 B', '256 KiB', '3.00 GiB')
    """
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float | None) -> str:
    """
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
    return UNKNOWN if seconds is None else significant(1000 * seconds)


def _scaled(value: float | None, base: int, names: tuple[str, ...]) -> str:
    if value is None:
        return UNKNOWN
    power = 0
    while power < len(names) - 1 and value >= base - (0.5 if base == 1000 else 0):
        value, power = value / base, power + 1
    digits = f"{value:.0f}" if power == 0 else significant(value)
    return f"{digits} {names[power]}".rstrip()
