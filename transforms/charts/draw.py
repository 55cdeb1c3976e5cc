"""Draws charts as SVG: points, lines, bars and error bars in panels side by side, with nothing but text.

The same values give the same bytes, so a chart may be part of a stage's files. All text is escaped. Colours stay apart for
colour-blind readers (Okabe and Ito 2008). A chart that is a file of its own brings its white ground, which a dark page shows
too; one inside a page of HTML takes the page's colours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.sax import saxutils

from schemas.printable import printable

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#000000")
GREY = 6


@dataclass(frozen=True)
class Palette:
    """What a chart is painted with: CSS colours.

    Attributes:
      paper: the ground.
      ink: text.
      soft: small text.
      grid: lines behind the marks.
      frame: the axes.
      marks: what `Marks.color` counts.
    """

    paper: str
    ink: str
    soft: str
    grid: str
    frame: str
    marks: Sequence[str]


PRINTED = Palette("#fff", "#222", "#555", "#e4e4e4", "#777", COLORS)
"""For a file of its own."""

IN_PAGE = Palette(
    "var(--paper)",
    "var(--ink)",
    "var(--soft)",
    "var(--grid)",
    "var(--frame)",
    [f"var(--mark{number})" for number in range(len(COLORS))],
)
"""For a page that says in its style sheet what these colours are."""

_CHAR = 7.1
"""About how wide a letter is, in pixels."""
_GAP, _HEAD, _FOOT, _RIGHT = 28, 30, 46, 16
_BAR = 0.72
"""How thick a bar is, as a share of the room that it has."""


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
      is_bars: whether each is a bar that begins at 0: upright, or lying where the y axis has names.
      tips: what each says when pointed at.
      names: what stands beside each.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    color: int = 0
    x_errors: Sequence[float] = ()
    is_line: bool = False
    is_hollow: bool = False
    is_bars: bool = False
    tips: Sequence[str] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """One side of a panel.

    Attributes:
      label: what it measures, and in what unit.
      is_log: whether equal steps are equal ratios; values must then be above 0.
      names: where it has names instead of numbers, one for each of 0, 1, 2 and so on; on the y axis from the top.
      ends: the first and the last value; a little beyond the marks by default.
    """

    label: str = ""
    is_log: bool = False
    names: Sequence[str] = ()
    ends: tuple[float, float] | None = None


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
    inner = max([_height_of(panel, height) for panel in panels], default=0)
    lefts = [_left_of(panel) for panel in panels]
    columns = max(1, min(columns, len(panels)))
    widths = [max(lefts[column::columns]) + width + _RIGHT for column in range(columns)] if panels else [width]
    total = sum(widths) + _GAP * (columns - 1) + 24
    legend = _Legend(panels, total - 12)
    top = 34 + (18 if note else 0) + legend.height
    tall = top + math.ceil(len(panels) / columns) * (_HEAD + inner + _FOOT) + 8
    body = [
        f'<rect width="{total:.0f}" height="{tall:.0f}" fill="{PRINTED.paper}"/>',
        f'<text x="12" y="24" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    if note:
        body.append(f'<text x="12" y="42" fill="{PRINTED.soft}">{escape(note)}</text>')
    body += legend.draw(12, top - legend.height, PRINTED)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        x = 12 + sum(widths[:column]) + _GAP * column + max(lefts[column::columns])
        y = top + row * (_HEAD + inner + _FOOT) + _HEAD
        body += [f'<g transform="translate({x:.1f} {y:.1f})">', *_panel(panel, width, inner, PRINTED), "</g>"]
    return _document(title, total, tall, PRINTED, body)


def draw_panel(panel: Panel, width: int = 360, height: int = 220, palette: Palette = IN_PAGE) -> str:
    """Returns one chart as an SVG element of its own, for a page that writes the title above it.

    Args:
      panel: the chart; its title is what a screen reader says.
      width: of its inside, in pixels.
      height: likewise; a panel with names on its y axis is as high as they need.
      palette: its colours.
    """
    inner, left = _height_of(panel, height), _left_of(panel)
    legend = _Legend([panel], width)
    top = legend.height + 12
    marks = [f'<g transform="translate({left:.1f} {top})">', *_panel(panel, width, inner, palette, has_title=False), "</g>"]
    foot = _FOOT if panel.x.label else _FOOT - 20
    body = [*legend.draw(left, 0, palette), *marks]
    return _document(panel.title, left + width + _RIGHT, top + inner + foot, palette, body)


def _document(title: str, width: float, height: float, palette: Palette, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif" font-size="12" fill="{palette.ink}" '
            f"role='img' aria-label={saxutils.quoteattr(printable(title))}>",
            *body,
            "</svg>\n",
        ]
    )


def _height_of(panel: Panel, height: float) -> float:
    return max(height, 24 * len(panel.y.names))


class _Legend:
    """What colours mean: each label once, in as many lines as it takes.

    Args:
      panels: whose marks have labels.
      width: in pixels.
    """

    def __init__(self, panels: Sequence[Panel], width: float) -> None:
        labels = dict.fromkeys((marks.label, marks.color, marks.is_hollow) for p in panels for marks in p.marks if marks.label)
        self._lines: list[list[tuple[str, int, bool]]] = []
        right = math.inf
        for each in labels:
            right += self._width_of(each[0])
            if right > width:
                self._lines.append([])
                right = self._width_of(each[0])
            self._lines[-1].append(each)

    @staticmethod
    def _width_of(label: str) -> float:
        return 34 + _CHAR * len(label)

    @property
    def height(self) -> int:
        return 22 * len(self._lines)

    def draw(self, x: float, y: float, palette: Palette) -> Iterator[str]:
        """Draws it, its upper left corner at (x, y)."""
        for number, line in enumerate(self._lines):
            left, middle = x, y + 22 * number + 10
            for label, color, is_hollow in line:
                mark = palette.marks[color]
                yield _dot(left + 6, middle, mark, palette.paper if is_hollow else mark)
                yield f'<text x="{left + 16:.1f}" y="{middle + 4:.0f}">{escape(label)}</text>'
                left += self._width_of(label)


def _left_of(panel: Panel) -> float:
    """Returns the room that the y axis needs."""
    longest = max([len(name) for name in panel.y.names], default=6)
    return 18 + _CHAR * longest + (18 if panel.y.label else 0)


def _panel(panel: Panel, width: float, height: float, palette: Palette, has_title: bool = True) -> Iterator[str]:
    has_bars, is_lying = any(marks.is_bars for marks in panel.marks), bool(panel.y.names)
    across = _Scale(panel.x, [value for each in panel.marks for value in _x_of(each)], width, has_bars and is_lying)
    up = _Scale(panel.y, [value for each in panel.marks for value in each.y], height, has_bars and not is_lying)

    def down(value: float) -> float:
        return up(value) if is_lying else height - up(value)

    if has_title:
        yield f'<text y="-12" font-weight="600">{escape(panel.title)}</text>'
    for value, text in across.ticks():
        if not panel.x.names:
            yield f'<path d="M{across(value):.1f} 0V{height}" stroke="{palette.grid}"/>'
        yield f'<text x="{across(value):.1f}" y="{height + 17}" text-anchor="middle">{escape(text)}</text>'
    for value, text in up.ticks():
        yield f'<path d="M0 {down(value):.1f}H{width}" stroke="{palette.grid}"/>'
        yield f'<text x="-8" y="{down(value) + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    yield f'<path d="M0 0V{height}H{width}" fill="none" stroke="{palette.frame}"/>'
    if panel.x.label:
        yield (
            f'<text x="{width / 2}" y="{height + 36}" text-anchor="middle" fill="{palette.soft}">{escape(panel.x.label)}</text>'
        )
    if panel.y.label:
        away = 8 - _left_of(panel)
        yield (
            f'<text transform="translate({away:.1f} {height / 2}) rotate(-90)" text-anchor="middle" fill="{palette.soft}">'
            f"{escape(panel.y.label)}</text>"
        )
    for marks in panel.marks:
        places = [
            _Place(index, across(x), down(y))
            for index, (x, y) in enumerate(zip(marks.x, marks.y, strict=True))
            if across.holds(x) and up.holds(y)
        ]
        yield from (
            _bars(marks, places, across, down, is_lying, palette) if marks.is_bars else _dots(marks, places, across, palette)
        )
        for index, x, y in places if marks.names else ():
            place = f'x="{x + 6:.1f}" y="{y + 4:.1f}"' if is_lying else f'x="{x:.1f}" y="{y - 5:.1f}" text-anchor="middle"'
            yield f'<text {place} fill="{palette.soft}" font-size="11">{escape(marks.names[index])}</text>'


class _Place(NamedTuple):
    """Where a mark stands, in pixels from the panel's upper left corner."""

    number: int
    x: float
    y: float


