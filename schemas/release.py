"""A release: one immutable table with everything that led to it, and the pointer that says which one is served."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from apache_beam.io.filesystem import BeamIOError

from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.storage import WrittenFile, exists, join, list_files, read_json, write_json
from schemas.workspace import Workspace

SCHEMA_VERSION = 2
"""Of releases and of the pointer. Version 1 had no gates; it can still be read."""

PASSED, FAILED = "passed", "failed"
"""The status of a release: whether it may be served. A failed one is kept to be looked at; `LATEST` never names one."""


@dataclass(frozen=True)
class Latest:
    """What `LATEST` holds; paths are relative to the output root.

    Attributes:
      release: the one that is served.
      manifest: its manifest.
      topk: the files of its table.
      rolled_back_from: what was served before, where somebody went back from it; it does not make another pointer.
    """

    release: str
    manifest: str
    topk: tuple[str, ...]
    rolled_back_from: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Withdrawal:
    """That a release was served and then rolled back: a run that comes to the same table again must not serve it.

    Attributes:
      release: its name.
      digest: of its table; None where its manifest could not be read.
      replaced_by: the release that was served instead.
      at: when; UTC, ISO 8601.
      reason: why, as whoever did it said; empty where nothing was said.
    """

    release: str
    digest: str | None
    replaced_by: str
    at: str
    reason: str


@dataclass(frozen=True)
class Base:
    """A release that another one builds on.

    Attributes:
      release: its name.
      manifest: the release's.
      stages: those that made its table, by name.
    """

    release: str
    manifest: Mapping[str, Any]
    stages: Mapping[str, StageManifest]

    @property
    def refitted(self) -> bool:
        """Whether the model that was evaluated is another than the table's."""
        return bool(self.manifest["evaluated"]["refitted"])

    @property
    def can_be_kept(self) -> bool:
        """Whether it passed its gates, and tells all that a release which builds on it needs."""
        return self.manifest["status"] == PASSED and "refitted" in (self.manifest["evaluated"] or {})


def base_of(manifest: Mapping[str, Any]) -> Base:
    """Returns a release that another one can build on, given its manifest."""
    return Base(
        manifest["release"],
        manifest,
        {name: _stage_of(name, stage) for name, stage in manifest["stages"].items()},
    )


def _stage_of(name: str, stage: Mapping[str, Any]) -> StageManifest:
    """Returns the manifest of a stage as the manifest of a release tells it."""
    known = {each: stage[each] for each in ("fingerprint", "digest", "folder", "settings", "inputs", "sources", "metrics")}
    files = [WrittenFile(**file | {"path": file["path"].removeprefix(f"{stage['folder']}/")}) for file in stage["files"]]
    times = {each: stage[each] for each in ("versions", "started_at", "finished_at")}
    return StageManifest(stage=name, files=files, **known, **times)


def write_latest(workspace: Workspace, latest: Latest) -> None:
    """Points readers to a release: the one write that publishes."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "release": latest.release,
        "manifest": latest.manifest,
        "topk": list(latest.topk),
    }
    if latest.rolled_back_from:
        value["rolled_back_from"] = latest.rolled_back_from
    write_json(workspace.latest, value)


def read_latest(workspace: Workspace) -> Latest | None:
    """Reads the pointer, or returns None before the first release.

    Raises:
      InputError: if the pointer cannot be understood, or a newer program wrote it.
    """
    if not exists(workspace.latest):
        return None
    repair = "delete it and publish again, with the command that made the output"
    with _understanding(f"{workspace.latest} is not a pointer to a release", repair):
        value = read_json(workspace.latest)
        _refuse_newer(workspace.latest, value.get("schema_version", 1))
        return Latest(value["release"], value["manifest"], tuple(value["topk"]), value.get("rolled_back_from"))


def read_release(workspace: Workspace, latest: Latest) -> dict[str, Any]:
    """Reads the manifest of the release that a pointer names.

    Raises:
      InputError: if it is missing or no JSON, if a newer program wrote it, or if it is not of the pointer's table.
    """
    path = join(workspace.root, latest.manifest)
    if not exists(path):
        raise InputError(
            f"{workspace.latest} names {latest.manifest}, which does not exist: delete {workspace.latest} and publish again, "
            "with the command that made the output"
        )
    repair = f"delete {workspace.latest} and publish again, with the command that made the output"
    with _understanding(f"{path} is not the manifest of a release", repair):
        release = _upgraded(path, read_json(path))
        _ = release["stages"], release["metrics"]
        same = release["release"] == latest.release and [file["path"] for file in release["topk"]] == list(latest.topk)
    if not same or release["status"] != PASSED:
        raise InputError(
            f"{workspace.latest} and {latest.manifest} are not of the same table, or it failed its gates: "
            f"delete {workspace.latest} and publish again, with the command that made the output"
        )
    return release


@dataclass(frozen=True)
class FoundRelease:
    """A release that is there, whether it is served or not.

    Attributes:
      release: its name.
      manifest: as this version writes it, or None where it cannot be read.
      problem: why it cannot be read.
    """

    release: str
    manifest: Mapping[str, Any] | None
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether it may be served."""
        return self.manifest is not None and self.manifest["status"] == PASSED


