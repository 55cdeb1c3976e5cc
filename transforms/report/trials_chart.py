"""Draws the trials of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from transforms.charts.draw import Axis, Marks, Panel, draw

SETTING = "setting_"


def differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the columns of settings that are not the same in all trials."""
    return [name for name in rows[0] if name.startswith(SETTING) and len({row[name] for row in rows}) > 1]


def chart_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns an SVG: for each setting that differs, the quality of every trial by its value.

    Args:
      rows: of the table of trials (`schemas.trials`), the best first; at least one of them is done.
    """
    done = [row for row in rows if row["quality"] is not None]
    failed = [row for row in rows if row["quality"] is None]
    floor = min(row["quality"] for row in done)

    def figure(row: Mapping[str, Any]) -> str:
        return f"{row['quality']:.4f}"

    def panel_of(name: str) -> Panel:
        values = sorted({row[name] for row in rows}, key=lambda value: (value is not None, value))
        as_names = not all(type(value) in (int, float) for value in values)

        def marks_of(some: Sequence[Mapping[str, Any]], label: str, color: int, is_hollow: bool = False) -> Marks:
            return Marks(
                [float(values.index(row[name])) if as_names else float(row[name]) for row in some],
                [floor if row["quality"] is None else row["quality"] for row in some],
                label,
                color,
                is_hollow=is_hollow,
                tips=[f"trial {row['trial']}: {row['reason'] or figure(row)}" for row in some],
            )

        marks = [marks_of(done[1:], "trial", 0), marks_of(done[:1], "winner", 1)]
        if failed:
            marks.append(marks_of(failed, "failed", 6, is_hollow=True))
        is_log = not as_names and values[0] > 0 and values[-1] > 5 * values[0]
        labels = ["default" if value is None else str(value) for value in values] if as_names else ()
        return Panel(name.removeprefix(SETTING), marks, Axis("", is_log, labels), Axis("quality"))

    note = f"Recall@100 + NDCG@10 on the validation slice; {len(rows)} trials, {len(failed)} of them failed"
    return draw("Trials", [panel_of(name) for name in differing(rows)], columns=2, note=note)
