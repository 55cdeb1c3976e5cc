"""A release: one immutable table with everything it was made from, and the pointer that says which release is served."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.errors import InputError
from schemas.manifest import digest_of, fingerprint_of
from schemas.names import NAME, TIME, TOPK
from schemas.release_manifest import PASSED, Release, check_came_in, files_of, release_in
from schemas.shape import Maybe, check_shape
from schemas.storage import exists, join, list_files, read_json, write_json
from schemas.workspace import Workspace

SCHEMA_VERSION = 3
"""Of releases and of the pointer. Version 1 had no gates, version 2 not always a checksum; both can still be read."""

_WITH_CHECKSUM = 3

_LATEST = {"release": NAME, "manifest": str, "topk": [TOPK], "rolled_back_from": Maybe(NAME)}

_WITHDRAWAL = {"release": NAME, "digest": Maybe(NAME), "replaced_by": NAME, "at": TIME, "reason": str}


class NewerError(InputError):
    """A file that a newer program wrote: it is not damaged, and nothing may be written over it."""


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
      InputError: if the pointer cannot be understood, a newer program wrote it, or it leads out of the output.
    """
    if not exists(workspace.latest):
        return None
    repair = _restore(workspace)
    with _understanding(f"{workspace.latest} is not a pointer to a release", repair):
        value = read_json(workspace.latest)
        _refuse_newer(workspace.latest, value.get("schema_version", 1))
        check_shape(value, _LATEST)
        _check_place("manifest", value["manifest"], workspace.release_manifest(value["release"]))
        return Latest(value["release"], value["manifest"], tuple(value["topk"]), value.get("rolled_back_from"))


