"""Keeps the towers of a release for a new table: `--reuse_model_from RELEASE`, the daily case between two trainings.

    ingest ── train ─── embed ── index ── recommend ── judge ── publish
       │      of the      │        │          └ lists of the release are carried over to users for whom they hold still
       │      release     │        └ taken over where the embeddings are the same
       │                  └ the catalogue of today, through the item tower of the release
       └ the ratings of today, in as many buckets of users

With --refit, nothing is held out, and the evaluation is that of the release: its model is the one that is kept. Without, the
model is evaluated anew, by what is held out today.
"""

from dataclasses import asdict, replace

from pipelines import ingest
from pipelines.refit import settings_of_refit
from pipelines.settings import Settings
from pipelines.train import training_of
from schemas.errors import InputError
from schemas.manifest import StageManifest, check_complete, plain
from schemas.release import Base, base_of, find_withdrawals, read_latest, read_named, read_release
from schemas.storage import exists, join
from schemas.workspace import Workspace

LATEST = "LATEST"

_OF_REFIT = ("validation", "validation_fraction", "max_epochs", "patience", "blend")
"""Settings of a training that a refit takes from the evaluation."""


def with_base(settings: Settings) -> Settings:
    """Finds the release whose model is to be kept, if that was asked for.

    Where `LATEST` was itself made with the model of a release before it, from the very ratings of today, that earlier one
    is meant: the same command given twice finds all done.

    Raises:
      InputError: if there is no such release, or it cannot be built on with these settings.
    """
    name = settings.reuse_model_from
    if name is None:
        return settings
    workspace = Workspace(settings.output)
    base = _read(workspace, name)
    if base.refitted != settings.refit:
        repair = "give --refit too" if base.refitted else "leave --refit out"
        raise InputError(
            f"release {base.release} was made with{'' if base.refitted else 'out'} --refit, and its model can only be kept in "
            f"the same way: {repair}"
        )
    before = base.manifest.get("base")
    if name == LATEST and before and exists(join(workspace.root, workspace.release_manifest(before["release"]))):
        earlier = replace(settings, base=_read(workspace, before["release"]))
        if _ingest_of(earlier) == base.stages["ingest"].fingerprint:
            return earlier
    return replace(settings, base=base)


def _ingest_of(settings: Settings) -> str:
    """Returns the fingerprint of the ingest stage of the table to be published."""
    chain = settings_of_refit(settings, {}) if settings.refit else settings
    return ingest.stage(chain, {}).fingerprint if settings.ingest.ratings else ""


def _read(workspace: Workspace, name: str) -> Base:
    if name == LATEST:
        latest = read_latest(workspace)
        if latest is None:
            raise InputError(
                f"there is no release below {workspace.root} whose model could be kept: run once without --reuse_model_from"
            )
        manifest = read_release(workspace, latest)
    else:
        manifest = read_named(workspace, name)
    base = base_of(manifest)
    if not base.can_be_kept:
        raise InputError(
            f"release {base.release} did not pass its gates, or was made by an earlier version of this program: name another "
            "with --reuse_model_from, or run without it"
        )
    withdrawn = next((each for each in find_withdrawals(workspace) if each.release == base.release), None)
    if withdrawn:
        raise InputError(
            f"release {base.release} was rolled back at {withdrawn.at}: name another with --reuse_model_from, or serve it "
            "again with python -m pipelines.releases rollback and its name"
        )
    return base


def kept_model(settings: Settings, base: Base, ingested: StageManifest) -> StageManifest:
    """Returns the training that made the model of a release, once it is sure that it is the one that the flags describe.

    Args:
      settings: of the job, as they were given.
      base: the release.
      ingested: what is read today.

    Raises:
      InputError: naming a flag that asks for another model, features that the catalogue describes no longer, or a file of the
        model that is gone.
    """
    check_complete(settings.output, base.stages["train"])
    asked, kept = training_of(settings, ingested), base.stages["train"].settings
    for name, value in plain(asdict(asked)).items():
        if name not in _OF_REFIT and name in kept and kept[name] != value:
            raise InputError(
                f"the model of release {base.release} was trained with {name} {kept[name]!r}, these flags ask for {value!r}: "
                "give the same as then, or leave --reuse_model_from out to train anew"
            )
    return base.stages["train"]