def _bars(
    marks: Marks,
    places: Sequence[_Place],
    across: Callable[[float], float],
    down: Callable[[float], float],
    is_lying: bool,
    palette: Palette,
) -> Iterator[str]:
    thick = _BAR * abs(down(1) - down(0) if is_lying else across(1) - across(0))
    for index, x, y in places:
        left, top, right, bottom = across(0), y - thick / 2, x, y + thick / 2
        if not is_lying:
            left, top, right, bottom = x - thick / 2, y, x + thick / 2, down(0)
        yield (
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
            f'fill="{palette.marks[marks.color]}">{_tip_of(marks, index)}</rect>'
        )


def _dots(marks: Marks, places: Sequence[_Place], across: Callable[[float], float], palette: Palette) -> Iterator[str]:
    color = palette.marks[marks.color]
    if marks.is_line and places:
        path = "L".join(f"{x:.1f} {y:.1f}" for _, x, y in places)
        yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.8"/>'
    for index, x, y in places:
        if marks.x_errors:
            low, high = (across(marks.x[index] + sign * marks.x_errors[index]) for sign in (-1, 1))
            ends = f"M{low:.1f} {y - 4:.1f}v8M{high:.1f} {y - 4:.1f}v8"
            yield f'<path d="M{low:.1f} {y:.1f}H{high:.1f}{ends}" stroke="{color}"/>'
        if not marks.is_line or marks.tips:
            yield _dot(x, y, color, palette.paper if marks.is_hollow else color, _tip_of(marks, index))


