"""A second Beam file system, in memory (`memory://…`): like an object store, it has no folders, files appear when closed."""

import fnmatch
import io
import re
import time
from collections.abc import Iterator

from apache_beam.io.filesystem import BeamIOError, CompressedFile, CompressionTypes, FileMetadata, FileSystem

FILES: dict[str, tuple[bytes, float]] = {}
"""Threads share it, so whoever goes through it goes through a copy."""


class _Upload(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            FILES[self._path] = self.getvalue(), time.time()
        super().close()


class MemoryFileSystem(FileSystem):
    """Files in a dictionary of this process."""

    @classmethod
    def scheme(cls) -> str:
        return "memory"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise BeamIOError(f"memory:// has no folders, got {path}")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path, (data, changed) in sorted(FILES.copy().items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(data), changed)

    def create(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        return self._wrap(_Upload(path), path, compression_type)

    def open(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        if path not in FILES:
            raise BeamIOError(f"no such file: {path}")
        return self._wrap(io.BytesIO(FILES[path][0]), path, compression_type)

    @staticmethod
    def _wrap(file: io.BytesIO, path: str, compression_type: str) -> io.BytesIO | CompressedFile:
        if compression_type == CompressionTypes.AUTO:
            compression_type = CompressionTypes.detect_compression_type(path)
        return file if compression_type == CompressionTypes.UNCOMPRESSED else CompressedFile(file, compression_type)

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, destination in zip(source_file_names, destination_file_names, strict=True):
            if source not in FILES:
                raise BeamIOError(f"no such file: {source}")
            FILES[destination] = FILES[source][0], time.time()

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path: str) -> bool:
        return path in FILES

    def size(self, path: str) -> int:
        return len(FILES[path][0])

    def last_updated(self, path: str) -> float:
        return FILES[path][1]

    def checksum(self, path: str) -> str:
        return str(self.size(path))

    def metadata(self, path: str) -> FileMetadata:
        return FileMetadata(path, self.size(path), self.last_updated(path))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            for name in [each for each in FILES.copy() if each == path or each.startswith(f"{path.rstrip('/')}/")]:
                FILES.pop(name, None)


def matches(pattern: str) -> list[str]:
    """Returns the paths that match a shell pattern, for assertions."""
    return sorted(path for path in FILES if re.fullmatch(fnmatch.translate(pattern), path))
