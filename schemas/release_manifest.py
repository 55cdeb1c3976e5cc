"""What the manifest of a release says, as values: read and checked once, by whoever opens the release."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from schemas.manifest import MADE_FILE, StageManifest
from schemas.names import ATTEMPT, FILE_OF_ATTEMPT, NAME, TIME, TOPK
from schemas.shape import AtLeast, Each, Maybe, check_shape
from schemas.storage import WrittenFile

PASSED, FAILED = "passed", "failed"
"""The status of a release: whether it may be served. A failed one is kept to be looked at; `LATEST` never names one."""

_STAGES = Each(
    {
        "fingerprint": NAME,
        "digest": NAME,
        "folder": ATTEMPT,
        "manifest": str,
        "settings": dict,
        "metrics": dict,
        "outputs": Maybe(dict),
        "inputs": Maybe(dict),
        "sources": Maybe([dict]),
        "files": Maybe([MADE_FILE | {"path": FILE_OF_ATTEMPT}]),
        "versions": Maybe(Each(str)),
        "started_at": TIME,
        "finished_at": TIME,
    },
    NAME,
)
"""Of the stages that a release names; version 1 left their files, inputs and sources to their own manifests."""

_COUNT = AtLeast(0)

_NEWEST = AtLeast(-62_135_596_800, 253_402_300_799)
"""Unix seconds, of the years 1 to 9999."""

_ROWS = {"ratings": Maybe(_COUNT), "users": Maybe(_COUNT), "items": Maybe(_COUNT), "newest": Maybe(_NEWEST)}

_SHARES = Maybe(Each([_COUNT, _COUNT]))

_LAST = {
    "release": NAME,
    "evaluation": {"split": dict, "quality": {"users": _COUNT}},
    "arrivals": Maybe(
        {
            **_ROWS,
            "rejected": _SHARES,
            "joined": _SHARES,
            "reasons": Maybe(Each(str)),
            "repeated": Maybe([_COUNT, _COUNT]),
            "forgotten": Maybe(str),
        }
    ),
    "past": Maybe(
        [
            {
                "release": NAME,
                "created_at": TIME,
                **_ROWS,
                "quality": Each(Maybe(float)),
                "popularity": Each(Maybe(float)),
            }
        ]
    ),
}
"""What a release keeps of the one that it was compared with, and of those before."""

_CAME_IN = {
    "newest_timestamp": Maybe(_NEWEST),
    "rows_repeated": Maybe(_COUNT),
    "ratings_forgotten": Maybe(_COUNT),
    "ids_joined": Maybe(Each({"known": _COUNT, "ids": _COUNT})),
}
"""What a stage found in what it read from outside."""

_READ = {"rows": _COUNT, "reasons": Each({"count": _COUNT})}
"""The metric of such a stage on one file: its name ends in `_read`."""

_QUALITY = {"users": AtLeast(0), "means": Each(Maybe(float))}

_EVALUATION = {"quality": _QUALITY, "popularity": Maybe({"means": Each(Maybe(float))})}

_MANIFEST = {
    "release": NAME,
    "status": str,
    "created_at": TIME,
    "rows": AtLeast(0),
    "topk": [MADE_FILE | {"path": TOPK}],
    "metrics": {"users": AtLeast(0), "items_allowed": AtLeast(0), "recall_against_exact": {"mean": Maybe(float)}},
    "stages": _STAGES,
    "evaluated": Maybe(
        {
            "model": str,
            "refitted": Maybe(bool),
            "split": dict,
            "metrics": _EVALUATION,
            "stages": _STAGES,
        }
    ),
    "gates": Each(
        {
            "status": str,
            "reason": str,
            "value": Maybe(float),
            "limit": Maybe(float),
            "forced": Maybe(str),
            "allow": Maybe(str),
        }
    ),
    "compared_with": Maybe(
        {"release": NAME, "digest": NAME, "k": AtLeast(1), "num_buckets": AtLeast(1), "topk": [TOPK]}
        | {"users": Maybe([FILE_OF_ATTEMPT]), "users_digest": Maybe(str), "users_gone": Maybe(str)},
    ),
    "base": Maybe(
        {
            "release": NAME,
            "users": AtLeast(0),
            "carried": AtLeast(0),
            "share_carried": float,
            "compared": AtLeast(0),
            "new_lists": Each(AtLeast(0)),
            "why_nobody": str,
        }
    ),
    "last": Maybe(_LAST),
    "job": Maybe(dict),
    "judged_at": Maybe(TIME),
    "report": Maybe(MADE_FILE | {"path": str}),
}

_TABLE = {
    "ingest": {"metrics": {"num_buckets": AtLeast(1)}},
    "recommend": {"settings": {"k": AtLeast(1)}},
}
"""Of the stages that every release has: what readers of its table go by."""


@dataclass(frozen=True)
class Gate:
    """The verdict of one gate.

    Attributes:
      name: the gate's.
      status: 'passed', 'failed', 'forced' (it failed, and was overridden) or 'skipped' (it does not apply).
      value: what was found, where there is one number for it.
      limit: what it is compared with.
      reason: what was found and by which rule; where it failed, the repair; where it was skipped, why.
      forced: why it was overridden.
      allow: where it failed, the flag and the value with which it would have passed, if there is one.
    """

    name: str
    status: str
    value: float | None
    limit: float | None
    reason: str
    forced: str | None = None
    allow: str | None = None


@dataclass(frozen=True)
class LastTable:
    """The table that a new one would replace.

    Attributes:
      release: its name.
      digest: of its files' contents.
      k: items a user.
      num_buckets: of its users.
      topk: its files, relative to the output root.
      users: likewise, those of the users that it was made for; none where they cannot be read any more.
      users_digest: of their contents; None where they cannot be read.
      users_gone: why they cannot be read.
    """

    release: str
    digest: str
    k: int
    num_buckets: int
    topk: tuple[str, ...]
    users: tuple[str, ...] = ()
    users_digest: str | None = None
    users_gone: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What of it decides the verdict."""
        return {"digest": self.digest, "k": self.k, "users": self.users_digest}


