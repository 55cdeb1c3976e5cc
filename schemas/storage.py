"""Reads and writes whole files through Beam's FileSystems, so that a path may be local or in an object store.

What is written here is either complete or absent: a file is written under a temporary name and then renamed. On a local
disk the rename is atomic; object stores copy the finished object over the old one in one piece. Where a file system refuses
to rename onto an existing file (HDFS), the old one is deleted first.

That nothing is there is only ever said where the file system says so: a storage that does not answer is an error, ReadRefused.
"""

import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems

from schemas.errors import ONLY_OF_WRITING, InputError, ReadRefused, WriteRefused

_COPY_BYTES = 1 << 22


@dataclass(frozen=True)
class WrittenFile:
    """A file that a stage wrote: what a manifest says of it."""

    path: str
    """Relative to the folder of the attempt that wrote it."""
    rows: int
    bytes: int
    sha256: str


def join(root: str, *parts: str) -> str:
    """Joins a root (a path or URI) and relative parts."""
    return FileSystems.join(root, *parts) if parts else root


_EXTRAS = {
    "s3": ("aws", "boto3"),
    "gs": ("gcp", "google.cloud.storage"),
    "azfs": ("azure", "azure.storage.blob"),
    "hdfs": ("hadoop", "hdfs"),
}
"""Schemes of URIs: the extra of apache-beam that reads them, and the module that comes with it."""


def check_file_system(path: str, verb: str = "read") -> None:
    """Checks that something is installed that reads and writes where a path points to.

    Args:
      path: a path, a pattern or a URI.
      verb: what is to be done with it, for the message.

    Raises:
      InputError: if not, naming what to install, or what to do instead.
    """
    scheme, is_uri, rest = path.partition("://")
    if not is_uri:
        return
    cannot = f"cannot {verb} {path!r}:"
    if scheme in _EXTRAS:
        extra, module = _EXTRAS[scheme]
        if not _is_installed(module):
            package = f"apache-beam[{extra}]=={importlib.metadata.version('apache-beam')}"
            raise InputError(f"{cannot} {scheme}:// needs a package that is not installed: pip install '{package}'")
    elif scheme in ("http", "https", "ftp"):
        raise InputError(
            f"{cannot} Beam has no file system for {scheme}://: download it (curl -LO URL), and give the file's path"
        )
    elif scheme == "file":
        raise InputError(f"{cannot} Beam has no file system for file://: give the path alone, /{rest.lstrip('/')}")
    else:
        try:
            FileSystems.get_filesystem(path)
        except ValueError as error:
            raise InputError(
                f"{cannot} it is on no file system that is installed: {scheme}:// is none of "
                f"{', '.join(f'{name}://' for name in _EXTRAS)}: check what stands before ://"
            ) from error


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def exists(path: str) -> bool:
    """Tells whether there is a file, or a local folder, at `path`.

    Raises:
      ReadRefused: if the storage does not say.
    """
    check_file_system(path)
    system = FileSystems.get_filesystem(path)
    try:
        if not is_local(path):
            return system.exists(path)
        os.stat(path)  # Beam's own says that there is nothing whatever goes wrong.
        return True
    except Exception as error:
        if _is_absence(error):
            return False
        raise _refusal(path, error) from error


def metadata_of(path: str) -> FileMetadata:
    """Returns the path, size and time of change of a file that is there, whatever characters are in its name.

    Raises:
      FileNotFoundError: if there is no such file.
      ReadRefused: if the storage does not say.
    """
    with _saying_what_is_not_read(path):
        return FileSystems.get_filesystem(path).metadata(path)


def checksum_of(path: str) -> str:
    """Returns what a storage itself knows a file's contents by, such as an ETag; raises what `metadata_of` raises."""
    with _saying_what_is_not_read(path):
        return str(FileSystems.checksum(path))


def list_files(pattern: str) -> list[FileMetadata]:
    """Returns the files that match a glob (path, size, time of change), by path; an empty list where there are none.

    Raises:
      ReadRefused: if the storage does not say which there are.
    """
    check_file_system(pattern)
    system = FileSystems.get_filesystem(pattern)
    try:
        found = _list_local(pattern, system) if is_local(pattern) else system.match([pattern])[0].metadata_list
    except Exception as error:
        if _is_absence(error):
            return []
        raise _refusal(getattr(error, "filename", None) or pattern, error) from error
    return sorted(found, key=lambda metadata: metadata.path)


