"""A release: one immutable table with everything that led to it, and the pointer that says which one is served."""

from dataclasses import dataclass
from typing import Any

from schemas.errors import InputError
from schemas.storage import exists, join, read_json, write_json
from schemas.workspace import Workspace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Latest:
    """What `LATEST` holds; paths are relative to the output root."""

    release: str
    manifest: str
    topk: tuple[str, ...]


def write_latest(workspace: Workspace, latest: Latest) -> None:
    """Points readers to a release: the one write that publishes."""
    write_json(
        workspace.latest,
        {"release": latest.release, "manifest": latest.manifest, "topk": list(latest.topk)},
    )


def read_latest(workspace: Workspace) -> Latest | None:
    """Reads the pointer, or returns None before the first release.

    Raises:
      InputError: if the pointer cannot be understood.
    """
    if not exists(workspace.latest):
        return None
    try:
        value = read_json(workspace.latest)
        return Latest(value["release"], value["manifest"], tuple(value["topk"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{workspace.latest} is not a pointer to a release ({error!r}): delete it and publish again, "
            "with the command that made the output"
        ) from error


def read_release(workspace: Workspace, latest: Latest) -> dict[str, Any]:
    """Reads the manifest of a release.

    Raises:
      InputError: if it is missing or no JSON.
    """
    path = join(workspace.root, latest.manifest)
    if not exists(path):
        raise InputError(f"{workspace.latest} names {latest.manifest}, which does not exist: publish again")
    try:
        release = read_json(path)
        if release["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {release['schema_version']}, this program reads {SCHEMA_VERSION}: "
                "use the program that made it"
            )
        _ = release["stages"], release["topk"], release["metrics"]
        return release
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the manifest of a release ({error!r}): delete it and publish again") from error