@dataclass(frozen=True)
class Evaluated:
    """How good the model of a release is on held-out items.

    Attributes:
      model: which one it is, in words.
      refitted: whether it is another than the table's; None where an earlier program did not say.
      split: how items were held out.
      metrics: those of the model and of popularity, by what is judged.
      stages: those that made the model, where it is another than the table's.
    """

    model: str
    refitted: bool | None
    split: Mapping[str, Any]
    metrics: Mapping[str, Any]
    stages: Mapping[str, StageManifest]

    @property
    def quality(self) -> Mapping[str, Any]:
        """`users`, and `means` and `standard_errors` of ranking metrics over them."""
        return self.metrics["quality"]


@dataclass(frozen=True)
class CarriedLists:
    """What was copied from the release whose model was kept.

    Attributes:
      release: its name.
      users: how many lists there are.
      carried: how many of them were copied.
      share_carried: the same as a share.
      compared: how many of these were compared with exact search.
      new_lists: how many were made anew, by why.
      why_nobody: why no list could be copied; empty where some could.
    """

    release: str
    users: int
    carried: int
    share_carried: float
    compared: int
    new_lists: Mapping[str, int]
    why_nobody: str


@dataclass(frozen=True)
class Before:
    """What a release keeps of the one that it was compared with.

    Attributes:
      release: its name.
      arrivals: what had come in for it.
      past: a row each of it and of those before it, oldest first.
      evaluation: its `split` and `quality`.
    """

    release: str
    arrivals: Mapping[str, Any]
    past: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any]


@dataclass(frozen=True)
class Release:
    """What the manifest of a release says.

    Attributes:
      name: the release's.
      status: PASSED or FAILED.
      created_at: when its table was finished.
      judged_at: when its gates were asked; None where they never were.
      rows: users of its table.
      topk: the table's files, relative to the output root.
      metrics: of the table.
      stages: those that made it, by name.
      evaluated: how good its model is; None in version 1.
      gates: the verdicts, by the names of the gates.
      compared_with: the table that it was compared with.
      before: what is known of the release of that table.
      base: what was copied from the release whose model was kept, where one was.
      job: the flags that asked for it, where they are known.
      report: the page that shows it, where it has one.
      written: the manifest itself.
    """

    name: str
    status: str
    created_at: str
    judged_at: str | None
    rows: int
    topk: tuple[WrittenFile, ...]
    metrics: Mapping[str, Any]
    stages: Mapping[str, StageManifest]
    evaluated: Evaluated | None
    gates: Mapping[str, Gate]
    compared_with: LastTable | None
    before: Before | None
    base: CarriedLists | None
    job: Mapping[str, Any] | None
    report: WrittenFile | None
    written: Mapping[str, Any] = field(repr=False)

    @property
    def refitted(self) -> bool:
        """Whether the model that was evaluated is another than the table's."""
        return bool(self.evaluated and self.evaluated.refitted)

    @property
    def can_be_kept(self) -> bool:
        """Whether it passed its gates, and tells all that a release which builds on it needs."""
        return self.status == PASSED and self.evaluated is not None and self.evaluated.refitted is not None

    @property
    def all_stages(self) -> list[tuple[str, StageManifest]]:
        """The stages that made it, with their names: those of the table, then those of a model evaluated before."""
        return [*self.stages.items(), *(self.evaluated.stages if self.evaluated else {}).items()]


