"""Reads ratings and items, keeps what cannot be used with its reason, and splits the rest by user.

python -m pipelines.ingest --ratings ratings.csv --items items.csv --output DIR
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc

from pipelines.settings import IngestSettings, Settings
from pipelines.stage import Reports, Stage
from schemas.blocks import Block, one_block
from schemas.errors import InputError
from schemas.interactions import INTERACTIONS
from schemas.items import with_features
from schemas.manifest import StageManifest
from schemas.rejected import REJECTED
from schemas.users import USERS
from transforms.catalogue import BuildCatalogue
from transforms.histories import SplitByUser
from transforms.progress import CountBlocks
from transforms.sources import ReadBlocks, Source, resolve_items, resolve_ratings
from transforms.split import FindCut
from transforms.validate import ValidateItems, ValidateRatings, check_rejected
from transforms.write import Part, WriteParts

BUCKET_BYTES = 64 << 20
"""About how much of the ratings, as text, goes to one bucket of users: a worker holds a bucket in memory."""
_TEXT_BYTES_A_BYTE = {"csv": 1, "tsv": 1, "atomic": 1, "tfds": 25}
"""How much text a byte of a source stands for; 4 for what is compressed. A TFDS split's size is in examples."""


def stage(settings: Settings, done: Mapping[str, StageManifest]) -> Stage:
    """Looks at the sources and returns the stage.

    Raises:
      InputError: if a source cannot be read, or lacks a column that the split needs.
    """
    ask = settings.ingest
    ratings = resolve_ratings(str(ask.ratings), ask.columns, ask.tfds_data_dir)
    items = resolve_items(ask.items, ask.item_columns, ask.tfds_data_dir) if ask.items else None
    check_columns(ratings, ask)
    num_buckets = ask.num_buckets or default_buckets(ratings)

    def check(metrics: Mapping[str, Any], folder: str) -> None:
        try:
            check_rejected(metrics["ratings"], ask.max_rejected_fraction, "ratings")
            if items:
                check_rejected(metrics["items"], ask.max_rejected_fraction, "items")
        except InputError as error:
            raise InputError(f"{error}. They are in {folder}/rejected") from error

    return Stage(
        name="ingest",
        module=__name__,
        settings={"rules": asdict(ask.rules), "split": asdict(ask.split), "num_buckets": num_buckets},
        inputs={},
        sources=[source.description() for source in (ratings, items) if source],
        build=lambda root, attempt: build(root, attempt, ratings, items, ask, num_buckets),
        check=check,
    )


def build(
    root: beam.Pipeline, attempt: str, ratings: Source, items: Source | None, ask: IngestSettings, num_buckets: int
) -> Reports:
    """Adds the stage's steps: ratings are read, validated and split by user; items are merged with what was rated."""
    checked = root | "ReadRatings" >> ReadBlocks(ratings) | "ValidateRatings" >> ValidateRatings(ask.rules)
    valid = checked.valid | "Progress" >> CountBlocks()
    cut = None
    if ask.split.split == "temporal":
        cut = beam.pvalue.AsSingleton(valid | "FindCut" >> beam.CombineGlobally(FindCut(ask.split.holdout)))
    parts = valid | "SplitByUser" >> SplitByUser(ask.split, num_buckets, cut)
    described, rejected, features = [parts.item_counts], [checked.rejected], []
    reports = [checked.summary | "ReportRatings" >> beam.Map(lambda summary: {"ratings": summary, "num_buckets": num_buckets})]
    if items:
        checked_items = root | "ReadItems" >> ReadBlocks(items) | "ValidateItems" >> ValidateItems()
        features = list(items.other_columns)
        described.append(checked_items.valid)
        rejected.append(checked_items.rejected)
        reports.append(checked_items.summary | "ReportItems" >> beam.Map(lambda summary: {"items": summary}))
    catalogue = described | "GatherItems" >> beam.Flatten() | "BuildCatalogue" >> BuildCatalogue(features)
    kept = rejected | "GatherRejected" >> beam.Flatten() | "PartRejected" >> beam.FlatMap(key_rejected, num_buckets)
    return [
        *reports,
        parts.metrics,
        catalogue.metrics,
        parts.users | "WriteUsers" >> WriteParts(attempt, "users", USERS),
        parts.train | "WriteTrain" >> WriteParts(attempt, "interactions/train", INTERACTIONS),
        parts.holdout | "WriteHoldout" >> WriteParts(attempt, "interactions/holdout", INTERACTIONS),
        catalogue.items | "WriteItems" >> WriteParts(attempt, "items", with_features(features)),
        kept
        | "GroupRejected" >> beam.GroupByKey()
        | "SortRejected" >> beam.MapTuple(sort_rejected)
        | "WriteRejected" >> WriteParts(attempt, "rejected", REJECTED),
    ]


def key_rejected(block: Block, num_buckets: int) -> Iterator[tuple[int, Block]]:
    """Spreads rejected blocks over as many files as there are buckets."""
    yield int(block["position"][0].as_py()) % num_buckets, block


def sort_rejected(key: int, blocks: Iterator[Block]) -> Part:
    """Sorts the rejected rows of a file as they stood in the source."""
    rows = one_block(blocks, REJECTED)
    order = pc.sort_indices(rows, [("dataset", "descending"), ("source", "ascending"), ("position", "ascending")])
    return key, [rows.take(order)]


def check_columns(ratings: Source, ask: IngestSettings) -> None:
    """Raises InputError if the ratings lack a column that the settings need."""
    if ask.split.split in ("temporal", "last") and "timestamp" not in ratings.columns:
        raise InputError(
            f"--split {ask.split.split} needs times, and {ratings.uri} has no timestamp column: "
            "name it with --columns timestamp=…, or use --split random"
        )
    if ask.split.min_rating is not None and "rating" not in ratings.columns:
        raise InputError(
            f"--min_rating {ask.split.min_rating:g} needs ratings, and {ratings.uri} has no rating column: "
            "name it with --columns rating=…, or leave --min_rating out"
        )


def default_buckets(ratings: Source) -> int:
    """Returns how many buckets of users give each worker about `BUCKET_BYTES` of text."""
    ratio = _TEXT_BYTES_A_BYTE.get(ratings.format, 4)
    return max(1, math.ceil(sum(file.size for file in ratings.files) * ratio / BUCKET_BYTES))


if __name__ == "__main__":
    from pipelines.run import run_alone

    sys.exit(run_alone("ingest"))
