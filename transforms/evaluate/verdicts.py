"""What the gates are told, by what limits, and the verdict that each gives."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import InputError
from schemas.flags import NOT_NEGATIVE, SHARE, check_fields, flag
from schemas.release_manifest import Gate
from transforms.evaluate.arrivals import Arrivals, Share
from transforms.evaluate.findings import FAULTS

PASSED, FAILED, FORCED, SKIPPED = "passed", "failed", "forced", "skipped"

GATES = (
    *FAULTS,
    "recall_against_exact",
    "quality",
    "popularity",
    "coverage",
    "empty_lists",
    "short_lists",
    "overlap",
    "histories",
    "rejected",
    "repeated",
    "ratings",
    "newest",
    "users",
    "items",
    "withdrawn",
)
"""The names of all gates, in their order."""

ERRORS = 2.0
"""A difference counts when it is larger than so many standard errors."""


@dataclass(frozen=True)
class GateSettings:
    """The limits, and which gates are overridden.

    Attributes:
      max_quality_drop: how much lower a held-out metric may be than the last release's, as a share of that; a drop within two
        standard errors tells nothing. On MovieLens-100K another seed and split moved Recall@100 from .726 to .717.
      min_lift: how many times as good as popularity the lists must be on the held-out items, up to two standard errors.
      min_coverage: the share of the items that could be listed that is in a list.
      min_overlap: the mean Jaccard index, over users, of a list and the last release's. On MovieLens-100K another seed and
        split left .59 at k = 100 and .31 at k = 10; lists of 100 drawn by chance share .03.
      max_empty_lists: the share of the users whose list may be empty.
      max_short_lists: the share of the users whose list may be shorter than half of k, or of the catalogue where that is
        smaller. Those who have rated most of what there is have one; where more have, too few items may be recommended.
      min_history_kept: of what a user had rated in the last release, how much must still be the user's, as a mean over the
        users of that release; one who is not there any more has kept nothing. A night adds ratings and takes none away; a
        window of a week that moves by a day keeps 6/7 = .86. Where the users of MovieTweetings-100K are permuted, .02 is left.
      max_days_older: how many days the newest rating may be older than the last release's.
      max_growth: how much more ratings there may be than in the last release, as a share of those: a loader that ran twice
        doubles them.
      max_repeated_rise: how much the share of repeated ratings may rise since the last release.
      max_shrink: how many of the ratings, of the users, or of the items that may be recommended, may be gone since the last
        release.
      max_rejected_fraction: of the rows of a source.
      forced: the reason, by the name of the gate that is overridden.
    """

    max_quality_drop: float = flag(
        0.1, rule=SHARE, help="how much held-out metrics may drop since the last release, as a share"
    )
    min_lift: float = flag(
        1.0, rule=NOT_NEGATIVE, help="how many times as good as popularity the lists must be on held-out items"
    )
    min_coverage: float = flag(0.01, rule=SHARE, help="the share of the items that could be listed that must be in a list")
    min_overlap: float = flag(0.1, rule=SHARE, help="the least mean Jaccard index with the last release's lists")
    max_empty_lists: float = flag(0.01, rule=SHARE, help="the share of users that may have an empty list")
    max_short_lists: float = flag(0.1, rule=SHARE, help="the share of users that may have a list shorter than half of k")
    min_history_kept: float = flag(
        0.8, rule=SHARE, help="the mean share of what users had rated in the last release that must still be theirs"
    )
    max_days_older: float = flag(
        0.0, rule=NOT_NEGATIVE, help="days by which the newest rating may be older than the last release's (default 0)"
    )
    max_growth: float = flag(0.5, rule=NOT_NEGATIVE, help="how much the ratings may grow since the last release, as a share")
    max_repeated_rise: float = flag(
        0.1, rule=SHARE, help="how much the share of repeated ratings may rise since the last release"
    )
    max_shrink: float = flag(
        0.1, rule=SHARE, help="how much ratings, users or items may shrink since the last release, as a share"
    )
    max_rejected_fraction: float = 0.01
    forced: Mapping[str, str] = flag(
        {}, name="force", metavar="NAME=REASON", several=True, help="publish although this gate fails; may be repeated"
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.forced:
            if name not in GATES:
                raise InputError(f"there is no gate {name!r} to force, there are {', '.join(GATES)}: change --force")


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on held-out items.

    Attributes:
      split: how they were held out, k, and whatever else must be the same for two evaluations to be comparable.
      quality: `users`, `means` and `standard_errors` of ranking metrics over all users with held-out items.
    """

    split: Mapping[str, Any]
    quality: Mapping[str, Any]


