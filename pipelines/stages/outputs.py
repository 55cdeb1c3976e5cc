"""What later stages go by, of what a stage found: the `outputs` of its manifest, checked as they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.engine.outputs import Outputs, output
from schemas.shape import AtLeast, Each, Maybe
from transforms.search.search import SearchSettings
from transforms.train.recency import Blend, blend_of


@dataclass(frozen=True)
class IngestOutputs(Outputs):
    """Of ingest."""

    num_buckets: int = output(AtLeast(1))
    """Of users."""
    newest_timestamp: int | None = output(Maybe(int))
    """Unix seconds; None where ratings have no times."""


@dataclass(frozen=True)
class TrainOutputs(Outputs):
    """Of training."""

    dim: int = output(AtLeast(1))
    """Of the vectors that the towers give."""
    epochs: int = output(AtLeast(0))
    """How many passes over the ratings it took."""
    recency: Blend = output(dict, blend_of)
    """How scores are made."""
    feature_columns: tuple[str, ...] = output(Maybe([str]), lambda columns: tuple(columns or ()))
    """What the item tower looks at."""
    settings: Mapping[str, Any] = output(
        Maybe({"dim": AtLeast(1), "l2": float, "popularity_exponent": Maybe(float)}), lambda settings: settings or {}
    )
    """What was given or chosen, by the names of `TrainingSettings`; empty in releases of earlier programs."""


@dataclass(frozen=True)
class EmbedOutputs(Outputs):
    """Of embedding the catalogue."""

    dim: int = output(AtLeast(1))
    """Of the vectors."""
    contents: Mapping[str, str] = output(Maybe(Each(str)), lambda contents: contents or {})
    """A digest of the vectors and their ids: see `schemas.manifest.CONTENTS`."""


@dataclass(frozen=True)
class IndexOutputs(Outputs):
    """Of building the index."""

    num_shards: int = output(AtLeast(1))


@dataclass(frozen=True)
class CalibrateOutputs(Outputs):
    """Of making the index ready to be searched."""

    search: SearchSettings = output(dict, lambda search: SearchSettings(**search))
    """How the index is to be searched."""
