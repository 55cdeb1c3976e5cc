"""Gives access to a stage's files after comparing them with the SHA-256 in its manifest.

A SavedModel is code, and an index is read by a C++ library that trusts it: nothing is loaded from a file that was not looked at
first, and whoever loads sees the listed files only, whatever else lies beside them.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.parquet_files import read_parquet_blocks
from schemas.storage import WrittenFile, is_local, join, read_pieces, sha256_of


@dataclass(frozen=True)
class StoredFolder:
    """A folder that a stage wrote, or a part of one.

    Attributes:
      path: where it is; may be remote.
      files: what its stage wrote there; their paths are relative to it.
    """

    path: str
    files: tuple[WrittenFile, ...]

    def has(self, name: str) -> bool:
        """Tells whether its stage wrote a file of this name, relative to the folder."""
        return any(file.path == name for file in self.files)

    @property
    def paths(self) -> list[str]:
        """The full paths of its files, in their order."""
        return [join(self.path, file.path) for file in self.files]

    def blocks(self, columns: list[str] | None = None) -> Iterator[Block]:
        """Yields the blocks of its Parquet files, in order, each file after it is proved unchanged.

        Raises:
          InputError: if a file is missing or altered.
        """
        for file in self.files:
            path = join(self.path, file.path)
            check_file(path, file)
            yield from read_parquet_blocks(path, columns)


@contextmanager
def checked_folder(root: str, files: Sequence[WrittenFile]) -> Iterator[Path]:
    """Yields a local folder that holds `files` of `root` and nothing else, each proved to be what was written.

    What is local is linked to, the rest copied; the folder goes afterwards.

    Raises:
      InputError: if a file is missing or altered.
    """
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        for file in files:
            path, target = join(root, file.path), Path(folder, file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_local(path):
                target.symlink_to(Path(path).absolute())
                check_file(path, file)
            else:
                _check(path, file, _copy(path, target))
        yield Path(folder)


_REPAIR = "delete the stage's folder and run it again"


def check_file(path: str, file: WrittenFile, repair: str = _REPAIR) -> None:
    """Raises InputError, with what to do about it, if what is at `path` is missing or not what was written."""
    with _saying_what_is_missing(path, repair):
        found = sha256_of(path)
    _check(path, file, found, repair)


def _copy(path: str, target: Path) -> str:
    """Copies a file to this machine, and returns the SHA-256 of the copy."""
    digest = hashlib.sha256()
    with _saying_what_is_missing(path), target.open("wb") as out:
        for data in read_pieces(path):
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


@contextmanager
def _saying_what_is_missing(path: str, repair: str = _REPAIR) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing or cannot be read ({error}): {repair}") from error


def _check(path: str, file: WrittenFile, found: str, repair: str = _REPAIR) -> None:
    if found != file.sha256:
        raise InputError(
            f"{path} is not what was written (SHA-256 {found[:12]}…, the manifest says {file.sha256[:12]}…): {repair}"
        )
