"""Draws how a training went, epoch by epoch."""

from collections.abc import Sequence

from transforms.charts.draw import COLORS, Axis, Marks, Panel, draw
from transforms.train.curves import MEASURES, CurveRow


def draw_curves(curve: Sequence[CurveRow]) -> str:
    """Returns an SVG document of the panels of `curve_panels`."""
    return draw("Training", curve_panels(curve), columns=3, width=260)


def curve_panels(curve: Sequence[CurveRow]) -> list[Panel]:
    """Returns charts of the loss, and of the quality on the validation slice, over the epochs: a line a training."""
    phases = list(dict.fromkeys(row["phase"] for row in curve))
    panels = []
    for column, title in MEASURES:
        marks = []
        for color, phase in enumerate(phases):
            points = [(row["epoch"], row[column]) for row in curve if row["phase"] == phase and row[column] is not None]  # type: ignore[literal-required]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            tips = [f"{phase}, epoch {epoch}: {value:.4f}" for epoch, value in points]
            marks.append(Marks(epochs, values, phase, color % len(COLORS), is_line=True, tips=tips))
        if marks:
            panels.append(Panel(title, marks, Axis("epoch")))
    return panels
