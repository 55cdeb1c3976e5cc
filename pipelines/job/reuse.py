"""Keeps the towers of a release for a new table: `--reuse_model_from RELEASE`, the daily case between two trainings.

    ingest ── train ─── embed ── index ── calibrate ── recommend ── judge ── publish
       │      of the      │        │          │            └ unchanged lists of the release are copied
       │      release     │        │          └ the search settings of the release, if the index is the same
       │                  │        └ skipped if the embeddings are the same
       │                  └ the catalogue of today, through the item tower of the release
       └ the ratings of today, in as many buckets of users

With --refit, nothing is held out, and the evaluation is that of the release, whose model is reused. Without it, the model is
evaluated again, on today's holdout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipelines.cli.settings import Settings
from pipelines.engine.stage import Chain
from pipelines.job.refit import settings_of_refit
from pipelines.stages import ingest
from schemas.errors import InputError
from schemas.manifest import as_json, damage_of
from schemas.release import find_withdrawals, read_latest, read_named, read_release
from schemas.release_manifest import Release
from schemas.stage_files import ITEM_TOWER, USER_TOWER
from schemas.storage import exists, join
from schemas.workspace import Workspace

LATEST = "LATEST"


def find_base(settings: Settings) -> Release | None:
    """Finds the release whose model is to be kept, if that was asked for.

    Where `LATEST` was itself made with the model of a release before it, from the very ratings of today, that earlier one
    is meant: the same command given twice finds all done.

    Raises:
      InputError: if there is no such release, or it cannot be built on with these settings.
    """
    name = settings.reuse_model_from
    if name is None:
        return None
    if not settings.ingest.ratings:
        raise InputError("--reuse_model_from makes a table of ratings: give --ratings and all other flags again")
    workspace = Workspace(settings.output)
    base = _read(workspace, name)
    if base.refitted != settings.refit:
        repair = "give --refit too" if base.refitted else "leave --refit out"
        raise InputError(
            f"release {base.name} was made with{'' if base.refitted else 'out'} --refit, and its model can only be kept in "
            f"the same way: {repair}"
        )
    earlier = _base_before(workspace, base) if name == LATEST else None
    if earlier and _ingest_of(settings, earlier) == base.stages["ingest"].fingerprint:
        base = earlier
    check_split(settings, base)
    check_files(workspace, base)
    return base


def _base_before(workspace: Workspace, base: Release) -> Release | None:
    """Returns the release that another was built on, where that can still be built on."""
    if base.base is None or not exists(join(workspace.root, workspace.release_manifest(base.base.release))):
        return None
    try:
        return _read(workspace, base.base.release)
    except InputError:
        return None


def check_split(settings: Settings, base: Release) -> None:
    """Makes sure that a model is evaluated by what was held out of its training.

    Raises:
      InputError: if other ratings are to be held out, or counted as positives, than when the model was trained.
    """
    asked, then = as_json(asdict(settings.ingest.split)), base.evaluated.split if base.evaluated else {}
    for name, value in asked.items():
        if name in then and then[name] != value:
            raise InputError(
                f"the model of release {base.name} was trained with {name} {then[name]!r}, these flags ask for {value!r}, "
                "and would judge it by what it has learned from: give the same as then, or leave --reuse_model_from out"
            )


_READ: Mapping[str, Sequence[str]] = {
    "ingest": ["users"],
    "lists": ["users"],
    "train": [USER_TOWER, ITEM_TOWER],
    "embed": ["embeddings"],
    "recommend": ["topk"],
}
"""The stages of a release that are built on, and what of them is read as it is."""


def check_files(workspace: Workspace, base: Release) -> None:
    """Makes sure that nothing is copied from damaged files.

    Raises:
      InputError: naming the first one.
    """
    for name, datasets in _READ.items():
        if name not in base.stages:
            continue  # Releases of earlier programs have no lists.
        damage = damage_of(workspace.root, base.stages[name], datasets)
        if damage:
            raise InputError(
                f"release {base.name} cannot be built on, {damage}: name another release with --reuse_model_from, or leave "
                "it out to train anew"
            )


def _ingest_of(settings: Settings, base: Release) -> str:
    """Returns the fingerprint of the ingest stage of the table to be published."""
    return ingest.plan(Chain(settings_of_refit(settings, {}) if settings.refit else settings, base=base)).fingerprint


def _read(workspace: Workspace, name: str) -> Release:
    if name == LATEST:
        latest = read_latest(workspace)
        if latest is None:
            raise InputError(
                f"there is no release below {workspace.root} whose model could be kept: run once without --reuse_model_from"
            )
        base = read_release(workspace, latest)
    else:
        base = read_named(workspace, name)
    if not base.can_be_kept:
        raise InputError(
            f"release {base.name} did not pass its gates, or was made by an earlier version of this program: name another "
            "with --reuse_model_from, or run without it"
        )
    withdrawn = next((each for each in find_withdrawals(workspace) if each.release == base.name), None)
    if withdrawn:
        raise InputError(
            f"release {base.name} was rolled back at {withdrawn.at}: name another with --reuse_model_from, or serve it "
            "again with python -m pipelines.releases rollback and its name"
        )
    return base
