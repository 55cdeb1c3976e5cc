"""What came in is said as ingest counted it, beside the last release's, and is handed on from release to release."""

import dataclasses
import io
import json
from typing import Any

from rich.console import Console

from pipelines.lifecycle.results import arrivals_table
from schemas.manifest import StageManifest
from schemas.release_manifest import PASSED, Before, Evaluated, Gate, Release
from schemas.storage import WrittenFile
from transforms.evaluate.arrivals import Arrivals, arrivals_from, arrivals_of, lines_of
from transforms.evaluate.gates import ways_on
from transforms.report.charts import past_panels
from transforms.report.past import NUM_RELEASES, past_of


def stages(ratings: int = 1_000, newest: int | None = 1_600_000_000, **metrics: Any) -> dict[str, StageManifest]:
    found = {
        "ratings_read": {"rows": ratings, "reasons": {"rating is no number": {"count": 4}, "user_id is missing": {"count": 1}}},
        "items_read": {"rows": 50, "reasons": {}},
        "rows_repeated": 95,
        "newest_timestamp": newest,
        "ids_joined": {"rated_items": {"ids": 40, "known": 30, "share": 0.75}},
    }
    files = [WrittenFile(f"{name}/part-0.parquet", rows, 1, "") for name, rows in (("users", 60), ("items", 41))]
    lists = {"exclusions_read": {"rows": 9, "reasons": {"item_id is missing": {"count": 9}}}}
    return {"ingest": stage("ingest", files, found | metrics), "lists": stage("lists", [], lists)}


def stage(name: str, files: list[WrittenFile], metrics: dict[str, Any]) -> StageManifest:
    return StageManifest(name, "f", "stages/i/a", "d", {}, {}, [], files, metrics, {}, "", "")


def test_what_came_in_is_what_ingest_and_the_lists_counted() -> None:
    found = arrivals_of(stages(ratings_forgotten=7))
    assert (found.ratings, found.users, found.items, found.newest) == (1_007, 60, 41, 1_600_000_000)
    assert found.rejected == {"ratings": (5, 1_000), "items": (0, 50), "exclusions": (9, 9)}
    assert found.reasons == {"ratings": "rating is no number", "exclusions": "item_id is missing"}
    assert (found.repeated, found.joined) == ((95, 995), {"rated_items": (30, 40)})
    assert arrivals_from(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert arrivals_of({"ingest": stage("ingest", [], {})}) == arrivals_from({}) == Arrivals(), "an earlier version did not say"


def test_rejected_and_repeated_rows_are_mentioned_below_any_limit_beside_those_of_the_last_release() -> None:
    lines = {each.name: tuple(each)[1:] for each in lines_of(arrivals_of(stages()), arrivals_of(stages(800, 1_599_870_400)))}
    assert lines["ratings"] == ("1,000", "800", "+25.0%")
    assert lines["newest rating"] == ("2020-09-13 12:26:40", "2020-09-12 00:26:40", "1.5 days later")
    assert lines["rejected ratings"] == ("5 (0.50%)", "5 (0.62%)", "most often: rating is no number")
    assert lines["rejected exclusions"][0] == "9 (100.00%)"
    assert lines["repeated ratings"][:2] == ("95 (9.55%)", "95 (11.95%)")
    assert lines["known: rated items"][0] == "30 of 40"
    assert "rejected items" not in lines
    first = {each.name: tuple(each)[1:] for each in lines_of(arrivals_of(stages(newest=None)), None)}
    assert (first["ratings"], first["newest rating"]) == (("1,000", "-", ""), ("-", "-", ""))


def release(day: int, last: Before | None = None) -> Release:
    means = {"recall@10": day / 100, "ndcg@10": day / 200}
    metrics = {"quality": {"users": 9, "means": means}, "popularity": {"means": {"recall@10": 0.001}}}
    return Release(
        name=f"R{day}",
        status=PASSED,
        created_at=f"2026-01-{day:02d}T00:00:00.000Z",
        judged_at=None,
        rows=60,
        topk=(),
        metrics={},
        stages=stages(ratings=1_000 * day),
        evaluated=Evaluated("the published one", False, {}, metrics, {}),
        gates={},
        compared_with=None,
        before=last,
        base=None,
        job=None,
        report=None,
        written={},
    )


def test_a_release_hands_on_the_rows_of_those_before_it_and_not_more_than_some() -> None:
    last: Before | None = None
    for day in range(1, NUM_RELEASES + 2):
        made = release(min(day, 28), last)
        last = Before(made.name, {}, json.loads(json.dumps(past_of(made))), {})
    assert last is not None
    rows = last.past
    assert len(rows) == NUM_RELEASES
    assert [row["release"] for row in rows][:2] == ["R2", "R3"]
    assert rows[0] == {
        "release": "R2",
        "created_at": "2026-01-02T00:00:00.000Z",
        "ratings": 2_000,
        "users": 60,
        "items": 41,
        "newest": 1_600_000_000,
        "quality": {"recall@10": 0.02, "ndcg@10": 0.01},
        "popularity": {"recall@10": 0.001},
    }


def test_quality_and_volume_are_drawn_release_by_release_and_what_is_not_known_is_left_out() -> None:
    rows = [*past_of(release(1)), *past_of(release(2)), *past_of(release(3))]
    rows[1] = dict(rows[1]) | {"quality": {}, "ratings": None}
    quality, volume = past_panels(rows, {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}, "recall@10")
    recall = next(marks for marks in quality.marks if marks.label == "Recall@10")
    assert (list(recall.x), list(recall.y)) == ([0, 2], [0.01, 0.03])
    assert recall.tips[1] == "R3: Recall@10 0.0300"
    assert [marks.label for marks in quality.marks][-1] == "Recall@10 of popularity"
    ratings = next(marks for marks in volume.marks if marks.label == "ratings")
    assert (list(ratings.x), list(ratings.y)) == ([0, 2], [1_000, 3_000])
    assert volume.x.names == ["01-01", "01-02", "01-03"]
    crowded = past_panels([dict(row) for row in rows] * 10, {}, "")
    (names,) = {tuple(panel.x.names) for panel in crowded}
    assert len([name for name in names if name]) <= 6
    assert names[-1]


def test_the_ways_on_are_enough_for_all_gates_at_once() -> None:
    def gate(allow: str | None, status: str = "failed") -> Gate:
        return Gate("", status, None, None, "", allow=allow)

    gates = {
        "users": gate("--max_shrink 0.2"),
        "items": gate("--max_shrink 0.11"),
        "overlap": gate("--min_overlap 0.05"),
        "coverage": gate("--min_coverage 0.1", "passed"),
        "order": gate(None),
    }
    assert ways_on(gates) == ["--max_shrink 0.2", "--min_overlap 0.05", "--force order=REASON"]


def test_the_table_of_what_came_in_fits_a_terminal_of_80_columns() -> None:
    now = arrivals_of(stages(ratings=123_456_789))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(arrivals_table(now, arrivals_of(stages(ratings=123_456_000, newest=1_599_000_000))))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert "ratings                      123,456,789          123,456,000  +0.0%" in lines
    assert any(line.endswith("2020-09-13 12:26:40  2020-09-01 22:40:00  11.6 days later") for line in lines)
