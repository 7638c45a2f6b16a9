"""Line charts as SVG, both axes logarithmic: a panel of their own colours, so that they can be read on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 760
HEIGHT: Final = 440
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 56, 92
COLOURS: Final = ("#2f81f7", "#2da44e", "#d4762c", "#a371f7")
"""Blue, green, orange, violet: apart from each other for most eyes, and from white and black."""
MARKS: Final = ("circle", "square", "triangle", "diamond")
_STYLE: Final = """
  .paper { fill: #ffffff; stroke: #d0d7de; }
  text { fill: #1f2328; font: 13px system-ui, sans-serif; }
  .title { font-size: 15px; font-weight: 600; }
  .rule { stroke: #8c959f; stroke-opacity: 0.35; }
  .axis { stroke: #6e7781; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #0d1117; stroke: #30363d; }
    text { fill: #e6edf3; }
  }
"""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, and points (x, y), all above 0."""

    name: str
    points: Sequence[tuple[float, float]]


def svg(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Return the drawing."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    x_ticks, y_ticks = sorted(set(xs)), _ticks(min(ys), max(ys))
    x_from, x_to = math.log(x_ticks[0]), math.log(x_ticks[-1])
    y_from, y_to = math.log(y_ticks[0]), math.log(y_ticks[-1])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def at_x(x: float) -> float:
        share = (math.log(x) - x_from) / (x_to - x_from) if x_to > x_from else 0.5
        return LEFT + 16 + share * (right - LEFT - 32)

    def at_y(y: float) -> float:
        return bottom - (math.log(y) - y_from) / (y_to - y_from) * (bottom - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img"'
        f' aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
        f'<text class="title" x="{LEFT}" y="30">{escape(title)}</text>',
    ]
    for y in y_ticks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{right}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at_y(y) + 4:.1f}" text-anchor="end">{y:,.12g}</text>')
    for x in x_ticks:
        parts.append(f'<line class="axis" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{at_x(x):.1f}" y="{bottom + 20}" text-anchor="middle">{x:,.12g}</text>')
    middle = (TOP + bottom) / 2
    parts += [
        f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
        f'<text x="{(LEFT + right) / 2:.0f}" y="{bottom + 42}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(18 {middle:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    legend_x = float(LEFT)
    for number, each in enumerate(series):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        line = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in each.points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{line}"/>')
        parts += [
            _mark(mark, colour, at_x(x), at_y(y), f"{each.name}: {x:,.12g}, {y:,.{0 if abs(y) >= 100 else 2}f}")
            for x, y in each.points
        ]
        legend_y = HEIGHT - 22
        parts.append(_mark(mark, colour, legend_x + 6, legend_y - 4, each.name))
        parts.append(f'<text x="{legend_x + 18:.0f}" y="{legend_y}">{escape(each.name)}</text>')
        legend_x += 40 + 7.2 * len(each.name)
    return "\n".join([*parts, "</svg>", ""])


def _mark(kind: str, colour: str, x: float, y: float, words: str) -> str:
    match kind:
        case "circle":
            shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"'
        case "square":
            shape = f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"'
        case "triangle":
            shape = f'<path d="M{x:.1f} {y - 6:.1f}l6 10h-12z"'
        case _:
            shape = f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"'
    return f'{shape} fill="{colour}"><title>{escape(words)}</title>{_CLOSING[kind]}'


_CLOSING: Final = {"circle": "</circle>", "square": "</rect>", "triangle": "</path>", "diamond": "</path>"}


def _ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten, from below the lowest value to above the highest; only powers if these are many."""
    ticks = [step * 10.0**power for power in range(-6, 10) for step in (1, 2, 5)]
    first = max(number for number, tick in enumerate(ticks) if tick <= low)
    last = min(number for number, tick in enumerate(ticks) if tick >= high and number > first)
    found = ticks[first : last + 1]
    if len(found) <= 9:
        return found
    powers = [10.0**power for power in range(-6, 10)]
    return [
        tick
        for tick, above in zip(powers, [*powers[1:], math.inf], strict=True)
        if above > low and (tick <= high or tick / 10 < high)
    ]
