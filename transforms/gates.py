"""Decides whether a table may be published: one gate for each promise, with what was found, the rule, and the repair.

Gates judge facts that the stages have reported; nothing is read here. A gate that does not apply says why it was skipped. Each
can be overridden by its name, with a reason that stays in the release's manifest.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from schemas.errors import InputError
from transforms.judge_table import FAULTS

PASSED, FAILED, FORCED, SKIPPED = "passed", "failed", "forced", "skipped"

GATES = (
    *FAULTS,
    "recall_against_exact",
    "quality",
    "popularity",
    "coverage",
    "overlap",
    "rejected",
    "users",
    "items",
    "withdrawn",
)
"""The names of all gates, in their order."""

_ERRORS = 2.0
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
      max_shrink: how many of the users, or of the items that may be recommended, may be gone since the last release.
      max_rejected_fraction: of the rows of a source.
      forced: the reason, by the name of the gate that is overridden.
    """

    max_quality_drop: float = 0.1
    min_lift: float = 1.0
    min_coverage: float = 0.01
    min_overlap: float = 0.1
    max_shrink: float = 0.1
    max_rejected_fraction: float = 0.01
    forced: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_quality_drop", "min_coverage", "min_overlap", "max_shrink"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {getattr(self, name):g}: change --{name}")
        if not 0 <= self.min_lift < math.inf:
            raise InputError(f"min_lift must be a number of at least 0, got {self.min_lift:g}: change --min_lift")
        for name in self.forced:
            if name not in GATES:
                raise InputError(f"there is no gate {name!r} to force, there are {', '.join(GATES)}: change --force")


@dataclass(frozen=True)
class Gate:
    """The verdict of one gate.

    Attributes:
      name: one of GATES.
      status: 'passed', 'failed', 'forced' (it failed, and was overridden) or 'skipped' (it does not apply).
      value: what was found, where there is one number for it.
      limit: what it is compared with.
      reason: what was found and by which rule; where it failed, the repair; where it was skipped, why.
      forced: why it was overridden.
    """

    name: str
    status: str
    value: float | None
    limit: float | None
    reason: str
    forced: str | None = None


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


@dataclass(frozen=True)
class Facts:
    """What the stages found of a table that is to be published.

    Attributes:
      table: what `JudgeTable` reports of it.
      recall: the recall of its lists against exact search: `mean` and `standard_error`.
      target_recall: what that should be.
      evaluation: of the model that was evaluated, which may be another than the table's.
      against_popularity: what `JudgeTable` reports of the evaluated model's lists beside popularity.
      rejected: for each source, how many rows were rejected, and how many there are.
      last: the release that would be replaced.
      withdrawn: when and why this very table was rolled back, as words; None where it was not.
    """

    table: Mapping[str, Any]
    recall: Mapping[str, Any]
    target_recall: float
    evaluation: Evaluation
    against_popularity: Mapping[str, Mapping[str, Any]]
    rejected: Mapping[str, tuple[int, int]]
    last: LastRelease | None
    withdrawn: str | None = None


def judge_release(facts: Facts, settings: GateSettings) -> list[Gate]:
    """Returns the verdict of every gate, in the order of GATES."""
    gates = [*_integrity(facts), *(judge(facts, settings) for judge in _JUDGES)]
    return [
        replace(gate, status=FORCED, forced=settings.forced[gate.name])
        if gate.status == FAILED and gate.name in settings.forced
        else gate
        for gate in gates
    ]


def as_json(gates: list[Gate]) -> dict[str, dict[str, Any]]:
    """Returns gates as a manifest keeps them, by name."""
    return {gate.name: {name: value for name, value in asdict(gate).items() if name != "name"} for gate in gates}


def failures(gates: list[Gate]) -> list[str]:
    """Returns a line for each gate that failed: value, rule, repair."""
    return [
        f"gate {gate.name} failed: {gate.reason}, or override it with --force {gate.name}=REASON"
        for gate in gates
        if gate.status == FAILED
    ]


