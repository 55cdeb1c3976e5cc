"""Folders that no stage wrote, for what loads only what a stage's manifest names."""

from schemas.storage import WrittenFile, join, list_files, sha256_of
from schemas.stored import StoredFolder


def stored_folder(path: str) -> StoredFolder:
    """Returns a folder with all that is in it now, as if a stage had written it."""
    files = list_files(join(path, "**"))
    start = len(join(path, "x")) - 1
    return StoredFolder(
        path, tuple(WrittenFile(file.path[start:], 0, file.size_in_bytes, sha256_of(file.path)) for file in files)
    )
