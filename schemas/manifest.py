"""A stage's manifest: one small JSON object, written last, that says a stage is finished and what it made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from schemas.errors import InputError
from schemas.names import ATTEMPT, FILE, NAME, SHA256, TIME
from schemas.shape import AtLeast, Each, Maybe, check_shape
from schemas.storage import WrittenFile, exists, join, list_files, read_json, sha256_of, write_json
from schemas.stored import StoredFolder

SCHEMA_VERSION = 1

MADE_FILE = {"path": FILE, "rows": AtLeast(0), "bytes": AtLeast(0), "sha256": SHA256}
"""The shape of what a manifest says of a file."""

CONTENTS = "contents"
"""The output that names, for datasets whose rows have no order, a digest of the rows, in whatever files they are."""

_SHAPE = {
    "stage": NAME,
    "fingerprint": NAME,
    "folder": ATTEMPT,
    "digest": NAME,
    "settings": dict,
    "inputs": Each({"fingerprint": NAME, "datasets": [str], "digest": NAME}, NAME),
    "sources": [dict],
    "files": [MADE_FILE],
    "metrics": dict,
    "versions": Each(str),
    "started_at": TIME,
    "finished_at": TIME,
    "outputs": Maybe({CONTENTS: Maybe(Each(str))}),
}


@dataclass(frozen=True)
class StageManifest:
    """What a finished stage was made from and what it wrote."""

    stage: str
    """'ingest', 'train', and so on."""
    fingerprint: str
    """Of everything that decides the result: settings, code and inputs."""
    folder: str
    """Where its files are, relative to the output root: the folder of the attempt that finished."""
    digest: str
    """Of all files' contents."""
    settings: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    """For each stage that it read: that stage's `fingerprint`, the `datasets` read (none named: all), and their `digest`."""
    sources: Sequence[Mapping[str, Any]]
    """The files that came from outside: path, size and time of change."""
    files: Sequence[WrittenFile]
    """Everything it wrote, paths relative to `folder`, in the order of their paths."""
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    """Of Python and the packages that ran it."""
    started_at: str
    finished_at: str
    """UTC, ISO 8601."""
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """What of the metrics later stages go by; empty in manifests of earlier programs, which have it among the metrics alone."""
    schema_version: int = field(default=SCHEMA_VERSION)

    def dataset(self, name: str) -> list[WrittenFile]:
        """Returns the files below the folder `name`, in the order of their paths."""
        return [file for file in self.files if file.path.startswith(f"{name}/")]

    def paths(self, root: str, dataset: str) -> list[str]:
        """Returns the full paths of a dataset's files, in their order."""
        return [join(root, self.folder, file.path) for file in self.dataset(dataset)]

    def stored(self, root: str, dataset: str) -> StoredFolder:
        """Returns a dataset's folder, which hands out its files once they are proved unchanged."""
        files = (replace(file, path=file.path.removeprefix(f"{dataset}/")) for file in self.dataset(dataset))
        return StoredFolder(join(root, self.folder, dataset), tuple(files))

    def digest_of_datasets(self, datasets: Sequence[str]) -> str:
        """Returns the digest of the contents of some datasets, or of everything where none is named.

        It is what a later stage's fingerprint takes from this one: made again with the same contents, it changes nothing. Of a
        dataset whose rows have no order, the contents are what the stage reports as CONTENTS, otherwise they are its files.
        """
        if not datasets:
            return self.digest
        told = self.outputs.get(CONTENTS) or {}
        files = digest_of([file for name in datasets if name not in told for file in self.dataset(name)])
        rows = {name: told[name] for name in datasets if name in told}
        return fingerprint_of([files, rows]) if rows else files

    def rows(self, dataset: str) -> int:
        """Returns how many rows a dataset has."""
        return sum(file.rows for file in self.dataset(dataset))


def users_of(done: Mapping[str, StageManifest]) -> StageManifest:
    """Returns the stage that has the users to serve, in its dataset `users`: that of the lists, unless none names a user."""
    lists = done.get("lists")  # Releases of earlier programs have none.
    return lists if lists and lists.dataset("users") else done["ingest"]


def check_complete(root: str, manifest: StageManifest, datasets: Sequence[str] = ()) -> None:
    """Makes sure that a stage's files are as they were written, those of some datasets by their contents: see `damage_of`.

    Raises:
      InputError: naming the first file that is missing or altered, and the folder to delete.
    """
    damage = damage_of(root, manifest, datasets)
    if damage:
        folder = join(root, manifest.folder).rpartition("/")[0]
        raise InputError(f"{damage}: delete {folder} and run the same command again, to make it anew")


def damage_of(root: str, manifest: StageManifest, datasets: Sequence[str] = ()) -> str | None:
    """Looks whether a stage's files are all there, by their sizes; those of some datasets by their contents too.

    Args:
      root: the output root.
      manifest: the stage's.
      datasets: which files to read and hash.

    Returns:
      The first file that is missing or altered, and what is wrong with it, in words; None where there is none.
    """
    folder = join(root, manifest.folder)
    sizes = {found.path: found.size_in_bytes for found in list_files(join(folder, "**"))}
    hashed = tuple(f"{dataset}/" for dataset in datasets)
    for file in manifest.files:
        path = join(folder, file.path)
        size = sizes.get(path)
        wrong = "is gone" if size is None else f"has {size} bytes, not {file.bytes}" if size != file.bytes else None
        if not wrong and file.path.startswith(hashed) and sha256_of(path) != file.sha256:
            wrong = "has other contents than were written"
        if wrong:
            return f"{path} {wrong}"
    return None


def as_json(value: Any) -> Any:
    """Returns a JSON-like value as it is when it has been written and read again: tuples are lists."""
    return json.loads(json.dumps(value))


def fingerprint_of(value: Any) -> str:
    """Returns 16 hex digits that stand for a JSON-like value: equal values, in whatever order of keys, give equal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(files: Sequence[WrittenFile]) -> str:
    """Returns 16 hex digits that stand for the names and contents of `files`."""
    return fingerprint_of(sorted([file.path, file.sha256] for file in files))


def write_manifest(path: str, manifest: StageManifest) -> None:
    """Writes a manifest in one piece: from now on the stage is finished."""
    write_json(path, asdict(manifest))


def read_manifest(path: str) -> StageManifest | None:
    """Reads a manifest, or returns None where the stage is not finished.

    Raises:
      InputError: if what is there is no manifest of this version, not of the folder that it lies in, or altered in what it says
        of its files.
    """
    if not exists(path):
        return None
    try:
        value = read_json(path)
        if value["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {value['schema_version']!r}, this program writes {SCHEMA_VERSION}: "
                "use the program that made it, or another --output"
            )
        check_shape(value, _SHAPE)
        value["files"] = [WrittenFile(**file) for file in value["files"]]
        manifest = StageManifest(**value)
        folder = f"stages/{manifest.stage}-{manifest.fingerprint}"
        if not manifest.folder.startswith(f"{folder}/") or not path.endswith(f"/{folder}/manifest.json"):
            raise ValueError(f"it is of {manifest.stage} {manifest.fingerprint} in {manifest.folder}")
        if digest_of(manifest.files) != manifest.digest:
            raise ValueError("its files are not those of its digest")
        return manifest
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a stage's manifest ({error}): delete its folder, so that the stage runs again"
        ) from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): correct that, or delete its folder, so that the stage runs again"
        ) from error
