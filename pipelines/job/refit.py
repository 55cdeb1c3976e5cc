"""Publishes a table of a model that has learned from everything, once the same recipe has been evaluated: `--refit`.

    ingest, holding out ── train ── embed ── index ── recommend     evaluated: its metrics are the release's quality
                             │ which settings
    ingest, with all ────── train ── embed ── index ── recommend    published: histories and seen items include the holdout

The second chain is the same stages with other settings: `--split none`, exactly as many epochs as the evaluated training
took, without a validation slice, and the dimensions, L2, affinity weight and recency that it chose. So there is one definition
of a history, of which of two ratings of a pair counts, and of what is recent. It costs a second reading of the source, which is
little beside a second training; putting the holdout back into the users of the first reading could not do the same: of an item
that was rated before the cut and again after it, a temporal split keeps only the first.
"""

from collections.abc import Mapping
from dataclasses import replace

from pipelines.cli.settings import Settings
from pipelines.stages.ingest import FORGOTTEN
from pipelines.stages.outputs import TrainOutputs
from schemas.errors import InputError
from schemas.manifest import StageManifest


def settings_of_refit(settings: Settings, evaluated: Mapping[str, StageManifest]) -> Settings:
    """Returns the settings of the chain whose table is published.

    Args:
      settings: of the chain that is evaluated.
      evaluated: its finished stages; the training decides how many epochs the other one takes, and how scores are made.
    """
    ingest = replace(settings.ingest, split=replace(settings.ingest.split, split="none", holdout=0))
    training = settings.training
    if "train" in evaluated:
        found = TrainOutputs.of(evaluated["train"])
        training = replace(
            training, validation_fraction=0.0, epochs=found.epochs, blend=found.recency, chosen_by=None, **found.settings
        )
    return replace(settings, ingest=ingest, training=training, refit=False)


def check_same_sources(evaluated: StageManifest, published: StageManifest) -> None:
    """Raises InputError if the sources, or who is to be forgotten, have changed between the two readings."""
    forgotten = [read.settings.get(FORGOTTEN) for read in (evaluated, published)]
    if list(evaluated.sources) != list(published.sources) or forgotten[0] != forgotten[1]:
        what = "the sources have" if forgotten[0] == forgotten[1] else "who is to be forgotten has"
        raise InputError(
            f"{what} changed while the job ran, so the model that was evaluated and the one to be published would "
            "have learned from different data: run the same command again"
        )
