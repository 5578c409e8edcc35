"""Small charts of the page of generations: a line over generations, and a bar of a metric's change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas.generations import MetricChange
from schemas.html import Html, tag

_WIDTH, _HEIGHT, _LEFT, _BELOW = 300, 110, 48, 22
_BAR_WIDTH, _BAR_HEIGHT = 120, 12
_FULL_BAR = 0.2
"""Change, as a share of the champion's value, that fills half of a bar."""


def line_chart(label: str, ids: Sequence[str], lines: Mapping[str, Sequence[float | None]]) -> Html | None:
    """One line a name, a gap where nothing is known; None where no line has two values."""
    if all(sum(value is not None for value in values) < 2 for values in lines.values()):
        return None
    known = [value for values in lines.values() for value in values if value is not None]
    low, high = min(known), max(known)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.1 * span, high + 0.1 * span

    def across(place: int) -> float:
        return _LEFT + place / max(1, len(ids) - 1) * _WIDTH

    def up(value: float) -> float:
        return 8 + (high - value) / (high - low) * _HEIGHT

    parts: list[Html] = []
    for value in (low + 0.1 * span, high - 0.1 * span):
        y = f"{up(value):.1f}"
        parts.append(tag("line", x1=_LEFT, x2=_LEFT + _WIDTH, y1=y, y2=y, cls="grid"))
        parts.append(tag("text", f"{value:.3g}", x=_LEFT - 6, y=y, dy=4, text_anchor="end"))
    for place in sorted({0, len(ids) - 1}):
        parts.append(tag("text", ids[place], x=f"{across(place):.1f}", y=_HEIGHT + _BELOW + 4, text_anchor="middle"))
    for number, (name, values) in enumerate(lines.items()):
        for run in _runs(values):
            points = " ".join(f"{across(place):.1f},{up(value):.1f}" for place, value in run)
            parts.append(tag("polyline", points=points, cls="mine" if number == 0 else "theirs"))
            parts += [
                tag(
                    "g",
                    tag("title", f"{ids[place]}: {name} {value:.4g}"),
                    tag("circle", cx=f"{across(place):.1f}", cy=f"{up(value):.1f}", r=3, cls="point"),
                )
                for place, value in run
            ]
    said = "; ".join(
        f"{name}: {', '.join('none' if v is None else f'{v:.4g}' for v in values)}" for name, values in lines.items()
    )
    width, height = _LEFT + _WIDTH + 24, _HEIGHT + _BELOW + 10
    drawing = tag(
        "svg",
        *parts,
        view_box=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=f"{label}, by generation: {said}",
    )
    dashed = f" (dashed: {list(lines)[1]})" if len(lines) > 1 else ""
    return tag("div", tag("h3", f"{label}{dashed}"), drawing)


def change_bar(change: MetricChange) -> Html:
    """From the middle to the right where the candidate is better, to the left where it is worse; with its number."""
    assert change.champion is not None
    difference = change.candidate - change.champion
    gain = difference if change.higher_is_better else -difference
    share = gain / abs(change.champion) if change.champion else (0.0 if gain == 0 else 1.0 if gain > 0 else -1.0)
    length = min(1.0, abs(share) / _FULL_BAR) * _BAR_WIDTH / 2
    middle = _BAR_WIDTH / 2
    start = middle if share >= 0 else middle - length
    words = "better" if gain > 0 else "worse" if gain < 0 else "the same"
    drawing = tag(
        "svg",
        tag(
            "rect",
            x=f"{start:.1f}",
            y=1,
            width=f"{length:.1f}",
            height=_BAR_HEIGHT - 2,
            cls="up" if share >= 0 else "down",
        ),
        tag("line", x1=middle, x2=middle, y1=0, y2=_BAR_HEIGHT, cls="middle"),
        view_box=f"0 0 {_BAR_WIDTH} {_BAR_HEIGHT}",
        width=_BAR_WIDTH,
        height=_BAR_HEIGHT,
        aria_hidden="true",
    )
    return tag("span", drawing, f" {difference:+.4f} ({words})")


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Values that follow one another, with their places."""
    runs: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((place, value))
    return [run for run in runs if run]
