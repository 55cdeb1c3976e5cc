"""The report on a release: one HTML page that stands alone, with no script and nothing from any network.

Everything it says comes from the release's manifest and from files that the manifest names, so the same release gives the same
page, byte for byte. Each chart has its numbers beside it as a table. The colours follow the reader's light or dark theme, and
those of a chart stay apart for colour-blind readers; on paper it is black on white.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from schemas.words import counted
from transforms.charts.draw import Panel, draw_panel
from transforms.charts.markup import Html, foreign, join, tag
from transforms.evaluate.arrivals import arrivals_from, arrivals_of, lines_of, moment
from transforms.evaluate.gates import compared_metrics, ways_on
from transforms.report.charts import (
    Scores,
    Shares,
    bins_of,
    bins_panel,
    gini,
    past_panels,
    popularity_panel,
    quality_panel,
    recall_panels,
    seconds_panel,
    short,
)
from transforms.report.past import row_of
from transforms.report.style import STYLE
from transforms.train.curves import CurveRow, curve_panels

Row = Mapping[str, Any]

SECTIONS = {
    "arrivals": "What came in",
    "quality": "Quality",
    "past": "The last releases",
    "gates": "Gates",
    "items": "What is recommended",
    "users": "Users",
    "search": "Search",
    "training": "Training",
    "stages": "Stages",
}
"""The sections: their anchors and headings, in order."""

_TOP_SHARES = (0.001, 0.01, 0.1, 0.5)
_NOTHING = "-"


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Attributes:
      manifest: of the release.
      curves: for each model: what it is, its curve, and its best epoch, None without validation.
      described: rows of what `DescribeTable` wrote, by dataset; empty for a release that was never described.
    """

    manifest: Mapping[str, Any]
    curves: Sequence[tuple[str, Sequence[CurveRow], int | None]] = ()
    described: Mapping[str, Sequence[Row]] = field(default_factory=dict)


def render(report: Report) -> str:
    """Returns the page."""
    manifest = report.manifest
    name = manifest["release"]
    bodies = {
        "arrivals": _arrivals(manifest),
        "quality": _quality(manifest),
        "past": _past(manifest),
        "gates": _gates(manifest),
        "items": _items(report),
        "users": _users(report),
        "search": _search(manifest),
        "training": _training(report),
        "stages": _stages(manifest),
    }
    links = [tag("a", heading, href=f"#{anchor}") for anchor, heading in SECTIONS.items()]
    sections = [
        tag(
            "section",
            tag("h2", heading, id=f"{anchor}-heading"),
            *bodies[anchor],
            id=anchor,
            aria_labelledby=f"{anchor}-heading",
        )
        for anchor, heading in SECTIONS.items()
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Release {name}"),
        tag("style", Html(STYLE)),
    )
    body = tag("body", _header(manifest), tag("nav", *links, aria_label="Sections"), tag("main", *sections), _footer(manifest))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(manifest: Mapping[str, Any]) -> Html:
    status = manifest["status"]
    word = {"passed": "passed its gates", "failed": "failed its gates"}.get(status, status)
    lines = [
        f"{counted(manifest['rows'], 'user')}, made {_when(manifest['created_at'])}, judged {_when(manifest['judged_at'])}"
    ]
    if manifest.get("last"):
        lines.append(f", beside release {manifest['last']['release']}")
    if manifest.get("base"):
        lines.append(f". {_kept(manifest['base'])}")
    return tag(
        "header",
        tag("h1", "Release ", tag("span", manifest["release"], class_="name"), " ", tag("span", word, class_=f"chip {status}")),
        tag("p", *lines, class_="soft"),
        *_failed(manifest),
        tag("div", *_tiles(manifest), class_="tiles"),
    )


