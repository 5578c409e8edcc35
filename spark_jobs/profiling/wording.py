"""Numbers, shares, sizes and moments as a person writes them."""

from __future__ import annotations

from datetime import UTC, datetime

_THIN = "\u202f"


def integer(value: float) -> str:
    return f"{value:,.0f}"


def number(value: float | None) -> str:
    """Three or four significant digits; none of them where they would say nothing."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e15:
        return f"{value:.3g}"
    if size >= 1e9:
        return f"{value / 1e9:,.3g}{_THIN}bn"
    if size >= 1e6:
        return f"{value / 1e6:,.3g}{_THIN}M"
    if value == int(value):
        return f"{value:,.0f}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 0.001 else f"{value:.1e}"


def percent(share: float | None) -> str:
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{share:.1%}".replace(".0%", "%").replace("%", " %")


def size(count: int) -> str:
    scaled, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if scaled < 1000:
            break
        scaled, unit = scaled / 1000, larger
    return f"{scaled:.0f} {unit}" if unit == "B" or scaled >= 100 else f"{scaled:.1f} {unit}"


def day(ms: float | None) -> str:
    return "–" if ms is None else _moment(ms, "%Y-%m-%d")


def moment(ms: float | None) -> str:
    return "–" if ms is None else _moment(ms, "%Y-%m-%d %H:%M")


def span(ms: int) -> str:
    """A width of time: minute, 6 hours, day, week ..."""
    for width, name in ((86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute")):
        if ms >= width:
            count = ms // width
            return {7: "week", 365: "year"}.get(count, f"{count} {name}s" if count > 1 else name)
    return f"{ms} ms"


def _moment(ms: float, pattern: str) -> str:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime(pattern)
    except (OverflowError, ValueError, OSError):
        return f"{ms:.4g} ms"
