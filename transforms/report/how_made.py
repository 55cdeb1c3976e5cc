"""The sections of the page that say how a release was made: the search, the training, the stages."""

import json
from collections.abc import Iterator

from schemas.release_manifest import Release
from schemas.words import counted
from transforms.charts.markup import Html, tag
from transforms.report.charts import (
    recall_panels,
    seconds_panel,
    short,
)
from transforms.report.curves import curve_panels
from transforms.report.facts import Report
from transforms.report.numbers import NOTHING, bytes_of, count_of, figure_of, number_of, numbers_of, secs, table_of, time_of


def search(release: Release) -> Iterator[Html]:
    indexed = release.stages["index"]
    metrics, searched = release.metrics, release.stages.get("calibrate", indexed).metrics  # As earlier programs had it.
    recall, calibration = metrics["recall_against_exact"], searched["calibration"]
    if recall["mean"] is not None:
        error = "" if recall["standard_error"] is None else f" ± {recall['standard_error']:.4f}"
        yield tag("p", f"The lists hold {recall['mean']:.4f}{error} of what exact search finds.")
    curve, shards = calibration["curve"], indexed.metrics["num_shards"]
    reason = calibration["reason"][:1].upper() + calibration["reason"][1:]
    yield tag("p", f"{reason}. The index has {shards:,} {'shard' if shards == 1 else 'shards'}.")
    panels = recall_panels(curve, searched["search"], calibration["target_recall"], calibration["k"])
    if panels:
        yield tag("div", *(figure_of(panel) for panel in panels), class_="figures")
        rows = [
            [
                "exact" if point["exact"] else count_of(point["leaves_to_search"]),
                f"{point['reorder_per_neighbor']:g}",
                number_of(point["recall"]),
                number_of(point["lower_bound"]),
                short(point["cost"]),
            ]
            for point in curve
        ]
        yield numbers_of(["leaves", "reordered for each neighbor", "recall", "lower bound", "cost"], rows)
    segments = []
    for column, what in (
        ("recall_by_history_length", "history of"),
        ("recall_by_item_popularity", "items with training positives of"),
    ):
        for segment, found in metrics.get(column, {}).items():
            if found["users"]:
                segments.append(
                    [
                        f"{what} {segment}",
                        f"{found['users']:,}",
                        number_of(found["mean"]),
                        number_of(found["standard_error"], "± "),
                    ]
                )
    if segments:
        yield table_of(["segment", "lists compared", "recall", "standard error"], segments, "Recall against exact search")


def training(report: Report) -> Iterator[Html]:
    metrics = report.release.stages["train"].metrics
    yield tag(
        "p",
        f"{metrics['train_rows']:,} rows of {metrics['train_users']:,} users and {metrics['train_items']:,} items, "
        f"{counted(metrics['epochs'], 'epoch')}, vectors of {metrics['dim']:,} numbers.",
    )
    for name, curve in report.curves:
        panels = curve_panels(curve)
        if len(report.curves) > 1:
            yield tag("h3", name)
        yield tag("div", *(figure_of(panel, 215, 160) for panel in panels), class_="figures")
        rows = [
            [
                row["phase"],
                str(row["epoch"]),
                number_of(row["loss"]),
                number_of(row["recall_at_100"]),
                number_of(row["ndcg_at_10"]),
            ]
            for row in curve
        ]
        yield numbers_of(["phase", "epoch", "loss", "Recall@100", "NDCG@10"], rows)


def stages(release: Release) -> Iterator[Html]:
    stages = dict(release.stages)
    before = release.evaluated.stages if release.evaluated else {}
    stages |= {f"{name} (before the refit)": stage for name, stage in before.items()}
    seconds = {name: secs(stage) for name, stage in stages.items()}
    yield tag(
        "p", f"{sum(seconds.values()):,.1f} seconds in all. A stage that was done before shows the time that it took then."
    )
    yield figure_of(seconds_panel(seconds), width=420, height=120)
    rows = [
        [
            name,
            f"{seconds[name]:,.1f} s",
            f"{len(stage.files):,}",
            f"{sum(file.rows for file in stage.files):,}",
            bytes_of(sum(file.bytes for file in stage.files)),
            tag("code", stage.fingerprint),
            time_of(stage.finished_at),
        ]
        for name, stage in stages.items()
    ]
    yield table_of(["stage", "time", "files", "rows", "size", "fingerprint", "finished"], rows, "Stages", words=(5, 6))
    read = {name: value for stage in stages.values() for name, value in stage.metrics.items() if name.endswith("_read")}
    sources: list[list[str]] = []
    for source in release.written["sources"]:
        summary = read.get(f"{source['dataset']}_read")
        rejected = sum(reason["count"] for reason in summary["reasons"].values()) if summary else None
        sources += [
            [
                source["dataset"],
                tag("bdi", str(file["path"])),
                bytes_of(file["size"]) if file.get("size") is not None else NOTHING,
                count_of(summary["rows"] if summary else None),
                count_of(rejected),
            ]
            for file in source["files"]
        ]
    yield tag("h3", "Sources")
    yield table_of(["what", "file", "size", "rows of them all", "rejected"], sources, "Sources", words=(1,))
    yield tag(
        "details",
        tag("summary", "Settings and versions"),
        tag("pre", json.dumps({name: stage.settings for name, stage in stages.items()}, indent=1, ensure_ascii=False)),
        tag("pre", json.dumps(release.written["versions"], indent=1)),
    )


def footer(release: Release) -> Html:
    compared = release.compared_with
    return tag(
        "footer",
        tag(
            "p",
            f"Fingerprint {release.written['fingerprint']}. ",
            f"Compared with {compared.release}." if compared else "",
            class_="soft",
        ),
    )