def read_release(workspace: Workspace, latest: Latest) -> Release:
    """Reads the manifest of the release that a pointer names.

    Raises:
      InputError: if it is missing or no JSON, if a newer program wrote it, or if it is not of the pointer's table.
    """
    path = join(workspace.root, latest.manifest)
    if not exists(path):
        raise InputError(f"{workspace.latest} names {latest.manifest}, which does not exist: {_restore(workspace)}")
    repair = _restore(workspace)
    with _understanding(f"{path} is not the manifest of a release", repair):
        release = _understood(workspace, path, latest.release)
    if [file.path for file in release.topk] != list(latest.topk) or release.status != PASSED:
        raise InputError(
            f"{workspace.latest} and {latest.manifest} are not of the same table, or it failed its gates: {repair}"
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
    manifest: Release | None
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether it may be served."""
        return self.manifest is not None and self.manifest.status == PASSED


def find_releases(workspace: Workspace) -> list[FoundRelease]:
    """Returns every release below the root, newest first; those that cannot be read say why."""
    found = []
    for file in list_files(join(workspace.root, workspace.release_manifest("*"))):
        name = workspace.release_of(file.path)
        try:
            found.append(FoundRelease(name, _read_manifest(workspace, file.path, name)))
        except InputError as error:
            found.append(FoundRelease(name, None, str(error)))
    return sorted(found, key=lambda each: each.release, reverse=True)


def read_named(workspace: Workspace, name: str, altered: bool = False) -> Release:
    """Reads the manifest of a release by its name, whether it passed or failed.

    Args:
      workspace: the output.
      name: the release's.
      altered: read it too where its checksum says that it is not as it was written: for whoever looks for that himself.

    Raises:
      InputError: if there is none of that name, or it cannot be read.
    """
    path = join(workspace.root, workspace.release_manifest(name))
    if not NAME.matches(name) or not exists(path):
        names = [each.release for each in find_releases(workspace)]
        if not names:
            raise InputError(
                f"there is no release below {workspace.root}: check --output, or run python -m pipelines.run first"
            )
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        raise InputError(f"there is no release {name!r} below {workspace.root}: name one such as {', '.join(near)}, or LATEST")
    return _read_manifest(workspace, path, name, altered)


def pointer_to(workspace: Workspace, release: Release) -> Latest:
    """Returns the pointer that names a release."""
    return Latest(release.name, workspace.release_manifest(release.name), tuple(file.path for file in release.topk))


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
        repair = "correct it, or delete it to let that release be served again"
        with _understanding(f"{file.path} does not say which release was rolled back", repair):
            value = read_json(file.path)
            _refuse_newer(file.path, value.pop("schema_version"))
            check_shape(value, _WITHDRAWAL)
            _check_place("release", value["release"], workspace.release_of(file.path))
            found.append(Withdrawal(**value))
    return found


def withdrawals_of(workspace: Workspace, release: str, digest: str) -> list[Withdrawal]:
    """Returns what says that a release, or another one with the same table, was rolled back."""
    return [each for each in find_withdrawals(workspace) if release == each.release or digest == each.digest]


def _read_manifest(workspace: Workspace, path: str, name: str, altered: bool = False) -> Release:
    with _understanding(f"{path} is not the manifest of a release", "delete its folder, it cannot be used"):
        return _understood(workspace, path, name, altered)


def _understood(workspace: Workspace, path: str, name: str, altered: bool = False) -> Release:
    """Returns a release's manifest, once it is sure that it is of that release, and that all that it names lies in the output.

    Raises:
      ValueError: saying what is wrong with it.
      InputError: if a newer program wrote it.
    """
    written = read_json(path)
    _refuse_newer(path, written["schema_version"])
    if not altered and is_altered(written):
        raise ValueError("it has other contents than were written")
    manifest = _upgraded(written)
    release = release_in(manifest)
    _check_place("release", release.name, name)
    if release.report:
        _check_place("report.path", release.report.path, workspace.release_report(name))
    for stages in (manifest["stages"], (manifest["evaluated"] or {}).get("stages", {})):
        for each, stage in stages.items():
            _check_stage(workspace, each, stage, altered)
    return release


def is_altered(manifest: Mapping[str, Any]) -> bool:
    """Tells whether a release's manifest is not as it was written; one of a version before 3 may have nothing to tell it by."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    if "checksum" not in manifest:
        return manifest["schema_version"] >= _WITH_CHECKSUM
    return manifest["checksum"] != fingerprint_of(content)


def _check_stage(workspace: Workspace, name: str, stage: Mapping[str, Any], altered: bool) -> None:
    folder = workspace.stage(name, stage["fingerprint"])
    check_came_in(stage["metrics"], f"stages.{name}.metrics")
    _check_place(f"stages.{name}.folder", workspace.stage_of(stage["folder"]), folder)
    _check_place(f"stages.{name}.manifest", stage["manifest"], f"{folder}/manifest.json")
    for file in stage.get("files") or []:
        if not file["path"].startswith(f"{stage['folder']}/"):
            raise ValueError(f"{file['path']} is not in the folder of {name}, {stage['folder']}")
    if not altered and stage.get("files") and digest_of(files_of(stage)) != stage["digest"]:
        raise ValueError(f"the files of {name} {stage['fingerprint']} are not those of its digest")


def _check_place(where: str, value: Any, expected: str) -> None:
    if value != expected:
        raise ValueError(f"{where} must be {expected!r}, got {value!r}")


@contextmanager
def _understanding(problem: str, repair: str) -> Iterator[None]:
    """Raises InputError, naming the problem and the repair, where what is read is not what was expected."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{problem} ({_said(error)}): {repair}") from error


def _restore(workspace: Workspace) -> str:
    """Returns how to get a pointer again that can be read; without one, the next release is compared with none."""
    return (
        f"serve a release again with python -m pipelines.releases rollback RELEASE --output {workspace.root}, of those that "
        f"python -m pipelines.releases list names, or, if none is good, delete {workspace.latest} and publish again"
    )


def _said(error: Exception) -> str:
    """Returns what an error says, with its name where that says nothing by itself."""
    return str(error) if isinstance(error, ValueError) else repr(error)


def _upgraded(release: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a manifest as this version writes it; what version 1 did not know is None."""
    unknown: dict[str, Any] = {"status": PASSED, "gates": {}, "compared_with": None, "evaluated": None, "base": None}
    return {**unknown, **release} if release["schema_version"] == 1 else dict(release)


def _refuse_newer(path: str, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise NewerError(
            f"{path} has schema version {version}, this program knows versions up to {SCHEMA_VERSION}: "
            "use the program that made it, or another --output"
        )
