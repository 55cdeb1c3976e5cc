"""Keeps the settings that an earlier training chose, so that a nightly run does not pay for the choice again.

The training of the first night chooses the weight of L2, the dimensions and how much recent popularity counts, on a slice of
its ratings. The next nights take these, as long as they are asked for the same and the ratings are about as many.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace

from pipelines.stages.outputs import TrainOutputs
from schemas.manifest import StageManifest, as_json, fingerprint_of
from schemas.release_manifest import Release
from transforms.train.settings import ChosenBy, TrainingSettings

MOST_GROWTH = 2.0
"""How many times as many ratings, or as few, there may be as when the settings were chosen."""


def with_kept_settings(
    training: TrainingSettings, ingested: StageManifest, data: str, last: Release | None
) -> TrainingSettings:
    """Returns how to train, with what an earlier training has chosen where that still holds.

    Where the very ratings of today were chosen by, nothing is kept: the training that did so is found again.

    Args:
      training: as the flags say.
      ingested: what is read today.
      data: the digest of what training reads of it.
      last: the release that is served, if there is one.
    """
    trained = _trained(last) if last and training.leaves_open else None
    if trained is None:
        return training
    chosen_by = _chosen_by(trained)
    num_rows = sum(file.rows for file in ingested.files if file.path.startswith("interactions/train"))
    if (
        chosen_by.asked != fingerprint_of(as_json(asdict(training)))
        or chosen_by.data == data
        or not chosen_by.rows / MOST_GROWTH <= num_rows <= chosen_by.rows * MOST_GROWTH
    ):
        return training
    found = TrainOutputs.of(trained)
    epochs = 0 if found.epochs == 0 else training.epochs
    return replace(training, epochs=epochs, blend=found.recency, chosen_by=chosen_by, **found.settings)


def _trained(last: Release) -> StageManifest | None:
    """Returns the training that was asked to choose; None for one of an earlier program, which did not."""
    stages: Mapping[str, StageManifest] = (last.evaluated.stages if last.evaluated else None) or last.stages
    trained = stages.get("train")
    return trained if trained and "settings" in trained.outputs else None


def _chosen_by(trained: StageManifest) -> ChosenBy:
    """Returns which training chose the settings of this one: another, or itself."""
    kept = trained.settings.get("chosen_by")
    if kept:
        return ChosenBy(**kept)
    return ChosenBy(
        fingerprint_of(as_json(trained.settings)), trained.inputs["ingest"]["digest"], trained.metrics["train_rows"]
    )
