"""Draws charts as SVG: points, lines and error bars in panels side by side, with nothing but text.

The same values give the same bytes, so a chart may be part of a stage's files. All text is escaped. Colours stay apart for
colour-blind readers (Okabe and Ito 2008); a dark page shows the chart on its own white ground.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#000000")
GREY = 6

_CHAR = 6.6
"""About how wide a letter is, in pixels."""
_GAP, _HEAD, _FOOT, _RIGHT = 28, 30, 46, 16


@dataclass(frozen=True)
class Marks:
    """Some points of one kind.

    Attributes:
      x: their places on the x axis; those that are not finite are left out.
      y: on the y axis.
      label: in the legend; none where it is empty. Equal labels of several panels stand there once.
      color: an index of COLORS.
      x_errors: half the length of each point's bar along x.
      is_line: whether a line joins them, in their order.
      is_hollow: whether they are rings.
      tips: what each says when pointed at.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    color: int = 0
    x_errors: Sequence[float] = ()
    is_line: bool = False
    is_hollow: bool = False
    tips: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """One side of a panel.

    Attributes:
      label: what it measures, and in what unit.
      is_log: whether equal steps are equal ratios; values must then be above 0.
      names: where it has names instead of numbers, one for each of 0, 1, 2 and so on; on the y axis from the top.
    """

    label: str = ""
    is_log: bool = False
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
      title: above it.
      marks: what is drawn, the last on top.
      x: the axis below.
      y: the axis on the left.
    """

    title: str
    marks: Sequence[Marks]
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)


def draw(title: str, panels: Sequence[Panel], columns: int = 2, note: str = "", width: int = 360, height: int = 220) -> str:
    """Returns an SVG document.

    Args:
      title: above everything.
      panels: in the order of reading.
      columns: panels in a row.
      note: a line below the title, in small letters.
      width: of a panel's inside, in pixels.
      height: likewise; a panel with names on its y axis is as high as they need.
    """
    inner = max([height, *(24 * len(panel.y.names) for panel in panels)]) if panels else 0
    lefts = [_left_of(panel) for panel in panels]
    columns = max(1, min(columns, len(panels)))
    widths = [max(lefts[column::columns]) + width + _RIGHT for column in range(columns)] if panels else [width]
    legend = list(
        dict.fromkeys((marks.label, marks.color, marks.is_hollow) for p in panels for marks in p.marks if marks.label)
    )
    top = 34 + (18 if note else 0) + (22 if legend else 0)
    total = sum(widths) + _GAP * (columns - 1) + 24
    tall = top + math.ceil(len(panels) / columns) * (_HEAD + inner + _FOOT) + 8
    body = [
        f'<rect width="{total:.0f}" height="{tall:.0f}" fill="#fff"/>',
        f'<text x="12" y="24" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    if note:
        body.append(f'<text x="12" y="42" fill="#555">{escape(note)}</text>')
    at = 12.0
    for label, color, is_hollow in legend:
        body += [_dot(at + 6, top - 12, color, is_hollow), f'<text x="{at + 16:.1f}" y="{top - 8}">{escape(label)}</text>']
        at += 34 + _CHAR * len(label)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        x = 12 + sum(widths[:column]) + _GAP * column + max(lefts[column::columns])
        y = top + row * (_HEAD + inner + _FOOT) + _HEAD
        body += [f'<g transform="translate({x:.1f} {y:.1f})">', *_panel(panel, width, inner), "</g>"]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{total:.0f}" height="{tall:.0f}" '
            f'viewBox="0 0 {total:.0f} {tall:.0f}" font-family="system-ui, sans-serif" font-size="12" fill="#222" '
            f"role='img' aria-label={quoteattr(title)}>",
            *body,
            "</svg>\n",
        ]
    )


def _left_of(panel: Panel) -> float:
    """Returns the room that the y axis needs."""
    longest = max([len(name) for name in panel.y.names], default=6)
    return 14 + _CHAR * longest + (18 if panel.y.label else 0)


def _panel(panel: Panel, width: float, height: float) -> Iterator[str]:
    across = _Scale(panel.x, [value for each in panel.marks for value in _x_of(each)], width)
    up = _Scale(panel.y, [value for each in panel.marks for value in each.y], height)

    def down(value: float) -> float:
        return up(value) if panel.y.names else height - up(value)

    yield f'<text y="-12" font-weight="600">{escape(panel.title)}</text>'
    for value, text in across.ticks():
        yield f'<path d="M{across(value):.1f} 0V{height}" stroke="#e4e4e4"/>'
        yield f'<text x="{across(value):.1f}" y="{height + 17}" text-anchor="middle">{escape(text)}</text>'
    for value, text in up.ticks():
        yield f'<path d="M0 {down(value):.1f}H{width}" stroke="#e4e4e4"/>'
        yield f'<text x="-8" y="{down(value) + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    yield f'<path d="M0 0V{height}H{width}" fill="none" stroke="#777"/>'
    if panel.x.label:
        yield f'<text x="{width / 2}" y="{height + 36}" text-anchor="middle" fill="#555">{escape(panel.x.label)}</text>'
    if panel.y.label:
        away = 8 - _left_of(panel)
        yield (
            f'<text transform="translate({away:.1f} {height / 2}) rotate(-90)" text-anchor="middle" fill="#555">'
            f"{escape(panel.y.label)}</text>"
        )
    for marks in panel.marks:
        places = [
            (index, across(x), down(y))
            for index, (x, y) in enumerate(zip(marks.x, marks.y, strict=True))
            if across.holds(x) and up.holds(y)
        ]
        color = COLORS[marks.color]
        if marks.is_line and places:
            path = "L".join(f"{x:.1f} {y:.1f}" for _, x, y in places)
            yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
        for index, x, y in places:
            if marks.x_errors:
                low, high = (across(marks.x[index] + sign * marks.x_errors[index]) for sign in (-1, 1))
                ends = f"M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8"
                yield f'<path d="M{low:.1f} {y:.1f}H{high:.1f}{ends}" stroke="{color}"/>'
            if not marks.is_line or marks.tips:
                yield _dot(x, y, marks.color, marks.is_hollow, marks.tips[index] if marks.tips else "")


def _x_of(marks: Marks) -> list[float]:
    if not marks.x_errors:
        return list(marks.x)
    return [x + sign * error for x, error in zip(marks.x, marks.x_errors, strict=True) for sign in (-1, 1)]


def _dot(x: float, y: float, color: int, is_hollow: bool, tip: str = "") -> str:
    fill = "#fff" if is_hollow else COLORS[color]
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{COLORS[color]}" stroke-width="1.5">{title}</circle>'


class _Scale:
    """Turns values into pixels, a little away from both ends.

    Args:
      axis: numbers or names.
      values: all that must fit.
      length: in pixels.
    """

    def __init__(self, axis: Axis, values: Sequence[float], length: float) -> None:
        self._axis, self._length = axis, length
        if axis.names:
            self._low, self._high = -0.5, len(axis.names) - 0.5
            return
        scaled = [self._scaled(value) for value in values if self.holds(value)] or [0.0, 1.0]
        low, high = min(scaled), max(scaled)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
        self._low, self._high = low - margin, high + margin

    def holds(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self._axis.is_log)

    def __call__(self, value: float) -> float:
        return (self._scaled(value) - self._low) / (self._high - self._low) * self._length

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._axis.is_log else value

    def ticks(self) -> list[tuple[float, str]]:
        """Returns where to write what: round numbers, or the names."""
        if self._axis.names:
            return [(float(index), name) for index, name in enumerate(self._axis.names)]
        if not self._axis.is_log:
            return _round_numbers(self._low, self._high)
        wide = self._high - self._low > 2.5
        found = [
            (factor * 10.0**power, f"{factor * 10.0**power:g}")
            for power in range(math.floor(self._low), math.ceil(self._high) + 1)
            for factor in ((1,) if wide else (1, 2, 5))
        ]
        return [(value, text) for value, text in found if self._low <= math.log10(value) <= self._high]


def _round_numbers(low: float, high: float) -> list[tuple[float, str]]:
    """Returns about five round numbers from `low` to `high`, with as many digits as their step needs."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, f"{index * step:,.{digits}f}") for index in range(first, last + 1)]