def _list_local(pattern: str, system: FileSystem) -> list[FileMetadata]:
    """Does what Beam's own `match` does, which passes over every folder that cannot be read."""
    start = re.split(r"[\[*?]", pattern, maxsplit=1)[0]
    if start == pattern and not pattern.endswith("/"):
        return [_metadata(pattern)]

    def stop(error: OSError) -> None:
        if not _is_absence(error):
            raise error

    if pattern.endswith("/"):
        pattern += "*"
    depth = None if "**" in pattern else pattern.count("/")
    found = []
    for folder, folders, names in os.walk(os.path.dirname(start) or ".", onerror=stop):
        folder = folder.removeprefix("./") if not pattern.startswith("./") else folder
        folder = "" if folder == "." else folder
        if depth is not None and f"{folder.rstrip('/')}/".count("/") >= depth + (not folder):
            folders.clear()  # Nothing below can match, so that nothing below needs to be readable.
        for name in names:
            with suppress(FileNotFoundError):  # It may have gone since.
                found.append(_metadata(os.path.join(folder, name)))
    return list(system.match_files(found, pattern))


def _metadata(path: str) -> FileMetadata:
    status = os.stat(path)
    return FileMetadata(path, status.st_size, status.st_mtime)


_ABSENCE = (errno.ENOENT, errno.ENOTDIR)


def _is_absence(error: BaseException) -> bool:
    """Tells whether what a file system says is that nothing is there.

    Beam gathers the errors of each path, and object stores give a number of HTTP, WebHDFS the name of Java's exception.
    """
    details = getattr(error, "exception_details", None)
    if details:
        return all(isinstance(each, BaseException) and _is_absence(each) for each in details.values())
    if isinstance(error, OSError) and error.args and isinstance(error.args[0], OSError):
        return _is_absence(error.args[0])
    code = next((getattr(error, name) for name in ("errno", "code", "status_code") if hasattr(error, name)), None)
    return code in (*_ABSENCE, 404) or getattr(error, "exception", None) == "FileNotFoundException"


def open_file(path: str) -> BinaryIO:
    """Opens `path` for reading its bytes as they are (nothing is decompressed).

    Raises:
      FileNotFoundError: if there is no such file.
      ReadRefused: if the storage does not give it.
    """
    with _saying_what_is_not_read(path):
        file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return cast(BinaryIO, file if is_local(path) else _RemoteFile(path, file))


