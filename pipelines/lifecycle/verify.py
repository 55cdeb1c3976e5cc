"""Compares the files of a release with its manifest: every file of every stage, byte for byte."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipelines.job.publishing import describe_stage
from schemas.errors import InputError
from schemas.manifest import digest_of, read_manifest
from schemas.release import is_altered, pointer_to, read_latest
from schemas.release_manifest import Release, files_of
from schemas.stage_files import SUMMARY, TENSORBOARD
from schemas.storage import join, list_files, sha256_of
from schemas.words import counted
from schemas.workspace import Workspace

_READERS = 4
"""Files that are read at once: hashing and reading leave Python's lock alone."""


@dataclass(frozen=True)
class Verdict:
    """What was found of a release.

    Attributes:
      release: its name.
      files: how many were compared.
      bytes: how many were read and hashed.
      problems: a line for each thing that is not as it was written; it begins with the path.
    """

    release: str
    files: int
    bytes: int
    problems: tuple[str, ...]


def verify_release(workspace: Workspace, release: Release, before_serving: bool = False) -> Verdict:
    """Compares a release with its files.

    A file must be there, of its size and with its SHA-256. The manifest must be as it was written, and so must that of each
    stage. Nothing may lie in a stage's folder that the stage did not write: a reader of `topk/*.parquet` would take it for a
    part of the table. TensorBoard's events, what was left half-written by a worker that died, and the workers' summary are
    no part of a release.

    Args:
      workspace: the output.
      release: which one.
      before_serving: hash the table alone, look at the sizes of all else, and leave out the pointer, which is to be written.
    """
    problems, manifest = _problems_of_manifest(workspace, release), release.written
    if not before_serving:
        problems += _problems_of_pointer(workspace, release)
    files: dict[str, tuple[Mapping[str, Any], bool]] = {}
    written: dict[str, Mapping[str, Any]] = {}
    table = {file["path"]: file for file in manifest["topk"]}
    for name, stage in _stages_written(manifest):
        stage, wrong = _compare_stage(workspace, name, stage)
        problems += wrong
        written |= {file["path"]: file for file in stage["files"]}
        folder = stage["folder"]
        sizes = {each.path: each.size_in_bytes for each in list_files(join(workspace.root, folder, "**"))}
        for file in stage["files"]:
            path = join(workspace.root, file["path"])
            size = sizes.pop(path, None)
            fault = _compare_size(path, size, file)
            if fault:
                problems.append(fault)
            else:
                files[path] = file, not before_serving or table.get(file["path"]) == file
        problems += [
            f"{path} was not written by the stage" for path in sizes if _is_foreign(path, join(workspace.root, folder))
        ]
    report = manifest.get("report")  # Releases of earlier programs have none.
    if report:
        written[report["path"]] = report
        path = join(workspace.root, report["path"])
        fault = _compare_size(path, next((each.size_in_bytes for each in list_files(path)), None), report)
        if fault:
            problems.append(fault)
        else:
            files[path] = report, not before_serving
    if not all(written.get(path) == file for path, file in table.items()):
        problems.append(f"{_manifest_of(workspace, release)} names a table that its recommend stage has not written")
    hashed = [(path, file) for path, (file, is_read) in files.items() if is_read]
    with ThreadPoolExecutor(_READERS) as pool:
        for (path, file), found in zip(hashed, pool.map(lambda each: _sha256_of(each[0]), hashed), strict=True):
            if found != file["sha256"]:
                problems.append(f"{path} has other contents than were written")
    read = sum(file["bytes"] for _, file in hashed)
    return Verdict(release.name, len(written), read, tuple(problems))


def _compare_size(path: str, size: int | None, file: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a file's size, None where there is no file; None if nothing is."""
    if size is None:
        return f"{path} is gone"
    return None if size == file["bytes"] else f"{path} has {counted(size, 'byte')}, {file['bytes']:,} were written"


def _stages_written(manifest: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns what a release's manifest says of its stages, with their names, as `Release.all_stages` has them."""
    before = (manifest["evaluated"] or {}).get("stages", {})
    return [*manifest["stages"].items(), *before.items()]


def _problems_of_manifest(workspace: Workspace, release: Release) -> list[str]:
    if is_altered(release.written):
        return [f"{_manifest_of(workspace, release)} has other contents than were written"]
    return []


def _problems_of_pointer(workspace: Workspace, release: Release) -> list[str]:
    try:
        latest = read_latest(workspace)
    except InputError as error:
        return [str(error)]
    if latest and latest.release == release.name and latest != pointer_to(workspace, release):
        return [f"{workspace.latest} names other files than release {release.name} has"]
    return []


def _manifest_of(workspace: Workspace, release: Release) -> str:
    return join(workspace.root, workspace.release_manifest(release.name))


def _compare_stage(workspace: Workspace, name: str, stage: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Compares what a release says of a stage with the stage's own manifest.

    Returns:
      What is known of the stage, its files among it, and a line for each thing that is wrong. Releases of schema version 1 left
      the files to the stage's manifest.
    """
    problems = []
    path = join(workspace.root, stage["manifest"])
    known: dict[str, Any] = {"files": []}
    try:
        manifest = read_manifest(path)
    except InputError as error:
        problems.append(str(error))
    else:
        if manifest is None:
            problems.append(f"{path} is gone")
        elif manifest.folder == stage["folder"]:  # Else the stage was made again since, in another folder.
            known = json.loads(json.dumps(describe_stage(manifest)))
            if {each: known.get(each) for each in stage} != stage:
                problems.append(f"{path} has other contents than were written")
    stage = known | {each: value for each, value in stage.items() if value is not None}
    files = files_of(stage)
    if files and digest_of(files) != stage["digest"]:
        problems.append(f"the files of {name} {stage['fingerprint']} are not those of its digest")
    return stage, problems


def _is_foreign(path: str, folder: str) -> bool:
    """Tells whether a file that no manifest names has no business in an attempt's folder."""
    relative = path.removeprefix(folder).lstrip("/")
    known = relative == SUMMARY or f"{TENSORBOARD}/" in relative or relative.endswith(".tmp")
    return not known


def _sha256_of(path: str) -> str:
    try:
        return sha256_of(path)
    except FileNotFoundError:
        return "gone"
