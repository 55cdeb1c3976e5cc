"""What the last releases were like: a row each, which every release hands on to the next in its manifest.

So a report can show how quality and volume went without reading any other manifest, and after old ones have been deleted. Each
release knows those that were served before it, one after the other; what was rolled back is not among them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transforms.evaluate.arrivals import arrivals_of

NUM_RELEASES = 30
"""How many releases are handed on at most."""

Row = Mapping[str, Any]


def row_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what there is to remember of a release, given its manifest."""
    arrivals = arrivals_of(manifest["stages"])
    evaluated = (manifest.get("evaluated") or {}).get("metrics", {})
    has_holdout = bool(evaluated.get("quality", {}).get("users"))
    return {
        "release": manifest["release"],
        "created_at": manifest["created_at"],
        "ratings": arrivals.ratings,
        "users": arrivals.users,
        "items": arrivals.items,
        "newest": arrivals.newest,
        "quality": dict(evaluated["quality"]["means"]) if has_holdout else {},
        "popularity": dict((evaluated.get("popularity") or {}).get("means", {})) if has_holdout else {},
    }


def past_of(manifest: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of a release and of those before it, oldest first, given its manifest."""
    before: Sequence[Row] = (manifest.get("last") or {}).get("past") or ()
    return [*before, row_of(manifest)][-NUM_RELEASES:]