def _failed(manifest: Mapping[str, Any]) -> Iterator[Html]:
    """Yields what kept the release from being served, and what to run next; nothing where nothing did."""
    failed = {name: gate for name, gate in manifest["gates"].items() if gate["status"] == "failed"}
    if not failed:
        return
    last = (manifest["compared_with"] or {}).get("release")
    diff = f"python -m pipelines.releases diff {last} {manifest['release']} --output DIR"
    steps = [
        tag("li", "If the data is wrong, mend it and run the same command again: other data is another run."),
        tag("li", "If all is as it should be, run the same command again with ", tag("code", " ".join(ways_on(failed))), "."),
    ]
    if last:
        steps.insert(0, tag("li", "Look what has changed: ", tag("code", diff)))
    yield tag(
        "div",
        tag("strong", f"It is not served: {len(failed)} of {len(manifest['gates'])} gates failed."),
        tag("ul", *(tag("li", tag("strong", name), ": ", gate["reason"]) for name, gate in failed.items())),
        tag("strong", "What to run next"),
        tag("ul", *steps),
        class_="failed-gates",
    )


def _arrivals(manifest: Mapping[str, Any]) -> Iterator[Html]:
    last = manifest.get("last")
    then = arrivals_from(last.get("arrivals") or {}) if last else None
    rows = [[each.name, each.now, each.then, each.change] for each in lines_of(arrivals_of(manifest["stages"]), then)]
    if last:
        yield tag("p", f"Beside release {last['release']}, which was served when this one was judged.", class_="soft")
    else:
        yield tag("p", "This is the first release: there is nothing to compare it with.", class_="soft")
    yield _table(["what", "this release", "last", "change"], rows, "What came in", words=(3,))


def _past(manifest: Mapping[str, Any]) -> Iterator[Html]:
    rows = [*((manifest.get("last") or {}).get("past") or ()), row_of(manifest)]
    if len(rows) < 2:
        yield tag("p", "Nothing is known of releases before this one.")
        return
    k = (manifest["evaluated"] or {}).get("split", {}).get("k")
    metrics = {name: _named(name) for name in (compared_metrics(k) if k else ())}
    yield tag("p", f"The last of {len(rows):,} releases is this one; the others were served before it, one after the other.")
    panels = past_panels(rows, metrics, next(iter(metrics), ""))
    yield tag("div", *(_figure(panel) for panel in panels), class_="figures")
    heads = ["release", "made", "ratings", "users", "items", "newest rating", *metrics.values()]
    table = [
        [
            row["release"],
            _when(row["created_at"]),
            *(_count(row[name]) for name in ("ratings", "users", "items")),
            moment(row["newest"]),
            *(_number(row["quality"].get(name)) for name in metrics),
        ]
        for row in rows[::-1]
    ]
    yield _numbers(heads, table)


def _kept(base: Mapping[str, Any]) -> str:
    """Returns what was kept of the release that this one builds on."""
    model = f"The model is that of release {base['release']}"
    if base["why_nobody"]:
        return f"{model}; all lists are new, since {base['why_nobody']}."
    why = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in base["new_lists"].items() if count)
    return f"{model}; {base['carried']:,} of {base['users']:,} lists were carried over from it" + (
        f", the others are new ({why})." if why else "."
    )


def _tiles(manifest: Mapping[str, Any]) -> Iterator[Html]:
    table, quality = manifest["stages"]["judge"]["metrics"]["table"], manifest["evaluated"]["metrics"]["quality"]
    if quality["users"]:
        for metric in compared_metrics(manifest["evaluated"]["split"]["k"]):
            note = ""
            popular = manifest["evaluated"]["metrics"]["popularity"]["means"][metric]
            if popular:
                note = f"{quality['means'][metric] / popular:.2f} times popularity"
            yield _tile(_named(metric), f"{quality['means'][metric]:.3f}", note)
    recall = manifest["metrics"]["recall_against_exact"]
    if recall["mean"] is not None:
        yield _tile("Recall of the index", f"{recall['mean']:.3f}", "against exact search")
    eligible = table["items_eligible"]
    share = f"{100 * table['items_listed'] / eligible:.0f} %" if eligible else _NOTHING
    yield _tile("Items in a list", share, f"{table['items_listed']:,} of {eligible:,}")
    if table["overlap"]:
        yield _tile("Same as last time", f"{table['overlap']['mean_jaccard']:.2f}", f"mean Jaccard@{table['overlap']['k']}")
    else:
        yield _tile("Same as last time", _NOTHING, "nothing to compare with")