def find_releases(workspace: Workspace) -> list[FoundRelease]:
    """Returns every release below the root, newest first; those that cannot be read say why."""
    found = []
    for file in list_files(join(workspace.root, workspace.release_manifest("*"))):
        name = file.path.split("/")[-2]
        try:
            found.append(FoundRelease(name, _read_manifest(file.path, name)))
        except InputError as error:
            found.append(FoundRelease(name, None, str(error)))
    return sorted(found, key=lambda each: each.release, reverse=True)


def read_named(workspace: Workspace, name: str) -> dict[str, Any]:
    """Reads the manifest of a release by its name, whether it passed or failed.

    Raises:
      InputError: if there is none of that name, or it cannot be read.
    """
    path = join(workspace.root, workspace.release_manifest(name))
    if "/" in name or any(each in name for each in "*?[") or not exists(path):
        names = [each.release for each in find_releases(workspace)]
        if not names:
            raise InputError(
                f"there is no release below {workspace.root}: check --output, or run python -m pipelines.run first"
            )
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        raise InputError(f"there is no release {name!r} below {workspace.root}: name one such as {', '.join(near)}, or LATEST")
    return _read_manifest(path, name)


def pointer_to(workspace: Workspace, release: Mapping[str, Any]) -> Latest:
    """Returns the pointer that names a release, given its manifest."""
    name = release["release"]
    return Latest(name, workspace.release_manifest(name), tuple(file["path"] for file in release["topk"]))


def write_withdrawal(workspace: Workspace, withdrawal: Withdrawal) -> None:
    """Keeps that a release was rolled back."""
    path = join(workspace.root, workspace.withdrawal(withdrawal.release))
    write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(withdrawal)})


def find_withdrawals(workspace: Workspace) -> list[Withdrawal]:
    """Returns everything that was rolled back and has not been served since, by the names of the releases.

    Raises:
      InputError: if one cannot be read: a table that was withdrawn must not slip through.
    """
    found = []
    for file in list_files(join(workspace.root, workspace.withdrawal("*"))):
        repair = "mend it, or delete it to let that release be served again"
        with _understanding(f"{file.path} does not say which release was rolled back", repair):
            value = read_json(file.path)
            _refuse_newer(file.path, value.pop("schema_version"))
            found.append(Withdrawal(**value))
    return found


def withdrawals_of(workspace: Workspace, release: str, digest: str) -> list[Withdrawal]:
    """Returns what says that a release, or another one with the same table, was rolled back."""
    return [each for each in find_withdrawals(workspace) if release == each.release or digest == each.digest]


def _read_manifest(path: str, name: str) -> dict[str, Any]:
    with _understanding(f"{path} is not the manifest of a release", "delete its folder, it cannot be used"):
        release = _upgraded(path, read_json(path))
        _ = release["stages"]["recommend"]["digest"], release["metrics"], release["topk"], release["status"]
        if release["release"] != name:
            raise ValueError(f"it is of the release {release['release']!r}")
    return release


@contextmanager
def _understanding(problem: str, repair: str) -> Iterator[None]:
    """Raises InputError, naming the problem and the repair, where what is read is not what was expected."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError, BeamIOError) as error:
        raise InputError(f"{problem} ({error!r}): {repair}") from error


def _upgraded(path: str, release: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest as this version writes it; what version 1 did not know is None."""
    _refuse_newer(path, release["schema_version"])
    unknown: dict[str, Any] = {"status": PASSED, "gates": {}, "compared_with": None, "evaluated": None, "base": None}
    return {**unknown, **release} if release["schema_version"] == 1 else dict(release)


def _refuse_newer(path: str, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}, this program knows versions up to {SCHEMA_VERSION}: "
            "use the program that made it, or another --output"
        )