class _RemoteFile:
    """A file in a storage that may stop to answer at any byte."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._file, name)
        if name not in ("read", "read1", "readall", "readinto", "readline", "readlines", "seek"):
            return value

        def read(*arguments: Any) -> Any:
            with _saying_what_is_not_read(self._path):
                return value(*arguments)

        return read

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def __enter__(self) -> "_RemoteFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def _saying_what_is_not_read(path: str) -> Iterator[None]:
    """Turns what a file system says while a file is read into FileNotFoundError or ReadRefused, which name it."""
    try:
        yield
    except (IsADirectoryError, ReadRefused):
        raise
    except Exception as error:
        # File systems say in many ways that a file is not there, but all of them answer this question.
        if isinstance(error, FileNotFoundError) or not exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        raise _refusal(path, error) from error


def _refusal(path: str, error: Exception) -> Exception:
    """Returns what to raise for what a file system said: a name that cannot be, or a library that is not there, stays."""
    cause = _cause_of(error)
    return cause if isinstance(cause, (ImportError, ValueError, ReadRefused)) else ReadRefused.of(path, cause)


def create_file(path: str) -> BinaryIO:
    """Opens `path` for writing bytes as they are, making the folders above it."""
    return FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(path: str) -> bytes:
    """Returns the contents of `path`; raises what `open_file` raises."""
    return b"".join(read_pieces(path))


def read_pieces(path: str) -> Iterator[bytes]:
    """Yields the contents of `path` in pieces, none of them empty; raises what `open_file` raises."""
    with open_file(path) as file:
        while True:
            with _saying_what_is_not_read(path):
                data = file.read(_COPY_BYTES)
            if not data:
                return
            yield data


def check_writable(root: str) -> None:
    """Writes and deletes a small file below `root`.

    Raises:
      InputError: if that is refused.
    """
    path = join(root, f".writable-{uuid.uuid4().hex}")
    try:
        with create_file(path) as file:
            file.write(b"")
        delete(path)
    except (OSError, BeamIOError, ValueError) as error:
        raise InputError(
            f"the output {root} cannot be written ({error}): choose another --output, or change its rights"
        ) from error


def rename(source: str, destination: str) -> None:
    """Renames a file, replacing what is there."""
    try:
        FileSystems.rename([source], [destination])
    except BeamIOError:
        if not exists(source) or not exists(destination):
            raise
        FileSystems.delete([destination])
        FileSystems.rename([source], [destination])


def delete(path: str) -> None:
    """Deletes a file; one already gone is no error, nor is one that somebody else deletes at the same time."""
    if exists(path):
        _delete([path])


def delete_folder(path: str) -> None:
    """Deletes every file below a folder, and the folder where the file system has such a thing."""
    files = [file.path for file in list_files(join(path, "**"))]
    if files:
        _delete(files)
    delete(path)


def _delete(paths: list[str]) -> None:
    try:
        FileSystems.delete(paths)
    except BeamIOError as error:
        left = next((path for path in paths if exists(path)), None)
        if left is not None:
            raise WriteRefused.of(left, _cause_of(error), "delete") from error


@contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """Opens a file that appears at `path`, whole, when the block ends without an error, and not at all otherwise.

    Raises:
      WriteRefused: if the disk is full or does not let itself be written.
    """
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with _saying_what_is_refused(path):
            file = create_file(temporary)
        with _saying_what_is_refused(path, ONLY_OF_WRITING), file:
            yield file
        with _saying_what_is_refused(path):
            rename(temporary, path)
    except BaseException:
        with suppress(OSError, BeamIOError):
            delete(temporary)
        raise


@contextmanager
def _saying_what_is_refused(path: str, numbers: Collection[int] | None = None) -> Iterator[None]:
    """Turns what a file system says into an error that names the file and the repair; with `numbers` only those errors."""
    try:
        yield
    except WriteRefused:
        raise
    except (OSError, BeamIOError) as error:
        cause = _cause_of(error)
        if numbers is not None and getattr(cause, "errno", None) not in numbers:
            raise
        raise WriteRefused.of(path, cause) from error


def _cause_of(error: Exception) -> Exception:
    """Returns the error that Beam wrapped: one of those that it gathered, or the argument of another."""
    gathered = [each for each in (getattr(error, "exception_details", None) or {}).values() if isinstance(each, Exception)]
    inner = gathered[0] if gathered else error.args[0] if isinstance(error, OSError) and error.args else None
    return _cause_of(inner) if isinstance(inner, Exception) else error


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes `value` to `path` as JSON, in one piece."""
    with replacing(path) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: str) -> Any:
    """Returns the JSON value in `path`.

    Raises:
      ValueError: if it is no JSON, or nested too deep to be any of ours.
    """
    try:
        return json.loads(read_bytes(path))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


class HashingWriter:
    """A write-only file that counts and hashes the bytes that pass to the file under it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._hash.update(view)
        self.bytes += view.nbytes
        self._file.write(bytes(view))
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        """Does nothing: the file under it is flushed when it is closed."""

    def close(self) -> None:
        """Does nothing: the file under it has an owner."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def sha256_of(path: str) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    for data in read_pieces(path):
        digest.update(data)
    return digest.hexdigest()


def write_file(root: str, path: str, data: bytes) -> WrittenFile:
    """Writes `data` to `root/path` in one piece, and returns what was written."""
    with replacing(join(root, path)) as file:
        file.write(data)
    return WrittenFile(path, 0, len(data), hashlib.sha256(data).hexdigest())


def upload_folder(folder: Path, root: str, path: str) -> list[WrittenFile]:
    """Copies every file below the local `folder` to `root/path`, and returns what was written, by path."""
    written = []
    for source in sorted(file for file in folder.rglob("*") if file.is_file()):
        relative = f"{path}/{source.relative_to(folder).as_posix()}"
        with replacing(join(root, relative)) as file, source.open("rb") as data:
            hashing = HashingWriter(file)
            shutil.copyfileobj(data, hashing, _COPY_BYTES)
        written.append(WrittenFile(relative, 0, hashing.bytes, hashing.sha256))
    return written


def copy_file(source: str, root: str, path: str) -> WrittenFile:
    """Copies the file `source` to `root/path` in one piece, and returns what was written; its rows are not counted."""
    with replacing(join(root, path)) as file:
        hashing = HashingWriter(file)
        for data in read_pieces(source):
            hashing.write(data)
    return WrittenFile(path, 0, hashing.bytes, hashing.sha256)


def is_local(path: str) -> bool:
    """Tells whether `path` is on this machine's disk, so that libraries can open it themselves."""
    return FileSystems.get_scheme(path) is None