def _tile(label: str, value: str, note: str) -> Html:
    return tag(
        "div", tag("div", label, class_="soft"), tag("div", value, class_="big"), tag("div", note, class_="soft"), class_="tile"
    )


def _quality(manifest: Mapping[str, Any]) -> Iterator[Html]:
    evaluated = manifest["evaluated"]
    metrics = evaluated["metrics"]
    quality, last = metrics["quality"], manifest.get("last")
    if not quality["users"]:
        yield tag("p", "Nothing is held out, so nothing is measured here: see --split and --refit.")
        return
    about = f"Mean over {counted(quality['users'], 'user')} with held-out items ({_split_in_words(evaluated['split'])})."
    refitted = evaluated.get("refitted", bool(evaluated["stages"]))
    if refitted:
        about += " They are those of the model before the refit, which has not learned from what is held out."
    if refitted and manifest.get("base"):
        about += " It was evaluated when the model that is kept was trained."
    yield tag("p", about)
    then = last["evaluation"] if last and last["evaluation"]["quality"]["users"] else None
    same = then is not None and then["split"] == evaluated["split"]
    if then and not same:
        yield tag("p", "The last release was evaluated in another way, so its numbers are not comparable.", class_="soft")
    scored = [Scores("this release", quality["means"], quality["standard_errors"])]
    if then:
        scored.append(Scores("last release", then["quality"]["means"], then["quality"]["standard_errors"]))
    else:
        scored.append(Scores("", {}, {}))
    scored += [
        Scores(name, metrics[column]["means"], metrics[column]["standard_errors"])
        for name, column in (("popularity", "popularity"), ("recent popularity", "recent_popularity"))
    ]
    shown = {name: _named(name) for name in _shown_metrics(quality["means"])}
    rows = []
    for name, value in quality["means"].items():
        error, before = quality["standard_errors"].get(name), scored[1].means.get(name)
        change = f"{value - before:+.4f}" if same and before is not None else _NOTHING
        others = [each.means.get(name) for each in scored[2:]]
        rows.append(
            [_named(name), _number(value), _number(error, "±"), _number(before), change, *(_number(each) for each in others)]
        )
    heads = ["metric", "this release", "error", "last", "change", "popularity", "recent"]
    chart = _figure(quality_panel(scored, shown), width=300)
    yield tag("div", chart, _table(heads, rows, "Held-out metrics"), class_="figures")


def _shown_metrics(means: Mapping[str, float]) -> list[str]:
    cutoffs = sorted({int(name.partition("@")[2]) for name in means if "@" in name})
    ends = {cutoffs[0], cutoffs[-1]} if cutoffs else set()
    return [name for name in means if "@" not in name or int(name.partition("@")[2]) in ends]


def _gates(manifest: Mapping[str, Any]) -> Iterator[Html]:
    gates = manifest["gates"]
    counts = {
        status: sum(gate["status"] == status for gate in gates.values()) for status in ("passed", "failed", "forced", "skipped")
    }
    yield tag("p", ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "None were asked.")
    rows = []
    order = {"failed": 0, "forced": 1}
    for name, gate in sorted(gates.items(), key=lambda each: order.get(each[1]["status"], 2)):
        reason: str = gate["reason"]
        if gate["forced"]:
            reason = join([gate["reason"], "; overridden: ", foreign(gate["forced"])])
        rows.append(
            [
                name,
                tag("span", gate["status"], class_=f"chip {gate['status']}"),
                _number(gate["value"]),
                _number(gate["limit"]),
                reason,
            ]
        )
    yield _table(["gate", "verdict", "found", "limit", "why"], rows, "Gates", words=(1, 4))


