"""Deletes old releases, and stages and interrupted attempts that no kept release needs and no command uses.

What to delete is decided twice: before it is announced, and again afterwards, when every command that starts to use it must
have seen the announcement. Only what was found both times is deleted.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from apache_beam.io.filesystem import FileMetadata

from pipelines.engine.lease import LeaseHolder, time_in
from schemas.errors import InputError
from schemas.lease import living, read_leases
from schemas.manifest import read_manifest
from schemas.names import ATTEMPT as ATTEMPT_FOLDER
from schemas.names import STAGE as STAGE_FOLDER
from schemas.release import FoundRelease, Latest, find_releases, find_withdrawals, read_latest, read_release
from schemas.release_manifest import Release
from schemas.storage import delete, delete_folder, join, list_files
from schemas.workspace import Workspace

KEEP = 7
"""Releases that are kept."""

MIN_AGE_HOURS = 24.0
"""How long a stage or an attempt that no release needs is kept after its last file was written."""

RELEASE, STAGE, ATTEMPT = "release", "stage", "attempt"


@dataclass(frozen=True)
class Garbage:
    """A folder that nobody needs.

    Attributes:
      kind: a release (its manifest, and what lies beside it), a stage with all its attempts, or one attempt.
      folder: relative to the output root.
      files: in it.
      bytes: of them.
    """

    kind: str
    folder: str
    files: int
    bytes: int

    @property
    def lease_on(self) -> str:
        """The folder that whoever uses any of it has a lease on: of an attempt, that of its stage."""
        return Workspace.stage_of(self.folder) if self.kind == ATTEMPT else self.folder


def kept_releases(
    releases: list[FoundRelease], latest: str | None, withdrawn: Collection[str], keep: int
) -> list[FoundRelease]:
    """Returns the releases that are kept, of all there are, newest first.

    They are `keep` that may be served: the one that is, and the newest others. Of those that failed or were withdrawn, the
    newest `keep` stay to be looked at, unless they are older than all of the others.
    """
    good = [each.release for each in releases if each.passed and each.release not in withdrawn and each.release != latest]
    names = {latest} if latest else set()
    names |= set(good[: keep - len(names)])
    oldest = min(names, default="")
    rest = [each.release for each in releases if each.release not in (*good, latest) and each.release > oldest]
    names |= set(rest[:keep])
    return [each for each in releases if each.release in names]


def find_garbage(workspace: Workspace, keep: int, min_age_hours: float, used: Collection[str]) -> list[Garbage]:
    """Returns what may be deleted: releases first, then stages and attempts.

    Args:
      workspace: the output.
      keep: how many releases to keep, at least 1.
      min_age_hours: how old a stage or an attempt must be that no release needs.
      used: folders that somebody has a lease on, relative to the output root.

    Raises:
      InputError: if the pointer, or the manifest of a release, cannot be read or is not as it was written: nobody knows then
        what it needs.
    """
    releases, latest = find_releases(workspace), read_latest(workspace)
    if latest and latest.release in {each.release for each in releases}:
        try:
            read_release(workspace, latest)  # Else the two name different tables.
        except InputError as error:
            raise InputError(f"nothing is deleted: {error}") from error
    unreadable = next((each for each in releases if each.manifest is None), None)
    if unreadable:
        raise InputError(
            f"nobody knows which stages release {unreadable.release} needs, so nothing is deleted: {unreadable.problem}"
        )
    if latest and latest.release not in {each.release for each in releases}:
        raise InputError(
            f"{workspace.latest} names release {latest.release}, which is not there, so nothing is deleted: point it to one "
            "that is, with python -m pipelines.releases rollback RELEASE"
        )
    withdrawn = {each.release for each in find_withdrawals(workspace)}
    kept = kept_releases(releases, latest.release if latest else None, withdrawn, keep)
    names = {each.release for each in kept}
    gone = [workspace.release(each.release) for each in releases if each.release not in names]
    found = [_garbage(workspace, RELEASE, folder, _files_below(workspace, folder)) for folder in gone if folder not in used]
    needed = {stage.folder for each in kept if each.manifest for _, stage in each.manifest.all_stages}
    needed |= folders_of_table(latest)  # Whatever any manifest says.
    return [*found, *_unneeded(workspace, needed, min_age_hours * 3600.0, used)]


def _unneeded(workspace: Workspace, needed: Collection[str], min_age_secs: float, used: Collection[str]) -> Iterator[Garbage]:
    """Yields stages, and attempts at stages that are needed, which no release needs and nobody uses."""
    stages: dict[str, list[FileMetadata]] = defaultdict(list)
    for file in list_files(join(workspace.root, "stages", "**")):
        path = workspace.relative(file.path)
        folder = workspace.stage_of(path)
        if STAGE_FOLDER.matches(folder) and path != folder:  # What is no stage is not ours to delete.
            stages[folder].append(file)
    oldest = time.time() - min_age_secs
    stages_needed = set(map(workspace.stage_of, needed))
    for stage, files in stages.items():
        if stage in used:
            continue
        if stage not in stages_needed:
            if _is_before(files, oldest):
                yield _garbage(workspace, STAGE, stage, files)
            continue
        manifest = read_manifest(join(workspace.root, stage, "manifest.json"))
        attempts: dict[str, list[FileMetadata]] = defaultdict(list)
        for file in files:
            folder = workspace.attempt_of(workspace.relative(file.path))
            if ATTEMPT_FOLDER.matches(folder):
                attempts[folder].append(file)
        for folder, its in attempts.items():
            is_needed = folder in needed or (manifest is not None and folder == manifest.folder)
            if not is_needed and _is_before(its, oldest):
                yield _garbage(workspace, ATTEMPT, folder, its)


def _files_below(workspace: Workspace, folder: str) -> list[FileMetadata]:
    return list_files(join(workspace.root, folder, "**"))


def _garbage(workspace: Workspace, kind: str, folder: str, files: list[FileMetadata]) -> Garbage:
    return Garbage(kind, folder, len(files), sum(file.size_in_bytes for file in files))


def _is_before(files: list[FileMetadata], seconds: float) -> bool:
    """Tells whether all files were written before a Unix time; a file system that does not say when keeps them."""
    return all(0 < file.last_updated_in_seconds < seconds for file in files)


def collect(
    workspace: Workspace, keep: int = KEEP, min_age_hours: float = MIN_AGE_HOURS, dry_run: bool = False
) -> list[Garbage]:
    """Deletes what nobody needs, and returns it; with `dry_run`, only returns it.

    Raises:
      InputError: if it cannot be known what is needed, or a setting is out of range.
    """
    if keep < 1:
        raise InputError(f"keep must be at least 1, got {keep}: what is served is always kept, raise --keep")
    if not 0 <= min_age_hours < float("inf"):
        raise InputError(f"min_age_hours must be 0 or more, got {min_age_hours:g}: change --min_age_hours")
    found = find_garbage(workspace, keep, min_age_hours, used_by_others(workspace))
    if dry_run or not found:
        return found
    with LeaseHolder(workspace, "releases gc") as lease:
        used = lease.announce(dict.fromkeys(each.lease_on for each in found))
        again = {each.folder for each in find_garbage(workspace, keep, min_age_hours, used)}
        found = [each for each in found if each.folder in again]
        for each in list(found):
            if each.folder in served_folders(workspace):
                found.remove(each)
                continue
            # Without its manifest a release is not there, and a stage is not finished: neither is ever half of one.
            delete(join(workspace.root, each.folder, "manifest.json"))
            delete_folder(join(workspace.root, each.folder))
        now = time_in(0)
        for expired in read_leases(workspace):
            if not living([expired], now):
                delete(join(workspace.root, workspace.lease(expired.lease)))
    return found


def folders_of_table(latest: Latest | None) -> set[str]:
    """Returns the attempts whose files a pointer names, relative to the output root."""
    return {path.partition("/topk/")[0] for path in latest.topk} if latest else set()


def served_folders(workspace: Workspace) -> set[str]:
    """Returns the folders that the pointer names this moment: the release's, and those of its table's stage and attempt."""
    latest = read_latest(workspace)
    if latest is None:
        return set()
    attempts = folders_of_table(latest)
    return {workspace.release(latest.release), *attempts, *map(workspace.stage_of, attempts)}


def used_by_others(workspace: Workspace) -> set[str]:
    """Returns the folders that somebody has a lease on."""
    return {folder for each in living(read_leases(workspace), time_in(0)) for folder in each.uses}


def folders_of(workspace: Workspace, release: Release) -> list[str]:
    """Returns the folders that whoever uses a release must have a lease on."""
    stages = {workspace.stage_of(stage.folder) for _, stage in release.all_stages}
    return [workspace.release(release.name), *sorted(stages)]
