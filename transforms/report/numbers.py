"""How the page of a release writes numbers, times and tables."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from schemas.manifest import StageManifest
from transforms.charts.draw import Panel, draw_panel
from transforms.charts.markup import Html, foreign, tag
from transforms.report.charts import (
    short,
)

Row = Mapping[str, Any]
NOTHING = "-"


def tile(label: str, value: str, note: str) -> Html:
    return tag(
        "div", tag("div", label, class_="soft"), tag("div", value, class_="big"), tag("div", note, class_="soft"), class_="tile"
    )


def shown_metrics(means: Mapping[str, float]) -> list[str]:
    cutoffs = sorted({int(name.partition("@")[2]) for name in means if "@" in name})
    ends = {cutoffs[0], cutoffs[-1]} if cutoffs else set()
    return [name for name in means if "@" not in name or int(name.partition("@")[2]) in ends]


def figure_of(panel: Panel, width: int = 360, height: int = 220) -> Html:
    return tag("figure", tag("figcaption", panel.title), Html(draw_panel(panel, width, height)))


def table_of(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, words: Sequence[int] = ()) -> Html:
    """Returns a table; the first column, and those in `words`, hold words, the others numbers."""
    kinds = ["" if column == 0 or column in words else "number" for column in range(len(heads))]
    head = [tag("th", text, scope="col", class_=kind) for text, kind in zip(heads, kinds, strict=True)]
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)),
        )
        for row in rows
    ]
    return tag(
        "div",
        tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body)),
        class_="wide",
        tabindex="0",
    )


def numbers_of(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Returns the numbers of a chart, folded up."""
    return tag("details", tag("summary", "Numbers"), table_of(heads, rows, "As drawn"))


def item_of(row: Row) -> Html:
    return foreign(row["title"] or row["item_id"])


def named(metric: str) -> str:
    name, at, cutoff = metric.partition("@")
    names = {"recall": "Recall", "ndcg": "NDCG", "hit_rate": "Hit rate", "mrr": "MRR", "coverage": "Coverage"}
    return f"{names.get(name, name)}{at}{cutoff}"


def number_of(value: float | None, before: str = "") -> str:
    if value is None:
        return NOTHING
    return f"{before}{value:,}" if isinstance(value, int) else f"{before}{value:.4f}"


def count_of(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def bytes_of(size: int) -> str:
    return f"{short(size)}B".replace("kB", " kB").replace("MB", " MB").replace("GB", " GB") if size >= 1000 else f"{size} B"


def median_of(rows: Sequence[Row]) -> int:
    """Returns the median history: rows ascend by it."""
    left = (sum(row["users"] for row in rows) + 1) // 2
    for row in rows:
        left -= row["users"]
        if left <= 0:
            return int(row["history_length"])
    return 0


def secs(stage: StageManifest) -> float:
    start, end = map(datetime.fromisoformat, (stage.started_at, stage.finished_at))
    return max(0.0, (end - start).total_seconds())


def time_of(time: str) -> str:
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S} UTC"


def split_in_words(split: Mapping[str, Any]) -> str:
    said = {name: value for name, value in split.items() if value not in (None, False)}
    return ", ".join(name.replace("_", " ") if value is True else f"{name} {value}" for name, value in said.items())
