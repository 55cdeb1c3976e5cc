"""Reads ratings and items, sets aside rows that cannot be used, with the reason, and splits the rest by user."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow.compute as pc

from pipelines.cli.logs import LOGGER
from pipelines.cli.settings import IngestSettings
from pipelines.engine.stage import Chain, Reports, Stage, StageDefinition
from pipelines.stages.outputs import IngestOutputs
from schemas.blocks import Block, one_block
from schemas.errors import InputError
from schemas.forgotten import Forgotten, read_forgotten
from schemas.interactions import INTERACTIONS
from schemas.items import with_features
from schemas.manifest import StageManifest
from schemas.rejected import REJECTED
from schemas.users import USERS
from schemas.words import are, counted
from schemas.workspace import Workspace
from transforms.ingest.catalogue import BuildCatalogue
from transforms.ingest.histories import HELD_OUT, HELD_OUT_TWICE, RATINGS, SplitByUser
from transforms.ingest.id_forms import Forms, odd_forms
from transforms.ingest.join_ids import FEW, JOINED, OTHERS, JoinIds, in_words, nothing_joins
from transforms.ingest.leave_out import LeaveOut, Unwanted
from transforms.ingest.read_source import ReadBlocks
from transforms.ingest.rejects import check_rejected
from transforms.ingest.sources import Source, resolve_held_out, resolve_items, resolve_ratings, text_bytes_of
from transforms.ingest.split import FindCut, FindLatest, SplitSettings
from transforms.ingest.validate import ValidateItems, ValidateRatings
from transforms.io.progress import CountBlocks
from transforms.io.write import Part, WriteParts
from transforms.train.features import in_catalogue

DAY_SECONDS = 86_400

FORGOTTEN = "forgotten"
"""The setting that stands for those who were left out, where anyone was."""

BUCKET_BYTES = 64 << 20
"""About how much of the ratings, as text, goes to one bucket of users: a worker holds a bucket in memory."""


def plan(chain: Chain) -> "Stage[IngestJob]":
    """Looks at the sources and returns the stage.

    Raises:
      InputError: if a source cannot be read, or lacks a column that the split or a feature needs, or if it is unknown who is
        to be forgotten.
    """
    settings, ask = chain.settings, chain.settings.ingest
    forgotten = read_forgotten(Workspace(settings.output))
    sources = resolve_sources(ask)
    check_columns(sources.ratings, ask)
    if settings.training.looks_at_features:
        in_catalogue(settings.training.features, sources.items.description() if sources.items else None)
    num_buckets = ask.num_buckets or kept_buckets(chain) or default_buckets(sources.ratings)

    def check(metrics: Mapping[str, Any], folder: str) -> None:
        try:
            for source in sources.given:
                if metrics[rows_read(source.dataset)]["rows"] == 0 < metrics.get(rows_forgotten(source.dataset), 0):
                    continue  # What is left of the ratings is judged below; a catalogue may well have named nothing else.
                check_rejected(metrics[rows_read(source.dataset)], ask.max_rejected_fraction, source.dataset)
        except InputError as error:
            raise InputError(f"{error}. They are in {folder}/rejected") from error
        for source in sources.given:
            warn_of_forms(source.dataset, metrics)
        if sources.items:
            check_described(metrics, sources.items.uri)
        check_split(metrics, ask.split)

    return Stage(
        STAGE,
        settings={
            "rules": asdict(ask.rules),
            "split": asdict(ask.split),
            "num_buckets": num_buckets,
            "recency_half_life_days": ask.recency_half_life_days,
            **({FORGOTTEN: forgotten.digest} if forgotten.digest else {}),
        },
        inputs={},
        sources=[source.description() for source in sources.given],
        job=IngestJob(sources, ask, num_buckets, forgotten),
        check=check,
    )


class Sources(NamedTuple):
    """What the stage reads; only ratings are needed."""

    ratings: Source
    items: Source | None
    heldout: Source | None

    @property
    def given(self) -> list[Source]:
        """The sources that there are."""
        return [source for source in self if source]


def resolve_sources(ask: IngestSettings) -> Sources:
    """Finds every source that was asked for.

    Raises:
      InputError: if one cannot be read.
    """
    where = ask.tfds_data_dir
    return Sources(
        ratings=resolve_ratings(str(ask.ratings), ask.columns, where),
        items=resolve_items(ask.items, ask.item_columns, where) if ask.items else None,
        heldout=resolve_held_out(ask.heldout, ask.columns, where) if ask.heldout else None,
    )


@dataclass(frozen=True)
class IngestJob:
    """What the stage reads, and how."""

    sources: Sources
    ask: IngestSettings
    num_buckets: int
    forgotten: Forgotten


def build(root: beam.Pipeline, attempt: str, job: IngestJob) -> Reports:
    """Adds the stage's steps: ratings are read, validated and split by user; items are merged with what was rated."""
    checks = {
        RATINGS: ValidateRatings(job.ask.rules),
        "items": ValidateItems(),
        HELD_OUT: ValidateRatings(job.ask.rules),
    }
    read = {
        name: root | f"Read{name.title()}" >> ReadBlocks(source) for name, source in job.sources._asdict().items() if source
    }
    left_out = {}
    if job.forgotten.digest:
        unwanted = Unwanted.of(job.forgotten)
        remaining = {name: raw | f"LeaveOut{name.title()}" >> LeaveOut(unwanted) for name, raw in read.items()}
        read = {name: each.raw for name, each in remaining.items()}
        left_out = {name: each.left_out for name, each in remaining.items()}
    checked = {name: raw | f"Validate{name.title()}" >> checks[name] for name, raw in read.items()}
    valid = checked["ratings"].valid | "Progress" >> CountBlocks()
    newest = valid | "FindLatest" >> beam.CombineGlobally(FindLatest())
    latest = beam.pvalue.AsSingleton(newest)
    cut = None
    if job.ask.split.split == "temporal":
        cut = beam.pvalue.AsSingleton(valid | "FindCut" >> beam.CombineGlobally(FindCut(job.ask.split.holdout)))
    split = SplitByUser(job.ask.split, job.num_buckets, job.ask.recency_half_life_days * DAY_SECONDS, latest, cut)
    rated = {RATINGS: valid} | ({HELD_OUT: checked[HELD_OUT].valid} if HELD_OUT in checked else {})
    parts = rated | "SplitByUser" >> split
    described = [parts.item_counts, *(checked[name].valid for name in ("items",) if name in checked)]
    features = list(job.sources.items.other_columns) if job.sources.items else []
    catalogue = described | "GatherItems" >> beam.Flatten() | "BuildCatalogue" >> BuildCatalogue(features)
    joined = []
    if "items" in checked:
        sides = {"rated_items": parts.item_counts, OTHERS: checked["items"].valid}
        joined.append(sides | "JoinItems" >> JoinIds("item_id", job.num_buckets))
    rejected = [each.rejected for each in checked.values()]
    kept = rejected | "GatherRejected" >> beam.Flatten() | "PartRejected" >> beam.FlatMap(key_rejected, job.num_buckets)
    return [
        root | "ReportBuckets" >> beam.Create([{"num_buckets": job.num_buckets}]),
        newest | "ReportNewest" >> beam.Map(lambda seconds: {"newest_timestamp": seconds or None}),
        *(
            each.summary | f"Report{name.title()}" >> beam.Map(name_summary, job.sources._asdict()[name].dataset)
            for name, each in checked.items()
        ),
        *(
            each.forms | f"ReportIdsOf{name.title()}" >> beam.Map(name_forms, job.sources._asdict()[name].dataset)
            for name, each in checked.items()
        ),
        *joined,
        *(
            rows | f"ReportForgotten{name.title()}" >> beam.Map(name_forgotten, job.sources._asdict()[name].dataset)
            for name, rows in left_out.items()
        ),
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


def rows_read(dataset: str) -> str:
    """Returns the name of the metric that says how many rows of a source were read, and why some were rejected."""
    return f"{dataset.replace(' ', '_')}_read"


def rows_forgotten(dataset: str) -> str:
    """Returns the name of the metric that says how many rows of a source were left out; there only if any might be."""
    return f"{dataset.replace(' ', '_')}_forgotten"


def name_forgotten(rows: int, dataset: str) -> dict[str, int]:
    """Returns how many rows of a source were left out, under its name among the metrics."""
    return {rows_forgotten(dataset): rows}


def id_forms(dataset: str) -> str:
    """Returns the name of the metric that says what the ids of a source look like: see `transforms.ingest.id_forms`."""
    return f"{dataset.replace(' ', '_')}_id_forms"


def name_forms(forms: Forms, dataset: str) -> dict[str, Forms]:
    """Returns what the ids of a source look like, under its name among the metrics."""
    return {id_forms(dataset): forms}


def warn_of_forms(dataset: str, metrics: Mapping[str, Any]) -> None:
    """Warns of ids of a source that are likely not what was meant."""
    for line in odd_forms(dataset, metrics[id_forms(dataset)]):
        LOGGER.warning("%s", line)


def check_described(metrics: Mapping[str, Any], uri: str) -> None:
    """Says how many of the items that were rated the catalogue describes; raises InputError if it is none."""
    joined = metrics[JOINED]["rated_items"]
    if joined["ids"] and not joined["known"]:
        repair = (
            f"check that {uri} is of the same data, and that --columns item_id=NAME and --item_columns item_id=NAME name the "
            "right columns"
        )
        raise InputError(nothing_joins(joined, "item ids of the ratings", "the items", repair))
    few = joined["ids"] and joined["share"] < FEW
    log = LOGGER.warning if few or joined["spelled_otherwise"] else LOGGER.info
    log("item ids of the ratings: in the items, %s", in_words(joined))


def check_forgotten(output: str, ingested: StageManifest) -> None:
    """Raises InputError if others are to be forgotten now than when the sources were read."""
    if read_forgotten(Workspace(output)).digest != ingested.settings.get(FORGOTTEN):
        raise InputError(
            "the sources were read before it was asked to forget a user or an item, or to remember one: run the same command "
            "again, from pipelines.ingest on, and they are left out"
        )


def name_summary(summary: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """Returns a source's summary under its name among the metrics."""
    return {rows_read(dataset): summary}


def key_rejected(block: Block, num_buckets: int) -> Iterator[tuple[int, Block]]:
    """Spreads rejected blocks over as many files as there are buckets."""
    if block.num_rows:
        yield int(block["position"][0].as_py()) % num_buckets, block


def sort_rejected(key: int, blocks: Iterator[Block]) -> Part:
    """Sorts the rejected rows of a file as they stood in the source."""
    rows = one_block(blocks, REJECTED)
    order = pc.sort_indices(rows, [("dataset", "descending"), ("source", "ascending"), ("position", "ascending")])
    return key, [rows.take(order)]


def check_split(metrics: Mapping[str, Any], ask: SplitSettings) -> None:
    """Raises InputError if nothing is left to train on; warns where times are too coarse for the holdout that was asked for."""
    train, holdout = (metrics.get(name, 0) for name in ("rows_train", "rows_holdout"))  # Not there where no rows are left.
    twice = metrics.get(HELD_OUT_TWICE, 0)
    if twice:
        raise InputError(
            f"{counted(twice, 'pair')} of --heldout {are(twice)} among the ratings too, and would be judged by what was "
            "learned from: leave them out of either"
        )
    if ask.split == "given" and not holdout:
        raise InputError("--heldout has no positives to judge by: give another file, lower --min_rating, or use --split random")
    if not train:
        gone = metrics.get(rows_forgotten("ratings"), 0)
        low = metrics.get("rows_below_min_rating", 0)
        forgotten = f"{counted(gone, 'rating')} {are(gone)} of users or items that are to be forgotten, " if gone else ""
        below = f"{counted(low, 'rating')} {are(low)} below --min_rating, " if low else ""
        found = (
            f"there is nothing to train on: {forgotten}{below}{counted(holdout, 'positive')} {are(holdout)} held out by "
            f"--split {ask.split} --holdout {ask.holdout:g}"
        )
        if holdout and ask.split == "temporal" and not below:
            raise InputError(
                f"{found}, since {1 - ask.holdout:.0%} of the ratings or more have one and the same time, the earliest: check "
                "that the timestamp column has the time of each rating (--columns timestamp=NAME), or use --split random"
            )
        if holdout and ask.split == "temporal":
            repair = (
                "lower --min_rating, or, if most ratings have one and the same time, check the timestamp column "
                "(--columns timestamp=NAME), or use --split random"
            )
        elif holdout:
            repair = f"lower {'--min_rating or ' if below else ''}--holdout, or use --split none"
        elif below:
            repair = "lower --min_rating"
        else:
            repair = "give ratings of others too, or end that with python -m pipelines.releases forget --remember"
        raise InputError(f"{found}: {repair}")
    share = holdout / (train + holdout)
    if ask.split == "temporal" and not 0.5 < share / ask.holdout < 2:
        LOGGER.warning("--holdout %g holds out %.3f of the positives: many share a time, or repeat", ask.holdout, share)


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


def kept_buckets(chain: Chain) -> int | None:
    """Returns how many buckets of users the release has whose model is kept: in as many, its lists can be carried over."""
    return IngestOutputs.of(chain.base.stages["ingest"]).num_buckets if chain.base else None


def default_buckets(ratings: Source) -> int:
    """Returns how many buckets of users give each worker about `BUCKET_BYTES` of text.

    The lists do not count: another list must not make ingest run again.
    """
    return max(1, math.ceil(text_bytes_of(ratings) / BUCKET_BYTES))


STAGE = StageDefinition("ingest", __name__, plan, build, IngestOutputs)