def _items(report: Report) -> Iterator[Html]:
    rows = report.described.get("items_by_popularity", ())
    num_items, places = sum(row["items"] for row in rows), sum(row["listings"] for row in rows)
    if not places:
        yield tag("p", "Nothing is known of what is in the lists.")
        return
    shares, spread = Shares.of(rows), report.described["items_by_listings"]
    listed = num_items - sum(row["items"] for row in spread if not row["listings"])
    fair = gini([row["train_count"] for row in rows], [row["items"] for row in rows])
    even = gini([row["listings"] for row in spread], [row["items"] for row in spread])
    yield tag(
        "p",
        f"{places:,} places in lists go to {listed:,} of the catalogue's {num_items:,} items. How unevenly, as a Gini "
        f"coefficient (0: all items alike; 1: one has everything): {even:.2f}, and {fair:.2f} for the interactions that were "
        "learned from.",
    )
    bins = bins_of([row["listings"] for row in spread], [row["items"] for row in spread])
    yield tag(
        "div",
        _figure(popularity_panel(shares, num_items)),
        _figure(bins_panel("How many lists an item is in", bins, "lists", "items")),
        class_="figures",
    )
    of_top = [
        [f"{100 * top:g} %", f"{max(1, round(top * num_items)):,}", *(f"{100 * share:.1f} %" for share in shares.at(top))]
        for top in _TOP_SHARES
        if top * num_items >= 1
    ]
    yield _table(["most popular", "items", "of the interactions", "of the places in lists"], of_top, "Concentration")
    yield _numbers(["lists", "items"], [[each.name, f"{each.total:,}"] for each in bins])
    top_rows = [
        [
            _item(row),
            f"{row['listings']:,}",
            f"{100 * row['listings'] / max(1, report.manifest['rows']):.0f} %",
            f"{row['train_count']:,}",
        ]
        for row in report.described["top_items"]
    ]
    yield tag("h3", "Most recommended")
    yield _table(["item", "lists", "of all lists", "training positives"], top_rows, "Most recommended items")


def _users(report: Report) -> Iterator[Html]:
    rows = report.described.get("users_by_history", ())
    if not rows:
        yield tag("p", "Nothing is known of the users.")
        return
    sources: dict[str, int] = {}
    for row in rows:
        sources[row["source"]] = sources.get(row["source"], 0) + row["users"]
    total = sum(sources.values())
    words = ", ".join(f"{count:,} {source or 'of no source'}" for source, count in sorted(sources.items()))
    yield tag("p", f"{total:,} lists: {words}. Half of the users have at least {_median(rows):,} training positives.")
    bins = bins_of([row["history_length"] for row in rows], [row["users"] for row in rows])
    yield _figure(bins_panel("How long histories are", bins, "training positives", "users"), width=420)
    yield _numbers(["training positives", "users"], [[each.name, f"{each.total:,}"] for each in bins])
    examples = report.described["example_users"]
    if examples:
        yield tag("h3", "A few of them")
        yield tag(
            "p",
            "Chosen by a hash of the id. A mark (✓) is on items that were held out of the history: the user did come to them.",
            class_="soft",
        )
        yield tag("div", *(_example(user) for user in examples), class_="examples")


