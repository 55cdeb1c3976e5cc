"""The charts of a release's report, from numbers that the stages found, and the few numbers that stand for each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from transforms.charts.draw import GREY, Axis, Marks, Panel

THIS, OTHER, THIRD, FOURTH = 0, 1, 2, 3
"""Colours: of what the report is about, and of what it is compared with."""

Row = Mapping[str, Any]


class Shares(NamedTuple):
    """How items share what there is, most popular first.

    Attributes:
      items: [n] float64, ascending from 0 to 1: the share of the items that is looked at.
      interactions: [n] float64: their share of all training positives.
      listings: [n] float64: their share of all places in lists.
    """

    items: np.ndarray
    interactions: np.ndarray
    listings: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Shares":
        """Adds up rows of ITEMS_BY_POPULARITY."""
        counts, items, listings = (
            np.array([row[name] for row in rows][::-1], np.float64) for name in ("train_count", "items", "listings")
        )
        return cls(_share(items), _share(counts * items), _share(listings))

    def at(self, share: float) -> tuple[float, float]:
        """Returns the shares of interactions and of listings of the most popular `share` of the items.

        Between two numbers of positives it is a straight line: the mean over all orders of the items that have as many.
        """
        return (
            float(np.interp(share, self.items, self.interactions)),
            float(np.interp(share, self.items, self.listings)),
        )


def _share(values: np.ndarray) -> np.ndarray:
    added = np.concatenate([[0.0], np.cumsum(values)])
    return added / added[-1] if added[-1] else added


def gini(values: Sequence[int], items: Sequence[int]) -> float:
    """Returns the Gini coefficient: 0 where all items have as much, close to 1 where one has all.

    Args:
      values: ascending.
      items: how many items have each.
    """
    share = _share(np.asarray(items, np.float64))
    of_all = _share(np.asarray(values, np.float64) * np.asarray(items, np.float64))
    if not of_all[-1]:
        return 0.0
    return float(1 - np.sum(np.diff(share) * (of_all[1:] + of_all[:-1])))


class Bin(NamedTuple):
    """Numbers from `low` to `high`, both included, and how often they occur."""

    low: int
    high: int
    total: int

    @property
    def name(self) -> str:
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,} to {self.high:,}"


def bins_of(values: Sequence[int], counts: Sequence[int]) -> list[Bin]:
    """Returns 0, 1, 2 to 3, 4 to 7 and so on, as far as there are values, with what is in each.

    Args:
      values: at least 0.
      counts: how often each occurs.
    """
    number = [value.bit_length() for value in values]
    found = [0] * (max(number, default=-1) + 1)
    for each, count in zip(number, counts, strict=True):
        found[each] += count
    return [Bin(1 << each >> 1, max(0, (1 << each) - 1), count) for each, count in enumerate(found)]


def bins_panel(title: str, bins: Sequence[Bin], of: str, what: str) -> Panel:
    """Returns upright bars, one for each bin.

    Args:
      title: of the chart.
      bins: from `bins_of`.
      of: what the bins measure.
      what: what is counted in them.
    """
    marks = Marks(
        range(len(bins)),
        [each.total for each in bins],
        color=THIS,
        is_bars=True,
        tips=[f"{each.name}: {each.total:,} {what}" for each in bins],
        names=[short(each.total) for each in bins],
    )
    names = [f"{each.low}" if each.low < 1000 else f"{each.low / 1024:g}k" for each in bins]
    return Panel(title, [marks], Axis(f"{of}, from", names=names), Axis(what))


def short(number: float) -> str:
    """Returns a number in few letters: 950, 1.2k, 35k, 4.1M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}" if number < 10 * size else f"{number / size:.0f}{letter}"
    return f"{number:g}"


def popularity_panel(shares: Shares, num_items: int) -> Panel:
    """Returns what the most popular items have of the interactions, and what of the lists."""
    first = min(50.0, 100 / max(1, num_items))
    grid = np.concatenate([[first], np.geomspace(first, 100, 60)[1:-1], [100.0]])
    at = np.array([shares.at(x / 100) for x in grid]) * 100
    return Panel(
        "What the most popular items get",
        [
            Marks(grid.tolist(), at[:, 0].tolist(), "of all interactions", OTHER, is_line=True),
            Marks(grid.tolist(), at[:, 1].tolist(), "of all places in lists", THIS, is_line=True),
        ],
        Axis("most popular items, % of the catalogue", is_log=True, ends=(first, 100)),
        Axis("their share, %", ends=(0, 100)),
    )


class Scores(NamedTuple):
    """What one way to make lists scores on the held-out items.

    Attributes:
      name: of it.
      means: by metric.
      standard_errors: likewise, where they are known.
    """

    name: str
    means: Mapping[str, float]
    standard_errors: Mapping[str, float]


