"""Embeds the catalogue with the item tower."""

from collections.abc import Sequence
from dataclasses import dataclass

import apache_beam as beam

from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.outputs import EmbedOutputs, TrainOutputs
from schemas.embeddings import embeddings_schema
from schemas.stage_files import ITEM_TOWER
from schemas.stored import StoredFolder
from transforms.index.embed import DigestEmbeddings, EmbedItems
from transforms.io.progress import CountBlocks
from transforms.io.read import ReadParts
from transforms.io.write import WritePlacedBlocks, part_of


def plan(chain: Chain) -> "Stage[EmbedJob]":
    """Returns the stage, which reads the catalogue and the item tower."""
    settings, done = chain.settings, chain.done
    trained = done["train"]
    tower = trained.stored(settings.output, ITEM_TOWER)
    parts = {part_of(path): path for path in done["ingest"].paths(settings.output, "items")}
    outputs = TrainOutputs.of(trained)
    return Stage(
        STAGE,
        settings={},
        inputs={name: done[name] for name in ("ingest", "train")},
        reads={"ingest": ["items"], "train": [ITEM_TOWER]},
        job=EmbedJob(parts, outputs.feature_columns, tower, outputs.dim),
    )


@dataclass(frozen=True)
class EmbedJob:
    """What to embed, with which tower."""

    parts: dict[int, str]
    features: Sequence[str]
    tower: StoredFolder
    dim: int


def build(root: beam.Pipeline, attempt: str, job: EmbedJob) -> Reports:
    """Adds the stage's steps: blocks of items pass through the tower, and those that it knows are written."""
    items = (
        root
        | "ReadItems" >> ReadParts(job.parts, list(dict.fromkeys(["item_id", *job.features])))
        | "Progress" >> CountBlocks()
    )
    embeddings = items | "EmbedItems" >> EmbedItems(job.tower, job.dim)
    return [
        embeddings | "WriteEmbeddings" >> WritePlacedBlocks(attempt, "embeddings", embeddings_schema(job.dim)),
        embeddings | "DigestEmbeddings" >> DigestEmbeddings("embeddings"),
        root | "ReportDim" >> beam.Create([{"dim": job.dim}]),
    ]


STAGE = StageDefinition("embed", __name__, plan, build, EmbedOutputs)
