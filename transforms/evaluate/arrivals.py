"""What came in for a release: how many ratings, users and items, how new they are, and what of them could not be used.

Plain numbers that `ingest` has found, read from the manifests of the stages. They are shown on the
terminal and first in the report, each beside the last release's, and the gates judge some of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from schemas.manifest import StageManifest

Share = tuple[int, int]
"""How many of how many."""

NOTHING = "-"
"""What stands where nothing is known."""

_READERS = ("ingest", "lists")
"""The stages that read what came from outside."""

_JOINED = "ids_joined"
"""The metric of theirs that says, by file of ids, how many different `ids` there are and how many of them are `known`."""


@dataclass(frozen=True)
class Arrivals:
    """What came in; None where an earlier version of the program did not say.

    Attributes:
      ratings: rows of the ratings, with those that were rejected, repeated or left out.
      users: those who are served.
      items: of the catalogue.
      newest: the time of the newest rating, in Unix seconds; None where no rating has a time.
      rejected: by source: how many of its rows could not be used, of how many.
      reasons: by source: the commonest reason, in words.
      repeated: ratings of a user and an item that another row has too, of those that could be used.
      joined: by file of ids: how many of its different ids are known, of how many.
      forgotten: stands for those who were left out; None where nobody was.
    """

    ratings: int | None = None
    users: int | None = None
    items: int | None = None
    newest: int | None = None
    rejected: Mapping[str, Share] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    repeated: Share | None = None
    joined: Mapping[str, Share] = field(default_factory=dict)
    forgotten: str | None = None

    @property
    def share_repeated(self) -> float | None:
        """Repeated ratings, as a share of those that could be used."""
        return None if self.repeated is None else share_of(self.repeated)


def share_of(share: Share) -> float:
    """Returns how many of how many as a number from 0 to 1; 0 of 0 is 0."""
    return share[0] / share[1] if share[1] else 0.0


def arrivals_of(stages: Mapping[str, StageManifest]) -> Arrivals:
    """Returns what came in, given the stages that made a table."""
    ingested = stages["ingest"]
    metrics = ingested.metrics
    found_by = [stages[name].metrics for name in _READERS if name in stages]
    read = {name.removesuffix("_read"): value for found in found_by for name, value in found.items() if name.endswith("_read")}
    rejected = {name.replace("_", " "): rejected_of(found) for name, found in read.items()}
    reasons = {
        name.replace("_", " "): max(found["reasons"].items(), key=lambda each: (each[1]["count"], each[0]))[0]
        for name, found in read.items()
        if found["reasons"]
    }
    ratings = rejected.get("ratings")
    usable = ratings[1] - ratings[0] if ratings else 0
    joined = [each for found in found_by for each in (found.get(_JOINED) or {}).items()]
    repeated = metrics.get("rows_repeated")
    return Arrivals(
        ratings=ratings[1] + (metrics.get("ratings_forgotten") or 0) if ratings else None,
        users=("lists" in stages and _rows(stages["lists"], "users")) or _rows(ingested, "users"),
        items=_rows(ingested, "items"),
        newest=metrics.get("newest_timestamp"),
        rejected=rejected,
        reasons=reasons,
        repeated=(repeated, usable) if ratings and repeated is not None else None,
        joined={name: (known["known"], known["ids"]) for name, known in joined},
        forgotten=ingested.settings.get("forgotten"),
    )


def arrivals_from(known: Mapping[str, Any]) -> Arrivals:
    """Returns what came in, as the manifest of a release keeps it of the one before."""
    shares = {
        name: {each: (int(found[0]), int(found[1])) for each, found in (known.get(name) or {}).items()}
        for name in ("rejected", "joined")
    }
    repeated = known.get("repeated")
    return Arrivals(
        ratings=known.get("ratings"),
        users=known.get("users"),
        items=known.get("items"),
        newest=known.get("newest"),
        forgotten=known.get("forgotten"),
        rejected=shares["rejected"],
        joined=shares["joined"],
        reasons=known.get("reasons") or {},
        repeated=(int(repeated[0]), int(repeated[1])) if repeated else None,
    )


def rejected_of(summary: Mapping[str, Any]) -> Share:
    """Returns how many rows of a source were rejected, and how many there are."""
    return sum(reason["count"] for reason in summary["reasons"].values()), summary["rows"]


def _rows(stage: StageManifest, dataset: str) -> int | None:
    """Returns how many rows a dataset of a stage has, or None where it has no such files."""
    return stage.rows(dataset) if stage.dataset(dataset) else None


class Line(NamedTuple):
    """One thing that came in, in words: now, in the last release, and what that makes."""

    name: str
    now: str
    then: str
    change: str


def lines_of(now: Arrivals, then: Arrivals | None) -> Iterator[Line]:
    """Yields what came in, line by line, beside what came in for the last release; None where there is none."""
    last = then or Arrivals()
    for name in ("ratings", "users", "items"):
        counts = getattr(now, name), getattr(last, name)
        yield Line(name, _count(counts[0]), _count(counts[1]), _change(*counts))
    yield Line("newest rating", moment(now.newest), moment(last.newest), _later(now.newest, last.newest))
    for source in dict.fromkeys([*now.rejected, *last.rejected]):
        mine, its = now.rejected.get(source), last.rejected.get(source)
        if (mine and mine[0]) or (its and its[0]) or source == "ratings":
            why = f"most often: {now.reasons[source]}" if now.reasons.get(source) else ""
            yield Line(f"rejected {source}", _share(mine), _share(its), why)
    yield Line("repeated ratings", _share(now.repeated), _share(last.repeated), "")
    for name in dict.fromkeys([*now.joined, *last.joined]):
        yield Line(f"known: {name.replace('_', ' ')}", _of(now.joined.get(name)), _of(last.joined.get(name)), "")


def moment(seconds: int | None) -> str:
    """Returns a time in words, UTC."""
    return NOTHING if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _share(share: Share | None) -> str:
    if share is None:
        return NOTHING
    return f"{share[0]:,} ({share_of(share):.2%})" if share[0] else "0"


def _of(share: Share | None) -> str:
    return NOTHING if share is None else f"{share[0]:,} of {share[1]:,}"


def _change(now: int | None, then: int | None) -> str:
    if now is None or not then:
        return ""
    return f"{(now - then) / then:+.1%}" if now != then else "the same"


def _later(now: int | None, then: int | None) -> str:
    if now is None or then is None:
        return ""
    days = (now - then) / 86_400
    return "the same" if now == then else f"{abs(days):,.1f} days {'later' if days > 0 else 'earlier'}"