def quality_panel(scored: Sequence[Scores], metrics: Mapping[str, str]) -> Panel:
    """Returns the metrics of several ways to make lists, one below the other, with two standard errors either way.

    Args:
      scored: what this release scores, then the others.
      metrics: which to show, and what they are called.
    """
    marks = []
    for color, each in enumerate(scored):
        known = [(row, name) for row, name in enumerate(metrics) if each.means.get(name) is not None]
        values = [each.means[name] for _, name in known]
        errors = [2 * (each.standard_errors.get(name) or 0.0) for _, name in known]
        tips = [
            f"{each.name}, {metrics[name]}: {value:.4f}" + (f" ± {error / 2:.4f}" if error else "")
            for (_, name), value, error in zip(known, values, errors, strict=True)
        ]
        rows = [row + (0.13 if color % 2 else -0.13) for row, _ in known]  # Beside each other where values are alike.
        marks.append(Marks(values, rows, each.name, color, errors, is_hollow=color > 0, tips=tips))
    return Panel(
        "Held-out quality", marks, Axis("mean over users; bars: two standard errors"), Axis(names=list(metrics.values()))
    )


def past_panels(rows: Sequence[Row], metrics: Mapping[str, str], popular: str) -> list[Panel]:
    """Returns quality and volume over some releases, oldest first; a panel without a value is left out.

    Args:
      rows: of `transforms.report.past`.
      metrics: which to show, and what they are called.
      popular: the metric that is shown of popularity too.
    """
    every = math.ceil(len(rows) / 6)
    shown = {number for number in range(len(rows)) if (len(rows) - 1 - number) % every == 0}
    across = Axis(
        "releases, by the day they were made",
        names=[row["created_at"][5:10] if number in shown else "" for number, row in enumerate(rows)],
    )

    def marks_of(name: str, color: int, values: Sequence[float | None], is_hollow: bool = False, digits: int = 4) -> Marks:
        known = [(number, value) for number, value in enumerate(values) if value is not None]
        tips = [f"{rows[number]['release']}: {name} {value:,.{digits}f}" for number, value in known]
        return Marks(
            [number for number, _ in known],
            [value for _, value in known],
            name,
            color,
            is_line=True,
            is_hollow=is_hollow,
            tips=tips,
        )

    quality = [
        marks_of(title, (THIS, THIRD)[at % 2], [row["quality"].get(metric) for row in rows])
        for at, (metric, title) in enumerate(metrics.items())
    ]
    if popular in metrics:
        name, values = f"{metrics[popular]} of popularity", [row["popularity"].get(popular) for row in rows]
        quality.append(marks_of(name, OTHER, values, is_hollow=True))
    volume = [
        marks_of(name, color, [row[name] or None for row in rows], digits=0)
        for name, color in (("ratings", THIS), ("users", OTHER), ("items", THIRD))
    ]
    panels = [
        Panel("Quality over the releases", quality, across, Axis("mean over users")),
        Panel("Volume over the releases", volume, across, Axis("how many", is_log=True)),
    ]
    return [panel for panel in panels if any(len(marks.x) for marks in panel.marks)]


def recall_panels(curve: Sequence[Row], search: Row, target: float, k: int) -> list[Panel]:
    """Returns recall against leaves, where there are leaves, and against the cost.

    Args:
      curve: what calibration tried: settings, `recall`, `lower_bound` and `cost`.
      search: the settings that it chose.
      target: what the lower bound had to reach.
      k: of the recall.
    """
    panels = []
    for column, title, axis in (
        ("leaves_to_search", "Recall against leaves", "leaves searched in each shard"),
        ("cost", "Recall against cost", "cost of a user, in roughly scored vectors"),
    ):
        points = [point for point in curve if point[column] and math.isfinite(point["recall"])]
        if not points:
            continue
        marks = []
        factors = sorted({point["reorder_per_neighbor"] for point in points})
        for color, factor in enumerate(factors):
            mine = sorted((p for p in points if p["reorder_per_neighbor"] == factor), key=lambda point: point[column])
            tips = [f"{describe_search(point)}: recall {point['recall']:.4f}" for point in mine]
            x, y = [point[column] for point in mine], [point["recall"] for point in mine]
            marks.append(Marks(x, y, f"reorder {factor:g}", color % GREY, is_line=True, tips=tips))
        ends = [min(point[column] for point in points), max(point[column] for point in points)]
        marks.insert(0, Marks(ends, [target] * 2, f"target {target:g}", GREY, is_line=True))
        chosen = [point for point in points if all(point[name] == value for name, value in search.items())]
        if chosen:
            tips = [f"chosen: {describe_search(point)}" for point in chosen]
            x, y = [point[column] for point in chosen], [point["recall"] for point in chosen]
            marks.append(Marks(x, y, "chosen", 7, is_hollow=True, tips=tips))
        panels.append(Panel(title, marks, Axis(axis, is_log=True), Axis(f"recall@{k}")))
    return panels


def describe_search(point: Row) -> str:
    """Returns search settings in words."""
    if point["exact"]:
        return "exact search"
    leaves = f"{point['leaves_to_search']:,} leaves, " if point["leaves_to_search"] else ""
    return f"{leaves}{point['reorder_per_neighbor']:g} vectors scored exactly for each neighbor"


def seconds_panel(seconds: Mapping[str, float]) -> Panel:
    """Returns how long each stage took, as lying bars."""
    values = list(seconds.values())
    marks = Marks(
        values,
        range(len(values)),
        is_bars=True,
        tips=[f"{name}: {value:.1f} s" for name, value in seconds.items()],
        names=[f"{value:.1f} s" for value in values],
    )
    # Room for the numbers beside the longest bar.
    return Panel(
        "Time of each stage", [marks], Axis("seconds", ends=(0, 1.18 * max([*values, 0.1]))), Axis(names=list(seconds))
    )
