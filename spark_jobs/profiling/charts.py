"""Small charts as inline SVG: they stretch with the page, so words and numbers stand beside them, not in them."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.html import Html, tag

_WIDTH, _HEIGHT = 240.0, 100.0
Shares = Sequence[float]


def bars_and_lines(series: Sequence[tuple[str, Shares]], *, title: str, cls: str = "chart") -> Html:
    """The first series as bars, the others as steps over them; all to one height."""
    most = max((share for _, shares in series for share in shares), default=0.0) or 1.0
    drawn: list[Html] = []
    for number, (name, shares) in enumerate(series):
        step = _WIDTH / max(1, len(shares))
        if number == 0:
            gap = min(2.0, step * 0.12)
            drawn += [
                tag(
                    "rect",
                    x=_n(place * step + gap / 2),
                    y=_n(_HEIGHT - height),
                    width=_n(step - gap),
                    height=_n(height),
                )
                for place, share in enumerate(shares)
                if (height := max(1.2, share / most * 96) if share else 0.0)
            ]
            drawn = [tag("g", *drawn, cls=f"bars {_css(name)}")]
        else:
            levels = [_HEIGHT - 1.5 - share / most * 94 for share in shares]
            steps = "".join(f"V{_n(y)}H{_n((place + 1) * step)}" for place, y in enumerate(levels))
            drawn.append(tag("path", d=f"M0 {_n(levels[0] if levels else _HEIGHT)}{steps}", cls=f"steps {_css(name)}"))
    return _svg(drawn, title, cls)


def stacked(series: Sequence[tuple[str, Shares]], *, title: str, cls: str = "chart wide") -> Html:
    """Bars on top of each other, one colour a series."""
    length = max((len(values) for _, values in series), default=0)
    most = max((sum(values[place] for _, values in series) for place in range(length)), default=0.0) or 1.0
    step, drawn = _WIDTH / max(1, length), []
    floor = [_HEIGHT] * length
    for name, values in series:
        boxes = []
        for place, value in enumerate(values):
            if value:
                height = value / most * 98
                floor[place] -= height
                boxes.append(
                    tag("rect", x=_n(place * step), y=_n(floor[place]), width=_n(step * 0.9), height=_n(height))
                )
        drawn.append(tag("g", *boxes, cls=f"bars {_css(name)}"))
    return _svg(drawn, title, cls)


def line(
    series: Sequence[tuple[str, Sequence[float | None]]], *, low: float, high: float, title: str, cls: str
) -> Html:
    """Points joined by a line, broken where a value is missing; `low` to `high` fill the height."""
    drawn = []
    for name, values in series:
        step, path, lifted = _WIDTH / max(1, len(values)), "", True
        for place, value in enumerate(values):
            if value is None:
                lifted = True
                continue
            x, y = (place + 0.5) * step, 95 - (value - low) / ((high - low) or 1.0) * 90
            # A lone point is a line of no length, which a round cap makes a dot.
            path += f"{'M' if lifted else 'L'}{_n(x)} {_n(y)}" + (f"L{_n(x)} {_n(y)}" if lifted else "")
            lifted = False
        drawn.append(tag("path", d=path or "M0 0", cls=f"trend {_css(name)}"))
    return _svg(drawn, title, cls)


def _svg(drawn: Sequence[Html], title: str, cls: str) -> Html:
    box = f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}"
    return tag("svg", *drawn, cls=cls, view_box=box, aspect="none", role="img", aria_label=title)


def _css(group: str) -> str:
    return f"g-{group}" if group in ("train", "valid", "test", "all") else "g-all"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
