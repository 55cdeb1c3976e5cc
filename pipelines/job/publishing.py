"""Publishes a finished table as a release, if it passes its gates: `python -m pipelines.publish --output DIR`.

A release is one manifest that names everything the table came from; its files stay where the stages wrote them. `LATEST` is
replaced last, atomically: a run that dies before changes nothing that readers see. A table that fails a gate becomes a release
too, marked as failed, so that it can be inspected; `LATEST` stays. A table that passed once and is judged again, beside another
or by other limits, becomes another release: what was said of the first stays as it was.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

from pipelines.cli.logs import LOGGER
from pipelines.engine.fingerprint import versions
from pipelines.engine.lease import LeaseHolder, as_time, time_in
from pipelines.engine.stage import ManifestsByName, now
from pipelines.job.report import curves_of, report_of
from pipelines.stages.ingest import FORGOTTEN, check_forgotten, rows_read
from pipelines.stages.judge import FOUND, last_table
from pipelines.stages.outputs import IngestOutputs
from schemas.errors import InputError
from schemas.manifest import StageManifest, as_json, check_complete, fingerprint_of
from schemas.release import (
    SCHEMA_VERSION,
    Latest,
    NewerError,
    Withdrawal,
    read_latest,
    read_named,
    read_release,
    withdrawals_of,
    write_latest,
)
from schemas.release_manifest import FAILED, PASSED, Evaluated, LastTable, Release, release_in
from schemas.storage import delete, exists, join, write_file, write_json
from schemas.topk import VERSION
from schemas.words import counted
from schemas.workspace import Workspace
from transforms.evaluate.arrivals import arrivals_of, rejected_of
from transforms.evaluate.gates import failures, gates_as_json, judge_release
from transforms.evaluate.verdicts import Evaluation, Gate, GateInputs, GateSettings, LastRelease
from transforms.report.past import past_of

READERS = ("ingest", "lists")
"""The stages that read what comes from outside."""


class AnotherPublished(InputError):
    """A table that was compared with the one served then; another is served now."""


class JobStages(NamedTuple):
    """The finished stages of a job, by name.

    Attributes:
      evaluated: those of the model that was evaluated on the holdout.
        No stages where a model is kept that was evaluated before it was refitted.
      published: those of the table to be published; the very same unless the job refits.
      base: the release whose model is kept, if one is.
    """

    evaluated: ManifestsByName
    published: ManifestsByName
    base: Release | None = None

    @property
    def refitted(self) -> bool:
        """Whether the table's model is another than the one that was evaluated."""
        return self.evaluated is not self.published


@dataclass(frozen=True)
class Outcome:
    """What became of a table.

    Attributes:
      latest: what points to it, if it is served.
      release: the one that holds it.
      is_new: whether this call published it.
      failed: a line for each gate that kept it from being published.
    """

    latest: Latest
    release: Release
    is_new: bool
    failed: list[str]

    @property
    def evaluated(self) -> Evaluated:
        """How good the model is: every release that this program makes says so."""
        assert self.release.evaluated
        return self.release.evaluated


def release_of(recommended: StageManifest) -> str:
    """Returns a release's name: the time its table was finished, and the start of the table's digest."""
    return name_at(recommended.finished_at, recommended.digest)


def name_at(time: str, digest: str) -> str:
    """Returns the name of a release, given a time, ISO 8601, and the digest of its table."""
    digits = "".join(each for each in time.split(".")[0] if each not in "-:")
    return f"{digits}Z-{digest[:8]}"


def evaluation_of(made: JobStages) -> dict[str, Any]:
    """Returns what the manifest of a release says of how good its model is on held-out items, or the model before the refit.

    A model that is kept and has learned from everything was evaluated for the release that it comes from.
    """
    if made.base and made.refitted:
        return {**made.base.written["evaluated"], "model": f"that of release {made.base.name}", "stages": {}}
    split = made.evaluated["ingest"].settings["split"]
    if split["split"] != "random":
        split = {name: value for name, value in split.items() if name != "seed"}
    recommended = made.evaluated["recommend"]
    settings, metrics = recommended.settings, recommended.metrics
    return {
        "model": "another, without the holdout" if made.refitted else "the published one",
        "refitted": made.refitted,
        "split": {**split, "k": settings["k"], "recommend_seen": settings["recommend_seen"]},
        "metrics": {name: metrics[name] for name in ("quality", "popularity", "recent_popularity")}
        | {"against_popularity": made.evaluated["judge"].metrics[FOUND]["against_popularity"]},
        "stages": {name: describe_stage(manifest) for name, manifest in made.evaluated.items()} if made.refitted else {},
    }


