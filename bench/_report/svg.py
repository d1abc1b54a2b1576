"""Plots for reports: lines and bars with axes, as SVG that scales with the page and uses its colours."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46


@dataclass(frozen=True)
class Line:
    """A named series; points that are not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        step = nice_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def lines(
    series: Sequence[Line], x_label: str, y_label: str, limit: float | None = None, marks: Sequence[float] = ()
) -> str:
    """Return a line chart that starts at zero; `limit` is a dashed horizontal line, `marks` are vertical lines."""
    points = [point for line in series for point in line.points]
    if not points:
        return "<p class=none>nothing to draw</p>"
    across = _Scale(*_span([x for x, _ in points]), _LEFT, _WIDTH - _RIGHT)
    up = _Scale(0.0, _top([y for _, y in points] + [limit or 0.0]), _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(across, up, x_label, y_label)
    if limit is not None:
        parts.append(f'<path class=limit d="M{_LEFT} {up(limit):.1f}H{_WIDTH - _RIGHT}"/>')
    parts += [f'<path class=mark d="M{across(x):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>' for x in marks]
    for number, line in enumerate(series):
        places = [(across(x), up(y)) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line c{number % 6}" d="M{path}"/>' if places else "")
        if line.dots:
            parts += [f'<circle class="dot c{number % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    return _figure(parts, [line.name for line in series])


def bars(names: Sequence[str], groups: Sequence[tuple[str, Sequence[float]]], y_label: str) -> str:
    """Return a bar chart with a group for each name; `groups` are (legend, one value per name)."""
    values = [value for _, row in groups for value in row if math.isfinite(value)]
    if not values:
        return "<p class=none>nothing to draw</p>"
    up = _Scale(0.0, _top(values), _HEIGHT - _BOTTOM, _TOP)
    slot = (_WIDTH - _LEFT - _RIGHT) / len(names)
    width = slot * 0.8 / len(groups)
    parts = _axes(None, up, "", y_label)
    for at, name in enumerate(names):
        middle = _LEFT + slot * (at + 0.5)
        parts.append(f'<text class=x x="{middle:.1f}" y="{_HEIGHT - 26}">{html.escape(name)}</text>')
        for number, (_, row) in enumerate(groups):
            if math.isfinite(row[at]):
                x, y = _LEFT + slot * (at + 0.1) + width * number, up(row[at])
                size = f'width="{width * 0.92:.1f}" height="{_HEIGHT - _BOTTOM - y:.1f}"'
                parts.append(f'<rect class="bar c{number % 6}" x="{x:.1f}" y="{y:.1f}" {size} rx="2"/>')
    return _figure(parts, [name for name, _ in groups])


def nice_step(rough: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((factor * power for factor in (1, 2, 5) if factor * power >= rough * 0.999), 10 * power)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    return (low, high) if high > low else (low, low + 1.0)


def _top(values: Sequence[float]) -> float:
    return (max(values) or 1.0) * 1.06


def _axes(across: _Scale | None, up: _Scale, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path class=grid d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class=y x="{_LEFT - 6}" y="{y + 4:.1f}">{tick:g}</text>')
    if across:
        parts += [f'<text class=x x="{across(x):.1f}" y="{_HEIGHT - 26}">{x:g}</text>' for x in across.ticks()]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class=x x="{middle:.0f}" y="{_HEIGHT - 6}">{html.escape(x_label)}</text>')
    turned = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text class=x transform="translate(13 {turned:.0f}) rotate(-90)">{html.escape(y_label)}</text>')
    return parts


def _figure(parts: Sequence[str], names: Sequence[str]) -> str:
    keys = "".join(
        f'<span><i class="c{number % 6}"></i>{html.escape(name)}</span>' for number, name in enumerate(names) if name
    )
    drawing = "".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{drawing}</svg><p class=keys>{keys}</p>'