def _example(user: Row) -> Html:
    latest = [tag("li", _item(each)) for each in user["history"]]
    listed = [
        tag(
            "tr",
            tag("td", str(rank), class_="soft"),
            tag("td", _item(each), *([tag("span", " ✓", class_="hit", title="held out")] if each["is_held_out"] else [])),
            tag("td", _NOTHING if each["score"] is None else f"{each['score']:.2f}", class_="number"),
        )
        for rank, each in enumerate(user["recommendations"], 1)
    ]
    held_out = f", {user['held_out']:,} held out" if user["held_out"] else ""
    return tag(
        "article",
        tag("h4", "User ", foreign(user["user_id"]), " ", tag("span", user["source"], class_="chip")),
        tag("div", f"Latest of {user['history_length']:,} in the history{held_out}", class_="soft"),
        tag("ul", *latest) if latest else tag("p", "none", class_="soft"),
        tag("div", "Recommended, with scores", class_="soft"),
        tag("div", tag("table", tag("tbody", *listed)), class_="wide"),
    )


def _search(manifest: Mapping[str, Any]) -> Iterator[Html]:
    metrics, index = manifest["metrics"], manifest["stages"]["index"]["metrics"]
    recall, calibration = metrics["recall_against_exact"], index["calibration"]
    if recall["mean"] is not None:
        error = "" if recall["standard_error"] is None else f" ± {recall['standard_error']:.4f}"
        yield tag("p", f"The lists hold {recall['mean']:.4f}{error} of what exact search finds.")
    curve, shards = calibration["curve"], index["num_shards"]
    reason = calibration["reason"][:1].upper() + calibration["reason"][1:]
    yield tag("p", f"{reason}. The index has {shards:,} {'shard' if shards == 1 else 'shards'}.")
    panels = recall_panels(curve, index["search"], calibration["target_recall"], calibration["k"])
    if panels:
        yield tag("div", *(_figure(panel) for panel in panels), class_="figures")
        rows = [
            [
                "exact" if point["exact"] else _count(point["leaves_to_search"]),
                f"{point['reorder_per_neighbor']:g}",
                _number(point["recall"]),
                _number(point["lower_bound"]),
                short(point["cost"]),
            ]
            for point in curve
        ]
        yield _numbers(["leaves", "reordered for each neighbor", "recall", "lower bound", "cost"], rows)
    segments = []
    for column, what in (
        ("recall_by_history_length", "history of"),
        ("recall_by_item_popularity", "items with training positives of"),
    ):
        for segment, found in metrics.get(column, {}).items():
            if found["users"]:
                segments.append(
                    [f"{what} {segment}", f"{found['users']:,}", _number(found["mean"]), _number(found["standard_error"], "± ")]
                )
    if segments:
        yield _table(["segment", "lists compared", "recall", "standard error"], segments, "Recall against exact search")


def _training(report: Report) -> Iterator[Html]:
    metrics = report.manifest["stages"]["train"]["metrics"]
    yield tag(
        "p",
        f"{metrics['train_rows']:,} rows of {metrics['train_users']:,} users and {metrics['train_items']:,} items, "
        f"{counted(metrics['epochs'], 'epoch')}, vectors of {metrics['dim']:,} numbers.",
    )
    for name, curve, best in report.curves:
        panels = curve_panels(curve, best)
        if len(report.curves) > 1:
            yield tag("h3", name)
        yield tag("div", *(_figure(panel, 215, 160) for panel in panels), class_="figures")
        rows = [
            [row["phase"], str(row["epoch"]), _number(row["loss"]), _number(row["recall_at_100"]), _number(row["ndcg_at_10"])]
            for row in curve
        ]
        yield _numbers(["phase", "epoch", "loss", "Recall@100", "NDCG@10"], rows)


