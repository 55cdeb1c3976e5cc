"""Draws how a training went, epoch by epoch."""

from collections.abc import Sequence

from transforms.charts.draw import Axis, Marks, Panel, draw
from transforms.train.curves import MEASURES, CurveRow


def draw_curves(curve: Sequence[CurveRow], best_epoch: int | None = None) -> str:
    """Returns an SVG document of the panels of `curve_panels`."""
    return draw("Training", curve_panels(curve, best_epoch), columns=3, width=260)


def curve_panels(curve: Sequence[CurveRow], best_epoch: int | None = None) -> list[Panel]:
    """Returns charts of the loss, and of the quality on the validation slice, over the epochs.

    Args:
      curve: a row an epoch.
      best_epoch: the search's, which gets a ring.
    """
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
            marks.append(Marks(epochs, values, phase, color, is_line=True, tips=tips))
            if best_epoch is not None and best_epoch in epochs and phase == phases[0] and column != "loss":
                value = values[epochs.index(best_epoch)]
                marks.append(Marks([best_epoch], [value], "best", 3, is_hollow=True, tips=[f"best: epoch {best_epoch}"]))
        if marks:
            panels.append(Panel(title, marks, Axis("epoch")))
    return panels