def _gate(name: str, passed: bool, value: float | None, limit: float | None, found: str, repair: str) -> Gate:
    return Gate(name, PASSED if passed else FAILED, value, limit, found if passed else f"{found}: {repair}")


def _skipped(name: str, why: str) -> Gate:
    return Gate(name, SKIPPED, None, None, why)


def _integrity(facts: Facts) -> Iterator[Gate]:
    for name, rule in FAULTS.items():
        count = facts.table["faults"][name]
        example = f", such as {facts.table['examples'][name]}" if count else ""
        found = f"{count:,} of {facts.table['users_expected']:,} users break the rule that {rule}{example}"
        repair = "the table is damaged or a defect made it; delete the folder of its recommend stage and run again"
        yield _gate(name, not count, count, 0, found, repair)


def _recall_against_exact(facts: Facts, settings: GateSettings) -> Gate:
    name, mean, error = "recall_against_exact", facts.recall["mean"], facts.recall["standard_error"]
    if error is None:
        return _skipped(name, "fewer than two lists were compared with exact search")
    passed = mean + _ERRORS * error >= facts.target_recall
    found = f"recall against exact search is {mean:.4f} ± {error:.4f}, it must reach {facts.target_recall:g}"
    repair = (
        "the index was calibrated on users unlike these; lower --target_recall, or delete the index stage to calibrate anew"
    )
    return _gate(name, passed, mean, facts.target_recall, found, repair)


def _quality(facts: Facts, settings: GateSettings) -> Gate:
    name, mine, last = "quality", facts.evaluation, facts.last
    if not mine.quality["users"]:
        return _skipped(name, "nothing is held out")
    if last is None:
        return _skipped(name, "there is no release before this one")
    theirs = last.evaluation
    if mine.split != theirs.split:
        other = [key for key in mine.split if mine.split[key] != theirs.split.get(key)]
        return _skipped(name, f"release {last.release} was evaluated with another {', '.join(other)}: not comparable")
    if min(mine.quality["users"], theirs.quality["users"]) < 2:
        return _skipped(name, "fewer than two users have held-out items")
    words, worst, passed = [], 0.0, True
    for metric in compared_metrics(mine.split["k"]):
        now, then = mine.quality["means"][metric], theirs.quality["means"][metric]
        noise = _ERRORS * math.hypot(*(each.quality["standard_errors"][metric] for each in (mine, theirs)))
        drop = (then - now) / then if then else 0.0
        worst = max(worst, drop)
        passed &= drop <= settings.max_quality_drop or then - now <= noise
        words.append(f"{metric} is {now:.4f}, in release {last.release} {then:.4f} (two standard errors: {noise:.4f})")
    found = f"{'; '.join(words)}; the drop may be {settings.max_quality_drop:g} of it"
    repair = "look for what changed in the data and in the training curves, or raise --max_quality_drop"
    return _gate(name, passed, worst, settings.max_quality_drop, found, repair)


def compared_metrics(k: int) -> tuple[str, str]:
    """Returns the held-out metrics that are compared: of the whole list, and of its first ten."""
    return f"recall@{k}", f"ndcg@{min(10, k)}"


def _popularity(facts: Facts, settings: GateSettings) -> Gate:
    name, words, lowest, passed = "popularity", [], math.inf, True
    if not facts.evaluation.quality["users"]:
        return _skipped(name, "nothing is held out")
    users = min(found["users"] for found in facts.against_popularity.values())
    if users < 2:
        return _skipped(name, "fewer than two users have a list of their own and held-out items")
    for metric, found in facts.against_popularity.items():
        mean, popular, noise = found["mean"], found["popularity"], _ERRORS * found["standard_error"]
        passed &= mean >= settings.min_lift * popular - noise
        lowest = min(lowest, mean / popular if popular else math.inf)
        words.append(f"{metric} is {mean:.4f}, by popularity {popular:.4f} (two standard errors: {noise:.4f})")
    found_all = (
        f"{'; '.join(words)}, of the {users:,} users with lists of their own; it must be {settings.min_lift:g} times that"
    )
    repair = "popularity alone is better; look at the times, --min_rating and the training curves, or lower --min_lift"
    return _gate(name, passed, lowest if math.isfinite(lowest) else None, settings.min_lift, found_all, repair)


