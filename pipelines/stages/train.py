"""Trains the two towers on the training part of the ratings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import apache_beam as beam

from pipelines.cli.logs import LOGGER
from pipelines.cli.settings import Settings
from pipelines.engine.stage import Chain, Kept, Reports, Stage, StageDefinition
from pipelines.stages.kept_model import kept_model
from pipelines.stages.kept_settings import with_kept_settings
from pipelines.stages.outputs import TrainOutputs
from schemas.manifest import StageManifest
from schemas.workspace import Workspace
from transforms.io.write import part_of
from transforms.train.features import in_catalogue
from transforms.train.rows import TrainingPaths
from transforms.train.settings import TrainingSettings
from transforms.train.training import TrainTowers

VALIDATION = {"random": "random", "given": "random", "temporal": "temporal", "last": "last", "none": "temporal"}
"""How to validate for each split of `ingest`: as the holdout was made, and for what is to come where nothing was held out."""


def plan(chain: Chain) -> "Stage[TrainJob] | Kept":
    """Returns the stage, which reads the training interactions, and the catalogue where the item tower looks at features.

    Where a release's model is kept, that is returned instead; where it is only its settings, these are part of the stage's.

    Raises:
      InputError: if the catalogue lacks a feature's column, or another model is kept than the settings describe.
    """
    settings, ingested = chain.settings, chain.done["ingest"]
    training = training_of(settings, ingested)
    if chain.base:
        return kept_model(training, chain.base)
    paths = paths_of(settings.output, ingested, [training])
    reads = ["interactions/train", *(["items"] if paths.items else [])]
    training = with_kept_settings(training, ingested, ingested.digest_of_datasets(reads), chain.last)
    return Stage(
        STAGE,
        settings=asdict(training),
        inputs={"ingest": ingested},
        reads={"ingest": reads},
        job=TrainJob(paths, training, settings.checkpoint_secs),
        check=lambda metrics, folder: warn_of_features(metrics),
    )


def training_of(settings: Settings, ingested: StageManifest) -> TrainingSettings:
    """Returns how to train on what `ingested` kept, which knows of its split and of what is recent.

    Features are by the catalogue's names, none where the tower looks at none.

    Raises:
      InputError: if the catalogue lacks a feature's column.
    """
    training = replace(
        settings.training,
        validation=VALIDATION[ingested.settings["split"]["split"]],
        half_life_days=ingested.settings["recency_half_life_days"],
    )
    if not training.looks_at_features:
        return replace(training, features=())
    described = next((source for source in ingested.sources if source["dataset"] == "items"), None)
    return replace(training, features=in_catalogue(training.features, described))


def paths_of(output: str, ingested: StageManifest, trainings: Sequence[TrainingSettings]) -> TrainingPaths:
    """Returns the files that some trainings read: the catalogue only where one looks at features."""
    items: list[str] = []
    if any(training.features for training in trainings):
        items = sorted(ingested.paths(output, "items"), key=part_of)
    return TrainingPaths(ingested.paths(output, "interactions/train"), items)


@dataclass(frozen=True)
class TrainJob:
    """What to train on, and how."""

    paths: TrainingPaths
    settings: TrainingSettings
    checkpoint_secs: float


def build(root: beam.Pipeline, attempt: str, job: TrainJob) -> Reports:
    """Adds the stage's steps: one element, the files to read, through one worker that trains.

    Checkpoints lie beside the attempt, in the folder of the stage, so that the next attempt at the same stage goes on.
    """
    checkpoints = Workspace.checkpoints_beside(attempt)
    trained = root | "TrainTowers" >> TrainTowers(job.paths, attempt, job.settings, checkpoints, job.checkpoint_secs)
    return [
        trained | "Files" >> beam.FlatMap(lambda made: made[0]),
        trained | "Metrics" >> beam.Map(lambda made: made[1]),
    ]


def warn_of_features(metrics: Mapping[str, Any]) -> None:
    """Says which features were left out, or say less than they might."""
    for column, found in metrics.get("features", {}).items():
        if found["warning"]:
            LOGGER.warning("the feature %s %s", column, found["warning"])


STAGE = StageDefinition("train", __name__, plan, build, TrainOutputs)