@dataclass(frozen=True)
class LastRelease:
    """What is known of the release that would be replaced."""

    release: str
    users: int
    items: int
    """Those that might be recommended."""
    evaluation: Evaluation
    arrivals: Arrivals = field(default_factory=Arrivals)
    k: int | None = None
    users_gone: str | None = None
    """Why it cannot be read what its users had rated."""
    past: Sequence[Mapping[str, Any]] = ()
    """Rows of `transforms.report.past`: its own and those of releases before it, oldest first."""


@dataclass(frozen=True)
class GateInputs:
    """What the stages found of a table that is to be published.

    Attributes:
      table: what `JudgeTable` reports of it.
      recall: the recall of its lists against exact search: `mean` and `standard_error`.
      target_recall: what that should be.
      evaluation: of the model that was evaluated, which may be another than the table's.
      against_popularity: what `JudgeTable` reports of the evaluated model's lists beside popularity.
      rejected: for each source, how many rows were rejected, and how many there are.
      arrivals: what came in.
      k: items a user.
      last: the release that would be replaced.
      withdrawn: when and why this very table was rolled back, as words; None where it was not.
    """

    table: Mapping[str, Any]
    recall: Mapping[str, Any]
    target_recall: float
    evaluation: Evaluation
    against_popularity: Mapping[str, Mapping[str, Any]]
    rejected: Mapping[str, Share]
    last: LastRelease | None
    arrivals: Arrivals = field(default_factory=Arrivals)
    k: int | None = None
    withdrawn: str | None = None


def make_gate(
    name: str, passed: bool, value: float | None, limit: float | None, found: str, repair: str, allow: str | None = None
) -> Gate:
    if passed:
        return Gate(name, PASSED, value, limit, found)
    return Gate(name, FAILED, value, limit, f"{found}: {repair}", allow=allow)


def at_least(name: str, flag: str, value: float, limit: float, found: str, repair: str) -> Gate:
    """Returns the verdict of a gate whose value must reach the limit that a flag sets."""
    return make_gate(name, value >= limit, value, limit, found, repair, f"--{flag} {down(value)}")


def at_most(name: str, flag: str, value: float, limit: float, found: str, repair: str) -> Gate:
    """Returns the verdict of a gate whose value must not pass the limit that a flag sets."""
    return make_gate(name, value <= limit, value, limit, found, repair, f"--{flag} {up(value)}")


def down(value: float) -> str:
    """Returns the largest number of two digits that is not above `value`, which is at least 0."""
    return _two_digits(value, math.floor, -1)


def up(value: float) -> str:
    """Returns the smallest number of two digits that is not below `value`, which is at least 0."""
    return _two_digits(value, math.ceil, 1)


def _two_digits(value: float, rounded: Callable[[float], int], away: int) -> str:
    step = 10.0 ** (math.floor(math.log10(max(value, 1e-9))) - 1)
    number = rounded(value / step)
    while away * (float(f"{number * step:.12g}") - value) < 0:  # A division can round to the wrong side.
        number += away
    return f"{number * step:.12g}"


def skipped_gate(name: str, why: str) -> Gate:
    return Gate(name, SKIPPED, None, None, why)
