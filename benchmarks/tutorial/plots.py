"""Draws the figures of the benchmark, as SVG."""

from collections.abc import Iterable, Sequence

from benchmarks.tutorial import published
from benchmarks.tutorial.figures import Figure
from benchmarks.tutorial.libraries import Comparison
from transforms.charts.draw import GREY, Axis, Marks, Panel, draw

SIDES = {"published": ("the tutorial says", GREY), "tutorial": ("its code, here", 1), "shortlist": ("Shortlist, here", 0)}
"""Attributes of a figure: their labels and colours."""
LEAST_RECALL = 0.5
"""Settings that find less are not drawn: nobody wants them, and they would squeeze the others."""


def draw_accuracy(figures: Iterable[Figure]) -> str:
    """Draws row 1: accuracies by the length of the list."""
    of_row = [each for each in figures if each.row == 1]
    ks = list(published.ACCURACY)
    panels = []
    for title, lines in (("As the tutorial counts", of_row[: len(ks)]), ("What was seen left out", of_row[len(ks) :])):
        marks = [
            Marks(
                ks,
                values,
                label,
                color,
                is_line=True,
                tips=[f"top-{k}: {value:.4f}" for k, value in zip(ks, values, strict=True)],
            )
            for side, (label, color) in SIDES.items()
            if all(isinstance(getattr(line, side), float) for line in lines)
            for values in [[getattr(line, side) for line in lines]]
        ]
        panels.append(Panel(title, marks, Axis("length of the list", is_log=True), Axis("accuracy on the test rows")))
    return draw("Accuracy on MovieLens-100K", panels)


def draw_times(figures: Iterable[Figure]) -> str:
    """Draws rows 2 to 5 and 7: how long answers take, on a logarithmic axis."""
    panels = []
    for title, unit in (("One user, milliseconds", "ms"), ("All test rows, seconds", "s")):
        lines = [each for each in figures if each.row > 1 and each.unit == unit]
        marks = []
        for side, (label, color) in SIDES.items():
            places = [(at, value) for at, line in enumerate(lines) if isinstance(value := getattr(line, side), float)]
            tips = [f"{value:.3g} {unit}" for _, value in places]
            marks.append(Marks([value for _, value in places], [float(at) for at, _ in places], label, color, tips=tips))
        panels.append(Panel(title, marks, Axis(unit, is_log=True), Axis(names=[line.what for line in lines])))
    return draw("How long answers take", panels, columns=1)


def draw_libraries(compared: Sequence[Comparison], target_recall: float) -> str:
    """Draws row 9: users a second by recall, a panel for each catalogue, a line for each library."""
    names = list(dict.fromkeys(name for each in compared for name in each.by_library))
    panels = []
    for each in compared:
        marks = []
        for name, points in each.by_library.items():
            front = [point for point in points if point.recall >= LEAST_RECALL]
            tips = [f"{name} {dict(point.setting)}: {point.users_per_second:,.0f} at {point.recall:.4f}" for point in front]
            recalls, speeds = [point.recall for point in front], [point.users_per_second for point in front]
            marks.append(Marks(recalls, speeds, name, names.index(name), is_line=True, tips=tips))
        panels.append(Panel(each.catalogue, marks, Axis("recall@100"), Axis("users a second", is_log=True)))
    note = (
        f"Of each library, the settings that no other of its settings beats in both; the table compares at {target_recall:g}."
    )
    return draw("The same vectors through other libraries", panels, note=note)