def _tip_of(marks: Marks, index: int) -> str:
    return f"<title>{escape(marks.tips[index])}</title>" if marks.tips else ""


def _x_of(marks: Marks) -> list[float]:
    if not marks.x_errors:
        return list(marks.x)
    return [x + sign * error for x, error in zip(marks.x, marks.x_errors, strict=True) for sign in (-1, 1)]


def _dot(x: float, y: float, stroke: str, fill: str, title: str = "") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{stroke}" stroke-width="1.5">{title}</circle>'


class _Scale:
    """Turns values into pixels, a little away from both ends.

    Args:
      axis: numbers or names.
      values: all that must fit.
      length: in pixels.
      from_zero: whether it begins at 0 exactly, as bars do.
    """

    def __init__(self, axis: Axis, values: Sequence[float], length: float, from_zero: bool = False) -> None:
        self._axis, self._length = axis, length
        if axis.names:
            self._low, self._high = -0.5, len(axis.names) - 0.5
            return
        if axis.ends:
            self._low, self._high = (self._scaled(value) for value in axis.ends)
            return
        scaled = [self._scaled(value) for value in values if self.holds(value)] or [0.0, 1.0]
        low, high = 0.0 if from_zero else min(scaled), max(scaled)
        margin = (high - low) * 0.06 or abs(high) * 0.1 or 0.5
        self._low, self._high = low - (0.0 if from_zero else margin), high + margin

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


def escape(text: str) -> str:
    """Returns text for an SVG file, in which control characters are an error."""
    return saxutils.escape(printable(text))
