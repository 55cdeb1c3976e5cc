"""Makes the page that shows a release, and makes it again if it is missing."""

import hashlib
from typing import Any

from apache_beam.io.filesystem import BeamIOError

from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.parquet_files import read_parquet_blocks
from schemas.release import read_latest, read_release
from schemas.release_manifest import Release
from schemas.stage_files import CURVES_FILE
from schemas.storage import exists, join, read_json, replacing, sha256_of
from schemas.workspace import Workspace
from transforms.evaluate.describe_table import DATASETS
from transforms.report.curves import draw_curves
from transforms.report.facts import Report
from transforms.report.page import render


def report_of(workspace: Workspace, release: Release) -> str:
    """Returns the report on a release, a page of HTML.

    Raises:
      InputError: if a file that it needs is gone.
    """
    judged = release.stages.get("judge")
    if judged is None:
        raise InputError(
            f"release {release.name} was made by a program without gates, which measured too little for a report: publish again"
        )
    described = {name: _rows(workspace, judged, name) for name in DATASETS}
    before = release.evaluated.stages.get("train") if release.evaluated else None
    curves = [_curve(workspace, "the published model", release.stages["train"])]
    if before:
        curves.insert(0, _curve(workspace, "the model that was evaluated", before))
    return render(Report(release, curves, {name: rows for name, rows in described.items() if rows is not None}))


def curves_of(workspace: Workspace, release: Release) -> str:
    """Returns a chart of a release's training, an SVG.

    Raises:
      InputError: if the curve that it needs is gone.
    """
    _, curve = _curve(workspace, "the published model", release.stages["train"])
    return draw_curves(curve)


def _rows(workspace: Workspace, stage: StageManifest, dataset: str) -> list[dict[str, Any]] | None:
    """Returns the rows of a small dataset of a stage, or None where the stage has no such thing."""
    paths = stage.paths(workspace.root, dataset)
    if not paths:
        return None
    return [row for path in paths for block in read_parquet_blocks(path) for row in block.to_pylist()]


def _curve(workspace: Workspace, name: str, trained: StageManifest) -> tuple[str, list[Any]]:
    path = join(workspace.root, trained.folder, CURVES_FILE)
    try:
        return name, list(read_json(path)["epochs"])
    except (ValueError, KeyError, TypeError, FileNotFoundError, IsADirectoryError) as error:
        raise InputError(
            f"{path} is gone or damaged ({error!r}): delete the folder of its stage and run the same command again"
        ) from error


def restore(workspace: Workspace, release: Release) -> str:
    """Returns where a release's report is, and makes it again if it is gone or altered.

    Raises:
      InputError: if this version of the program cannot make the very same.
    """
    recorded = release.report
    if recorded is None:
        raise InputError(f"release {release.name} was published without a report: make one with --to FILE")
    path = join(workspace.root, recorded.path)
    if exists(path) and sha256_of(path) == recorded.sha256:
        return path
    page = report_of(workspace, release).encode()
    if hashlib.sha256(page).hexdigest() != recorded.sha256:
        raise InputError(
            f"{path} is gone or altered, and this version of the program makes another: use the version that published "
            f"release {release.name}, or write a new one elsewhere with --to FILE"
        )
    _write(path, page)
    return path


def _write(path: str, page: bytes) -> None:
    try:
        with replacing(path) as file:
            file.write(page)
    except (OSError, BeamIOError, ValueError) as error:
        raise InputError(f"{path} cannot be written ({error}): choose another place with --to FILE") from error


def _read_served(workspace: Workspace) -> Release:
    latest = read_latest(workspace)
    if latest is None:
        raise InputError(
            f"nothing is served below {workspace.root}: name a release with --release, or run python -m pipelines.run first"
        )
    return read_release(workspace, latest)