def gate_inputs_of(made: JobStages, last: LastRelease | None, withdrawals: Sequence[Withdrawal] = ()) -> GateInputs:
    """Returns what the stages found, as the gates need it."""
    readers = [made.published[name] for name in READERS]
    evaluated = evaluation_of(made)
    return GateInputs(
        table=made.published["judge"].metrics[FOUND],
        recall=made.published["recommend"].metrics["recall_against_exact"],
        target_recall=made.published["calibrate"].settings["asked"]["calibration"]["target_recall"],
        evaluation=Evaluation(evaluated["split"], evaluated["metrics"]["quality"]),
        against_popularity=evaluated["metrics"]["against_popularity"],
        rejected={
            source["dataset"]: rejected_of(reader.metrics[rows_read(source["dataset"])])
            for reader in readers
            for source in reader.sources
        },
        arrivals=arrivals_of(made.published),
        k=made.published["recommend"].settings["k"],
        last=last,
        withdrawn="; ".join(map(words_on, withdrawals)) or None,
    )


def words_on(withdrawal: Withdrawal) -> str:
    """Returns what there is to say of a table that was rolled back."""
    why = f" ({withdrawal.reason})" if withdrawal.reason else ""
    return (
        f"this very table was served as release {withdrawal.release} and rolled back to {withdrawal.replaced_by} at "
        f"{withdrawal.at}{why}"
    )


def last_release(workspace: Workspace, last: LastTable | None) -> LastRelease | None:
    """Returns what is known of the release whose table a new one is compared with; None where it is gone."""
    path = workspace.release_manifest(last.release) if last else ""
    if last is None or not exists(join(workspace.root, path)):
        return None
    release = read_release(workspace, Latest(last.release, path, last.topk))
    known = release.evaluated
    return LastRelease(
        release=last.release,
        users=release.metrics["users"],
        items=release.metrics["items_allowed"],
        evaluation=Evaluation(known.split, known.quality) if known else Evaluation({}, {"users": 0}),
        arrivals=arrivals_of(release.stages),
        k=last.k,
        users_gone=last.users_gone,
        past=past_of(release),
    )


def describe_stage(manifest: StageManifest) -> dict[str, Any]:
    """Returns what the manifest of a release says of a stage; paths are relative to the output root."""
    return {
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "manifest": f"{Workspace.stage_of(manifest.folder)}/manifest.json",
        "folder": manifest.folder,
        "settings": manifest.settings,
        "inputs": manifest.inputs,
        "sources": list(manifest.sources),
        "files": [asdict(file) | {"path": f"{manifest.folder}/{file.path}"} for file in manifest.files],
        "metrics": manifest.metrics,
        "outputs": manifest.outputs,
        "versions": manifest.versions,
        "started_at": manifest.started_at,
        "finished_at": manifest.finished_at,
    }


