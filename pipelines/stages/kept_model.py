"""Keeps the model of a release, where it is the one that the settings describe."""

from dataclasses import asdict

from pipelines.engine.stage import Kept
from pipelines.stages.outputs import TrainOutputs
from schemas.errors import InputError
from schemas.manifest import as_json
from schemas.release_manifest import Release
from transforms.train.settings import TrainingSettings

_OF_REFIT = ("validation", "validation_fraction", "epochs", "blend", "chosen_by")
"""Settings of a training that a refit takes from the evaluation; how long a model that is kept was trained does not matter."""


_CHOSEN = ("dim", "l2", "popularity_exponent")
"""Settings that a training chooses where none is asked for."""


def kept_model(asked: TrainingSettings, base: Release) -> Kept:
    """Returns the training that made the model of a release, once it is sure that it is the one that was asked for.

    Args:
      asked: how to train on what is read today.
      base: the release.

    Raises:
      InputError: naming a flag that asks for another model.
    """
    trained = base.stages["train"]
    kept = {**trained.settings, **TrainOutputs.of(trained).settings}
    for name, value in as_json(asdict(asked)).items():
        if name in _CHOSEN and value is None:
            continue
        if name not in _OF_REFIT and name in kept and kept[name] != value:
            raise InputError(
                f"the model of release {base.name} was trained with {name} {kept[name]!r}, these flags ask for {value!r}: "
                "give the same as then, or leave --reuse_model_from out to train anew"
            )
    return Kept(base.stages["train"], base.name)