def _stages(manifest: Mapping[str, Any]) -> Iterator[Html]:
    stages = dict(manifest["stages"])
    stages |= {f"{name} (before the refit)": stage for name, stage in manifest["evaluated"]["stages"].items()}
    seconds = {name: _seconds(stage) for name, stage in stages.items()}
    yield tag(
        "p", f"{sum(seconds.values()):,.1f} seconds in all. A stage that was done before shows the time that it took then."
    )
    yield _figure(seconds_panel(seconds), width=420, height=120)
    rows = [
        [
            name,
            f"{seconds[name]:,.1f} s",
            f"{len(stage['files']):,}",
            f"{sum(file['rows'] for file in stage['files']):,}",
            _bytes(sum(file["bytes"] for file in stage["files"])),
            tag("code", stage["fingerprint"]),
            _when(stage["finished_at"]),
        ]
        for name, stage in stages.items()
    ]
    yield _table(["stage", "time", "files", "rows", "size", "fingerprint", "finished"], rows, "Stages", words=(5, 6))
    read = {name: value for stage in stages.values() for name, value in stage["metrics"].items() if name.endswith("_read")}
    sources: list[list[str]] = []
    for source in manifest["sources"]:
        summary = read.get(f"{source['dataset']}_read")
        rejected = sum(reason["count"] for reason in summary["reasons"].values()) if summary else None
        sources += [
            [
                source["dataset"],
                tag("bdi", str(file["path"])),
                _bytes(file["size"]) if file.get("size") is not None else _NOTHING,
                _count(summary["rows"] if summary else None),
                _count(rejected),
            ]
            for file in source["files"]
        ]
    yield tag("h3", "Sources")
    yield _table(["what", "file", "size", "rows of them all", "rejected"], sources, "Sources", words=(1,))
    yield tag(
        "details",
        tag("summary", "Settings and versions"),
        tag("pre", json.dumps({name: stage["settings"] for name, stage in stages.items()}, indent=1, ensure_ascii=False)),
        tag("pre", json.dumps(manifest["versions"], indent=1)),
    )


def _footer(manifest: Mapping[str, Any]) -> Html:
    compared = manifest["compared_with"]
    return tag(
        "footer",
        tag(
            "p",
            f"Fingerprint {manifest['fingerprint']}. ",
            f"Compared with {compared['release']}." if compared else "",
            class_="soft",
        ),
    )


def _figure(panel: Panel, width: int = 360, height: int = 220) -> Html:
    return tag("figure", tag("figcaption", panel.title), Html(draw_panel(panel, width, height)))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, words: Sequence[int] = ()) -> Html:
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


def _numbers(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """Returns the numbers of a chart, folded up."""
    return tag("details", tag("summary", "Numbers"), _table(heads, rows, "As drawn"))


def _item(row: Row) -> Html:
    return foreign(row["title"] or row["item_id"])


def _named(metric: str) -> str:
    name, at, cutoff = metric.partition("@")
    names = {"recall": "Recall", "ndcg": "NDCG", "hit_rate": "Hit rate", "mrr": "MRR", "coverage": "Coverage"}
    return f"{names.get(name, name)}{at}{cutoff}"


def _number(value: float | None, before: str = "") -> str:
    if value is None:
        return _NOTHING
    return f"{before}{value:,}" if isinstance(value, int) else f"{before}{value:.4f}"


def _count(value: int | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def _bytes(size: int) -> str:
    return f"{short(size)}B".replace("kB", " kB").replace("MB", " MB").replace("GB", " GB") if size >= 1000 else f"{size} B"


def _median(rows: Sequence[Row]) -> int:
    """Returns the median history: rows ascend by it."""
    left = (sum(row["users"] for row in rows) + 1) // 2
    for row in rows:
        left -= row["users"]
        if left <= 0:
            return int(row["history_length"])
    return 0


def _seconds(stage: Mapping[str, Any]) -> float:
    start, end = (datetime.fromisoformat(stage[name]) for name in ("started_at", "finished_at"))
    return max(0.0, (end - start).total_seconds())


def _when(time: str) -> str:
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M:%S} UTC"


def _split_in_words(split: Mapping[str, Any]) -> str:
    said = {name: value for name, value in split.items() if value not in (None, False)}
    return ", ".join(name.replace("_", " ") if value is True else f"{name} {value}" for name, value in said.items())