def release_manifest(
    release: str,
    made: JobStages,
    gates: list[Gate],
    settings: GateSettings,
    last: LastTable | None,
    before: LastRelease | None,
    job: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns what the manifest of a release says.

    Args:
      release: its name.
      made: the finished stages.
      gates: the verdicts.
      settings: their limits.
      last: the table that it was compared with.
      before: what is known of the release of that table.
      job: the flags that asked for it, where they are known.
    """
    table = made.published["recommend"]
    evaluated = evaluation_of(made)
    stages = {name: describe_stage(manifest) for name, manifest in made.published.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "release": release,
        "status": FAILED if failures(gates) else PASSED,
        "fingerprint": fingerprint_of(
            [[each["fingerprint"] for each in chain.values()] for chain in (stages, evaluated["stages"])]
        ),
        "created_at": table.finished_at,
        "judged_at": now(),
        "versions": versions(),
        "job": job,
        "table": {
            "schema_version": VERSION,
            "layout": table.settings["layout"],
            "k": table.settings["k"],
            "num_buckets": IngestOutputs.of(made.published["ingest"]).num_buckets,
            "scored_at": table.settings["scored_at"],
        },
        "rows": table.rows("topk"),
        "topk": [asdict(file) | {"path": f"{table.folder}/{file.path}"} for file in table.dataset("topk")],
        "metrics": table.metrics,
        "evaluated": evaluated,
        "base": {"release": made.base.name, **table.metrics["carried_over"]} if made.base else None,
        "gates": gates_as_json(gates),
        "gate_settings": asdict(settings),
        "compared_with": asdict(last) if last else None,
        "last": asdict(before) if before else None,
        "sources": [source for name in READERS for source in made.published[name].sources],
        "stages": stages,
    }


def publish(
    workspace: Workspace,
    made: JobStages,
    settings: GateSettings,
    job: Mapping[str, Any] | None = None,
    lease: LeaseHolder | None = None,
) -> Outcome:
    """Makes the release of a finished table, and points `LATEST` to it if all its gates pass or are overridden.

    What `LATEST` already names is left alone, and so is what passed once: another verdict on the same table is another release.

    Args:
      workspace: the output.
      made: the finished stages, `judge` among them.
      settings: the gates' limits.
      job: the flags that asked for the table, which its release keeps.
      lease: keeps the release from being deleted before `LATEST` names it.

    Raises:
      AnotherPublished: if the table was compared with another than `LATEST` names now, or something was rolled back meanwhile.
      InputError: if a file is missing, or others are to be forgotten now than when the sources were read.
    """
    table = made.published["recommend"]
    served = read_latest(workspace)
    known = read_release(workspace, served) if served else None
    is_served = served is not None and served.topk == topk_of(table)
    if served and known and is_served and is_without_the_same(known, made):
        say_of_other_ratings(known, made)
        return Outcome(served, known, False, [])
    same = served_already(workspace, made)
    if same:
        return Outcome(same, read_release(workspace, same), False, [])
    last = last_table(workspace, table)
    if not is_compared_with(made.published["judge"], last):
        raise AnotherPublished(
            "another release has been published since the table was judged: run python -m pipelines.judge again"
        )
    for stage in made.published.values():
        check_complete(workspace.root, stage, ["topk"] if stage.stage == "recommend" else [])
    seen = Seen(served, withdrawals_of(workspace, release_of(table), table.digest))
    before = last_release(workspace, last)
    gates = judge_release(gate_inputs_of(made, before, seen.withdrawals), settings)
    failed = failures(gates)
    manifest = release_manifest(release_of(table), made, gates, settings, last, before, job)
    # The same table, made without others, takes the place of what is served, which must not name what was read of them.
    replaced = served.release if served and is_served and not failed else None
    release, kept = record_for(workspace, manifest, names_of(made, known), replaced)
    manifest["release"] = release
    if lease:
        lease.use([workspace.release(release)])
    path = join(workspace.root, workspace.release_manifest(release))
    if kept is None or not exists(path):  # It might have been deleted until then.
        described = release_in(as_json(manifest))
        page, curves = report_of(workspace, described).encode(), curves_of(workspace, described).encode()
        check_nothing_happened(workspace, made, seen)
        manifest |= {"report": asdict(write_file(workspace.root, workspace.release_report(release), page))}
        write_file(workspace.root, workspace.release_curves(release), curves)
        manifest |= {"checksum": fingerprint_of(manifest)}
        write_json(path, manifest)
    latest = Latest(release, workspace.release_manifest(release), topk_of(table))
    if not failed:
        check_nothing_happened(workspace, made, seen)
        write_latest(workspace, latest)
        for each in seen.withdrawals:
            delete(join(workspace.root, workspace.withdrawal(each.release)))
    return Outcome(latest, kept or release_in(as_json(manifest)), not failed, failed)


def say_of_other_ratings(release: Release, made: JobStages) -> None:
    """Warns where other ratings than a release was made of came to its very table, so that no gate is asked about them."""
    then, now_read = release.stages["ingest"].metrics, made.published["ingest"].metrics
    before, now_rows = (metrics["ratings_read"]["rows"] for metrics in (then, now_read))
    if before != now_rows:
        LOGGER.warning(
            "%s came in, and %s when release %s was made, whose table is the same: it stays as it is, and no gate is asked",
            counted(now_rows, "rating"),
            f"{before:,}",
            release.name,
        )


def topk_of(table: StageManifest) -> tuple[str, ...]:
    """Returns the files of a table, relative to the output root."""
    return tuple(f"{table.folder}/{file.path}" for file in table.dataset("topk"))


def is_without_the_same(release: Release, made: JobStages) -> bool:
    """Tells whether the same users and items were left out of a release as of what is to be published."""
    then, now_read = release.stages, made.published
    readers = [name for name in READERS if name in then]
    return all(then[name].settings.get(FORGOTTEN) == now_read[name].settings.get(FORGOTTEN) for name in readers)


def names_of(made: JobStages, served: Release | None) -> Iterator[str]:
    """Yields names for the release of a table, for as long as one is taken by another verdict on it.

    The first is the name of the table, if that sorts after what is served. A later verdict sorts after what it was compared
    with, so that going back from it leads there: its name has the time when the table was judged, or a second after what is
    served was, if that is later. The same command comes to the same name. Where that is taken too, it has the time now.

    Args:
      made: the finished stages.
      served: what is served.
    """
    table, judged_at = made.published["recommend"], made.published["judge"].finished_at
    if served is None or release_of(table) > served.name:
        yield release_of(table)
    if served:
        judged_at = max(judged_at, a_second_after(served.judged_at or served.created_at))
    yield name_at(judged_at, table.digest)
    for seconds in count():
        yield name_at(time_in(seconds), table.digest)


def a_second_after(time: str) -> str:
    """Returns the time a second after another; UTC, ISO 8601, to the millisecond."""
    return as_time(datetime.fromisoformat(time) + timedelta(seconds=1))


def record_for(
    workspace: Workspace, manifest: Mapping[str, Any], names: Iterable[str], replaced: str | None
) -> tuple[str, Release | None]:
    """Finds the release that is to hold a verdict, so that nothing is written over what passed.

    Args:
      workspace: the output.
      manifest: what the release's manifest is to say, whatever its name.
      names: for the release, the best first.
      replaced: one to write in place of, None for none.

    Returns:
      The name; and the release that is there already, if it says the very same, as after a run that died just before it wrote
      the pointer.
    """
    if replaced:
        return replaced, None
    for name in names:
        there = _passed_at(workspace, name)
        if there is None:
            return name, None
        if verdict_in(there.written) == verdict_in(manifest):
            return name, there
    raise AssertionError("names never end")


def _passed_at(workspace: Workspace, name: str) -> Release | None:
    """Returns a release that passed its gates; None where none is there, it failed, or it is damaged."""
    if not exists(join(workspace.root, workspace.release_manifest(name))):
        return None
    try:
        found = read_named(workspace, name)
    except NewerError:
        raise
    except InputError:
        return None
    return found if found.status == PASSED else None


def verdict_in(manifest: Mapping[str, Any]) -> Any:
    """Returns what the manifest of a release says, but for its name, for when it was said, and for the report on it."""
    return as_json(
        {name: value for name, value in manifest.items() if name not in ("release", "judged_at", "report", "checksum")}
    )


class Seen(NamedTuple):
    """What a table was judged beside.

    Attributes:
      latest: what was served.
      withdrawals: what said that the very table had been rolled back.
    """

    latest: Latest | None
    withdrawals: list[Withdrawal]


def check_nothing_happened(workspace: Workspace, made: JobStages, seen: Seen) -> None:
    """Looks again, right before the pointer is written, whether the verdict still holds: it took its time.

    Raises:
      AnotherPublished: if another release is served now, or the table has been rolled back.
      InputError: if others are to be forgotten now.
    """
    table = made.published["recommend"]
    if read_latest(workspace) != seen.latest:
        raise AnotherPublished("another release has been published or rolled back while this one was judged: run this again")
    if withdrawals_of(workspace, release_of(table), table.digest) != seen.withdrawals:
        raise AnotherPublished("this very table has been rolled back while it was judged: run this again")
    for name in READERS:
        check_forgotten(workspace.root, made.published[name])


def served_already(workspace: Workspace, made: JobStages) -> Latest | None:
    """Returns the pointer to the release that a table was built on, if that is served and has the same table and data."""
    latest = read_latest(workspace)
    if made.base is None or latest is None or latest.release != made.base.name:
        return None
    then = made.base.stages
    same = all(name in then and made.published[name].digest == then[name].digest for name in (*READERS, "recommend"))
    return latest if same else None


def is_compared_with(judged: StageManifest, last: LastTable | None) -> bool:
    """Tells whether a table was judged beside the table `last`."""
    return judged.settings["last"] == (last.settings if last else None)
