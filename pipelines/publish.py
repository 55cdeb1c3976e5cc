"""Publishes a finished table as a release, and points readers to it: `python -m pipelines.publish --output DIR`.

A release is one manifest that names everything the table came from; its files stay where the stages wrote them. `LATEST` is
written last, in one piece: a run that dies before changes nothing that readers see.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from schemas.manifest import StageManifest, check_complete
from schemas.release import SCHEMA_VERSION, Latest, read_latest, write_latest
from schemas.storage import exists, join, write_json
from schemas.workspace import Workspace


def release_of(recommended: StageManifest) -> str:
    """Returns a release's name: the time its table was finished, and the start of the table's digest."""
    time = "".join(each for each in recommended.finished_at.split(".")[0] if each not in "-:")
    return f"{time}Z-{recommended.digest[:8]}"


def release_manifest(release: str, done: Mapping[str, StageManifest]) -> dict[str, Any]:
    """Returns what the manifest of a release says.

    Args:
      release: its name.
      done: the finished stages, by name.
    """
    table = done["recommend"]
    return {
        "schema_version": SCHEMA_VERSION,
        "release": release,
        "created_at": table.finished_at,
        "rows": table.rows("topk"),
        "topk": [asdict(file) | {"path": f"{table.folder}/{file.path}"} for file in table.dataset("topk")],
        "metrics": table.metrics,
        "sources": list(done["ingest"].sources),
        "stages": {
            name: {
                "fingerprint": manifest.fingerprint,
                "digest": manifest.digest,
                "manifest": f"{manifest.folder.rpartition('/')[0]}/manifest.json",
                "folder": manifest.folder,
                "settings": manifest.settings,
                "metrics": manifest.metrics,
                "versions": manifest.versions,
                "started_at": manifest.started_at,
                "finished_at": manifest.finished_at,
            }
            for name, manifest in done.items()
        },
    }


def publish(workspace: Workspace, done: Mapping[str, StageManifest]) -> tuple[Latest, bool]:
    """Makes the release of a finished table, unless it exists, and points `LATEST` to it.

    Args:
      workspace: the output.
      done: the finished stages, by name, `recommend` among them.

    Returns:
      What `LATEST` says now, and whether that is new.
    """
    release = release_of(done["recommend"])
    manifest = release_manifest(release, done)
    latest = Latest(release, workspace.release_manifest(release), tuple(file["path"] for file in manifest["topk"]))
    path = join(workspace.root, latest.manifest)
    if not exists(path):
        write_json(path, manifest)
    if read_latest(workspace) == latest:
        return latest, False
    for stage in done.values():
        check_complete(workspace.root, stage, "topk" if stage.stage == "recommend" else None)
    write_latest(workspace, latest)
    return latest, True


if __name__ == "__main__":
    from pipelines.run import run_alone

    sys.exit(run_alone("publish"))
