"""Draws what trials of an index came to: recall against speed."""

from typing import Any

import numpy as np
import pyarrow as pa

from transforms.charts.draw import GREY, Axis, Marks, Panel, draw
from transforms.index.tuning_report import front_of


def chart_of(table: pa.Table, k: int, target_recall: float, num_vectors: int) -> str:
    """Returns the plot: recall against users a second and core, and against the cost, with the front and the choice.

    Args:
      table: of SEARCH_TRIALS, from `conclude`.
      k: how long the lists are whose recall was measured.
      target_recall: what had to be found of them.
      num_vectors: that were searched.
    """
    rows = table.to_pylist()
    shown = [row for row in rows if row["recall"] >= min(0.7, target_recall - 0.1) or row["is_front"]]
    groups = (("exact", 7), ("hashed", 4), ("tree, SOAR", 0), ("tree, no SOAR", 2))

    def panel(x: str, title: str, axis: str) -> Panel:
        marks = []
        values = np.array([row[x] for row in shown])
        is_front = front_of(np.array([row["recall"] for row in shown]), -values if x == "cost" else values)
        front = sorted((row for row, on in zip(shown, is_front, strict=True) if on), key=lambda row: row[x])
        marks.append(Marks([r[x] for r in front], [r["recall"] for r in front], "Pareto front", 1, is_line=True))
        for label, color in groups:
            mine = [row for row in shown if group_of(row) == label]
            if mine:
                tips = [label_of(row) for row in mine]
                marks.append(Marks([r[x] for r in mine], [r["recall"] for r in mine], label, color, is_hollow=True, tips=tips))
        on_front = Marks([r[x] for r in front], [r["recall"] for r in front], "", 1, tips=[label_of(row) for row in front])
        chosen = [row for row in rows if row["is_chosen"]]
        best = Marks([r[x] for r in chosen], [r["recall"] for r in chosen], "chosen", 3, tips=[label_of(r) for r in chosen])
        ends = [min(row[x] for row in shown), max(row[x] for row in shown)]
        target = Marks(ends, [target_recall] * 2, f"target {target_recall:g}", GREY, is_line=True)
        return Panel(title, [target, *marks, on_front, best], Axis(axis, is_log=True), Axis(f"recall@{k}"))

    return draw(
        f"Searching {num_vectors:,} vectors: recall against speed",
        [
            panel("users_per_second", "Measured", "users a second, one core (CPU time)"),
            panel("cost", "On any machine", "cost of a user, in roughly scored vectors"),
        ],
        note="Mean recall over a sample of the run's users, against exact search; point at a dot for its settings.",
        width=460,
        height=340,
    )


def group_of(row: dict[str, Any]) -> str:
    """Returns what a trial is shown as in the plot."""
    if row["kind"] != "tree":
        return row["kind"]
    return "tree, SOAR" if row["soar"] else "tree, no SOAR"


def label_of(row: dict[str, Any]) -> str:
    """Returns a trial's settings and findings in a line."""
    words = [group_of(row)]
    if row["kind"] == "tree":
        words.append(f"{row['leaves_to_search']:,} of {row['leaves']:,} leaves")
    if row["kind"] != "exact":
        words.append(f"threshold {row['quantization_threshold']:g}, reorder {row['reorder_per_neighbor']:g} a neighbor")
    return ", ".join([*words, f"recall {row['recall']:.4f}, {row['users_per_second']:,.0f} users a second"])
