"""What the last releases were like: a row each, which every release hands on to the next in its manifest.

So a report can show how quality and volume went without reading any other manifest, and after old ones have been deleted. Each
release knows those that were served before it, one after the other; what was rolled back is not among them.
"""

from collections.abc import Mapping
from typing import Any

from schemas.release_manifest import Release
from transforms.evaluate.arrivals import arrivals_of

NUM_RELEASES = 30
"""How many releases are handed on at most."""

Row = Mapping[str, Any]


def row_of(release: Release) -> dict[str, Any]:
    """Returns what there is to remember of a release."""
    arrivals = arrivals_of(release.stages)
    evaluated = release.evaluated.metrics if release.evaluated else {}
    has_holdout = bool(evaluated.get("quality", {}).get("users"))
    return {
        "release": release.name,
        "created_at": release.created_at,
        "ratings": arrivals.ratings,
        "users": arrivals.users,
        "items": arrivals.items,
        "newest": arrivals.newest,
        "quality": dict(evaluated["quality"]["means"]) if has_holdout else {},
        "popularity": dict((evaluated.get("popularity") or {}).get("means", {})) if has_holdout else {},
    }


def past_of(release: Release) -> list[Row]:
    """Returns the rows of a release and of those before it, oldest first."""
    return [*(release.before.past if release.before else ()), row_of(release)][-NUM_RELEASES:]
