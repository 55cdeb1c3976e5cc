"""A row says how new what it was made from is, and that never comes from the clock."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines.stages.recommend import newest_of
from schemas.manifest import StageManifest


def ingested(newest: int | None, *mtimes: float | None) -> StageManifest:
    """Returns the manifest of an ingest whose ratings are of some time, in files that changed at some others."""
    files: list[dict[str, Any]] = [{"path": "p", "size": 1} | ({} if mtime is None else {"mtime": mtime}) for mtime in mtimes]
    sources = [{"dataset": "items", "files": [{"mtime": 9e9}]}, {"dataset": "ratings", "files": files}]
    return StageManifest(
        "ingest", "f", "folder", "d", {}, {}, sources, [], {"newest_timestamp": newest, "num_buckets": 1}, {}, "", ""
    )


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (ingested(1_600_000_000, 1_700_000_000.0), datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)),
        (ingested(None, 1_600_000_000.0, 1_700_000_000.25, None), datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)),
        (ingested(None, None), None),
    ],
)
def test_ratings_say_how_new_they_are_or_else_their_files(manifest: StageManifest, expected: datetime | None) -> None:
    assert newest_of(manifest) == expected