def _coverage(facts: Facts, settings: GateSettings) -> Gate:
    listed, reachable = facts.table["items_listed"], min(facts.table["items_eligible"], facts.table["pairs"])
    if not reachable:
        return _skipped("coverage", "no list has an item")
    share = listed / reachable
    found = (
        f"{listed:,} of the {reachable:,} items that could be listed are ({share:.4f}), it must be {settings.min_coverage:g} "
        "or more"
    )
    repair = "everyone gets the same few items; look at --l2 and the training curves, or lower --min_coverage"
    return _gate("coverage", share >= settings.min_coverage, share, settings.min_coverage, found, repair)


def _overlap(facts: Facts, settings: GateSettings) -> Gate:
    overlap = facts.table["overlap"]
    if overlap is None or facts.last is None:
        return _skipped("overlap", "there is no release before this one")
    mean = overlap["mean_jaccard"]
    found = (
        f"lists of {overlap['users_in_both']:,} users share {mean:.4f} (mean Jaccard@{overlap['k']}) with those of release "
        f"{facts.last.release}, it must be {settings.min_overlap:g} or more"
    )
    repair = "the data, the ids or the model are others than last time; if that is meant, lower --min_overlap"
    return _gate("overlap", mean >= settings.min_overlap, mean, settings.min_overlap, found, repair)


def _rejected(facts: Facts, settings: GateSettings) -> Gate:
    shares = {dataset: count / rows if rows else 0.0 for dataset, (count, rows) in facts.rejected.items()}
    worst = max(shares, key=lambda dataset: shares[dataset])
    count, rows = facts.rejected[worst]
    found = (
        f"{count:,} of {rows:,} rows of the {worst} were rejected, at most {settings.max_rejected_fraction:g} of them may be"
    )
    repair = "mend the source (ingest keeps what it rejected, with reasons), or raise --max_rejected_fraction"
    return _gate(
        "rejected",
        shares[worst] <= settings.max_rejected_fraction,
        shares[worst],
        settings.max_rejected_fraction,
        found,
        repair,
    )


def _users(facts: Facts, settings: GateSettings) -> Gate:
    return _shrunk("users", "users", facts.table["users"], facts.last.users if facts.last else None, facts, settings)


def _items(facts: Facts, settings: GateSettings) -> Gate:
    eligible = facts.table["items_eligible"]
    return _shrunk("items", "items to recommend", eligible, facts.last.items if facts.last else None, facts, settings)


def _shrunk(name: str, what: str, now: int, then: int | None, facts: Facts, settings: GateSettings) -> Gate:
    if then is None or facts.last is None:
        return _skipped(name, "there is no release before this one")
    shrunk = max(0.0, 1 - now / then) if then else 0.0
    found = (
        f"there are {now:,} {what}, in release {facts.last.release} there were {then:,}; at most "
        f"{settings.max_shrink:g} of them may be gone"
    )
    repair = "check that the sources and lists are whole, or raise --max_shrink"
    return _gate(name, shrunk <= settings.max_shrink, shrunk, settings.max_shrink, found, repair)


def _withdrawn(facts: Facts, settings: GateSettings) -> Gate:
    found = facts.withdrawn or "this table was never rolled back"
    repair = "mend the data or the settings; or serve it after all, with python -m pipelines.releases rollback and its name"
    return _gate("withdrawn", facts.withdrawn is None, None, None, found, repair)


_JUDGES = (_recall_against_exact, _quality, _popularity, _coverage, _overlap, _rejected, _users, _items, _withdrawn)