def release_in(manifest: Mapping[str, Any]) -> Release:
    """Reads the manifest of a release, as this version writes it.

    Raises:
      ValueError: naming the first thing that is not as it must be.
    """
    check_shape(manifest, _MANIFEST)
    check_shape(manifest["stages"], _TABLE, "stages")
    if manifest["evaluated"] is None:
        check_shape(manifest["metrics"], {"quality": _QUALITY}, "metrics")
    known, table, last, base = (manifest.get(name) for name in ("evaluated", "compared_with", "last", "base"))
    return Release(
        name=manifest["release"],
        status=manifest["status"],
        created_at=manifest["created_at"],
        judged_at=manifest.get("judged_at"),
        rows=manifest["rows"],
        topk=tuple(WrittenFile(**file) for file in manifest["topk"]),
        metrics=manifest["metrics"],
        stages=_stages_in(manifest["stages"]),
        evaluated=known and _evaluated_in(known),
        gates={name: _gate_in(name, gate) for name, gate in manifest["gates"].items()},
        compared_with=table and _table_in(table),
        before=last and _before_in(last),
        base=base and CarriedLists(**{each.name: base[each.name] for each in fields(CarriedLists)}),
        job=manifest.get("job"),
        report=WrittenFile(**manifest["report"]) if manifest.get("report") else None,
        written=manifest,
    )


def _gate_in(name: str, gate: Mapping[str, Any]) -> Gate:
    known = {each: gate.get(each) for each in ("value", "limit", "forced", "allow")}
    return Gate(name=name, status=gate["status"], reason=gate["reason"], **known)


def _evaluated_in(known: Mapping[str, Any]) -> Evaluated:
    stages = _stages_in(known["stages"])
    return Evaluated(known["model"], known.get("refitted"), known["split"], known["metrics"], stages)


def _table_in(table: Mapping[str, Any]) -> LastTable:
    known = {name: table[name] for name in ("release", "digest", "k", "num_buckets")}
    told: dict[str, Any] = {name: table.get(name) for name in ("users_digest", "users_gone")}
    return LastTable(**known, **told, topk=tuple(table["topk"]), users=tuple(table.get("users") or ()))


def _before_in(last: Mapping[str, Any]) -> Before:
    return Before(last["release"], last.get("arrivals") or {}, last.get("past") or (), last["evaluation"])


def _stages_in(stages: Mapping[str, Any]) -> dict[str, StageManifest]:
    return {name: stage_of(name, stage) for name, stage in stages.items()}


def check_came_in(metrics: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless what a stage found in what it read from outside is as it must be."""
    check_shape(metrics, _CAME_IN, where)
    for metric, found in metrics.items():
        if metric.endswith("_read"):
            check_shape(found, _READ, f"{where}.{metric}")


def stage_of(name: str, stage: Mapping[str, Any]) -> StageManifest:
    """Returns the manifest of a stage as the manifest of a release tells it; what version 1 does not tell is empty."""
    known = {
        each: stage[each] for each in ("fingerprint", "digest", "folder", "settings", "metrics", "started_at", "finished_at")
    }
    others: dict[str, Any] = {each: stage.get(each) or {} for each in ("inputs", "versions", "outputs")}
    return StageManifest(stage=name, files=files_of(stage), sources=stage.get("sources") or [], **known, **others)


def files_of(stage: Mapping[str, Any]) -> list[WrittenFile]:
    """Returns the files of a stage as the manifest of a release tells them, with their paths relative to the stage's folder."""
    start = f"{stage['folder']}/"
    return [WrittenFile(**file | {"path": file["path"].removeprefix(start)}) for file in stage.get("files") or []]
