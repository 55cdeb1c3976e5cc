"""How a stage hands on to later stages what it found: as typed values beside its metrics, which are for people."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

from schemas.errors import InputError
from schemas.manifest import StageManifest
from schemas.shape import Shape, check_shape
from schemas.workspace import Workspace


def output(shape: Shape, read: Callable[[Any], Any] = lambda value: value) -> Any:
    """Returns a field of a class of `Outputs`.

    Args:
      shape: of its value, as JSON.
      read: makes the field's value of that.
    """
    return dataclasses.field(metadata={"shape": shape, "read": read})


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a stage hands on: each field is the metric of its name."""

    @classmethod
    def of(cls, manifest: StageManifest) -> Self:
        """Returns what a finished stage hands on; releases of earlier programs have it among their metrics.

        Raises:
          InputError: if it is not what later stages need.
        """
        told = manifest.outputs or manifest.metrics
        try:
            check_shape(told, {each.name: each.metadata["shape"] for each in dataclasses.fields(cls)})
            return cls(**{each.name: each.metadata["read"](told.get(each.name)) for each in dataclasses.fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{manifest.stage} {manifest.fingerprint} does not say what later stages go by ({error}): delete "
                f"{Workspace.stage_of(manifest.folder)} and run the same command again, to make it anew"
            ) from error

    @classmethod
    def among(cls, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Returns which of a stage's metrics it hands on."""
        return {each.name: metrics[each.name] for each in dataclasses.fields(cls) if each.name in metrics}
