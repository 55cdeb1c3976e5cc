"""Builds the catalogue: every item once, in order of its id, with its code, its counts and what the source says of it.

The order is global, so that code order is id order, whatever the number of workers: items are cut into ranges of ids, each
range is sorted by one worker, and an item's code is its rank in its range plus the number of items in the ranges before.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block, in_blocks, joined, one_block, text_lengths
from schemas.items import with_features
from transforms.ingest.histories import ITEM_COUNTS, MILLION
from transforms.io.partition import hash_ids, split_by_key
from transforms.io.write import Counts, Part

SAMPLE_IDS = 1 << 16
ITEMS_A_RANGE = 1 << 20
"""About how many items one worker sorts, and one file holds."""
BYTES_A_RANGE = 256 << 20
"""About how much text of the items' rows one worker sorts: descriptions may be long, and ids are counted in many buckets."""


class SampledIds(NamedTuple):
    """A bottom-k sample of the different ids seen: those whose hashes are smallest.

    Attributes:
      hashes: [m] uint64, ascending.
      ids: [m] string.
      text_bytes: [m] int64: how much text there is in all rows of each.
    """

    hashes: np.ndarray
    ids: pa.Array
    text_bytes: np.ndarray


class FindRanges(beam.CombineFn):
    """Finds ids that cut the catalogue into ranges of about `items_a_range` items, or of fewer where their text is long.

    The sample that it keeps gives both the number of different ids (exact while all fit the sample) and their quantiles: Beyer
    et al. 2007, "On synopses for distinct-value estimation under multiset operations". An id is in the sample of all rows only
    if it is in that of every part that has it, so what is added up of its rows is exact.

    Args:
      items_a_range: about how many items a range holds, at most.
      sample_ids: how many ids are kept.
      bytes_a_range: about how much text the rows of a range hold, at most.
    """

    def __init__(
        self, items_a_range: int = ITEMS_A_RANGE, sample_ids: int = SAMPLE_IDS, bytes_a_range: int = BYTES_A_RANGE
    ) -> None:
        super().__init__()
        self._items_a_range = items_a_range
        self._sample_ids = sample_ids
        self._bytes_a_range = bytes_a_range

    def create_accumulator(self) -> SampledIds:
        return SampledIds(np.empty(0, np.uint64), pa.array([], pa.string()), np.empty(0, np.int64))

    def add_input(self, sample: SampledIds, block: Block) -> SampledIds:
        encoded = block["item_id"].dictionary_encode()
        lengths = np.sum([text_lengths(column) for column in block.columns], axis=0)
        text_bytes = np.bincount(encoded.indices.to_numpy(), lengths, minlength=len(encoded.dictionary)).astype(np.int64)
        return self.merge_accumulators(
            [sample, SampledIds(hash_ids(encoded.dictionary, seed=2), encoded.dictionary, text_bytes)]
        )

    def merge_accumulators(self, samples: Iterable[SampledIds]) -> SampledIds:
        samples = list(samples)
        hashes = np.concatenate([sample.hashes for sample in samples])
        ids = pa.concat_arrays([sample.ids for sample in samples])
        smallest, first, place = np.unique(hashes, return_index=True, return_inverse=True)
        text_bytes = np.bincount(place, np.concatenate([sample.text_bytes for sample in samples]), minlength=len(smallest))
        kept = slice(self._sample_ids)
        return SampledIds(smallest[kept], ids.take(pa.array(first[kept])), text_bytes[kept].astype(np.int64))

    def extract_output(self, sample: SampledIds) -> list[str]:
        count = len(sample.hashes)
        if not count:
            return []
        estimate = count if count < self._sample_ids else (count - 1) / (float(sample.hashes[-1]) / 2.0**64)
        order = pc.sort_indices(sample.ids)
        # The share of a range that each id takes; a range ends where the shares before come to a whole number of equal parts.
        share = np.maximum(1 / self._items_a_range, sample.text_bytes[order.to_numpy()] / self._bytes_a_range)
        before = np.cumsum(share) - share
        ranges = max(1, min(count, round(share.sum() * estimate / count)))
        first = np.searchsorted(before, share.sum() * np.arange(1, ranges) / ranges * (1 - 1e-12))
        return sample.ids.take(order).take(pa.array(np.unique(first[first < count]))).to_pylist()


def range_of(ids: pa.Array, cuts: list[str]) -> np.ndarray:
    """Returns [n] int64: how many of `cuts` (ascending) are at or before each id, in the order of their bytes."""
    if not cuts:
        return np.zeros(len(ids), np.int64)
    # A stable sort of the cuts followed by the ids: a cut comes before an id that equals it.
    order = pc.sort_indices(pa.concat_arrays([pa.array(cuts, pa.string()), ids])).to_numpy().astype(np.int64)
    passed = np.cumsum(order < len(cuts))
    ranges = np.empty(len(order), np.int64)
    ranges[order] = passed
    return ranges[len(cuts) :]


class MergedRange(NamedTuple):
    """The items of one range of ids, sorted by id, and how many rows of the source repeated one of them."""

    items: pa.Table
    repeated: int


_SHORTER = "shorten the text of the items' columns, or leave the longest column out"


def merge_range(blocks: Iterable[Block], features: list[pa.Field]) -> MergedRange:
    """Merges all that is known of the items of one range into one row an item, sorted by id.

    Args:
      blocks: rows of ITEM_COUNTS, and rows of the items' source (item_id, title, position and the features).
      features: the source's other columns.

    Returns:
      A table of `with_features(features)`, codes counted from 0 in this range; where the source repeats an item, its first row
      counts.
    """
    described_schema = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("position", pa.int64()), *features])
    counted: list[Block] = []
    described: list[Block] = []
    for block in blocks:
        (counted if block.schema.names == ITEM_COUNTS.names else described).append(block)
    counts = one_block(counted, ITEM_COUNTS, _SHORTER)
    found = [block.select(described_schema.names).cast(described_schema) for block in described]
    source = one_block(found, described_schema, _SHORTER)
    source = source.take(pc.sort_indices(source["position"]))

    ids = pc.unique(joined([pc.unique(counts["item_id"]), pc.unique(source["item_id"])], "item_id", _SHORTER))
    ids = ids.take(pc.sort_indices(ids))
    row = pc.index_in(counts["item_id"], ids).to_numpy()
    train, recent, holdout = (
        np.bincount(row, counts[name].to_numpy(), minlength=len(ids)).astype(np.int64)
        for name in ("train_count", "recent_millionths", "holdout_count")
    )
    first = pc.index_in(ids, source["item_id"])
    schema = with_features(features)
    columns = [
        ids,
        pa.array(np.arange(len(ids), dtype=np.int32)),
        source["title"].take(first),
        pa.array(train),
        pa.array(recent / MILLION),
        pa.array(holdout),
        *(source[field.name].take(first) for field in features),
    ]
    repeated = source.num_rows - (len(first) - first.null_count)
    return MergedRange(pa.Table.from_arrays(columns, schema=schema), repeated)


def number_items(table: pa.Table, first_code: int) -> pa.Table:
    """Returns `table` with its codes counted from `first_code`."""
    codes = pc.add(table["code"], pa.scalar(first_code, pa.int32()))
    return table.set_column(table.schema.get_field_index("code"), table.schema.field("code"), codes)


class Catalogue(NamedTuple):
    """What `BuildCatalogue` makes."""

    items: beam.PCollection[Part]
    metrics: beam.PCollection[Counts]


@dataclass
class BuildCatalogue(beam.PTransform):
    """Merges the items' source, where there is one, with the items that were rated.

    Attributes:
      features: columns of the source beside item_id and title; they travel along.
      items_a_range: about how many items one worker sorts, and one file holds.
      bytes_a_range: about how much text one worker sorts.
    """

    features: list[pa.Field]
    items_a_range: int = ITEMS_A_RANGE
    bytes_a_range: int = BYTES_A_RANGE

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, blocks: beam.PCollection[Block]) -> Catalogue:
        cuts = blocks | "FindRanges" >> beam.CombineGlobally(FindRanges(self.items_a_range, bytes_a_range=self.bytes_a_range))
        merged = (
            blocks
            | "KeyByRange" >> beam.FlatMap(_key_by_range, beam.pvalue.AsSingleton(cuts)).with_output_types(tuple[int, Block])
            | "GroupByRange" >> beam.GroupByKey()
            | "MergeRange" >> beam.MapTuple(lambda key, found: (key, merge_range(found, self.features)))
        )
        sizes = merged | "CountItems" >> beam.MapTuple(lambda key, found: (key, found.items.num_rows))
        items = merged | "NumberItems" >> beam.Map(_number_range, beam.pvalue.AsDict(sizes))
        metrics = merged | "ReportItems" >> beam.MapTuple(lambda _, found: _report(found))
        return Catalogue(items, metrics)


def _key_by_range(block: Block, cuts: list[str]) -> Iterator[tuple[int, Block]]:
    return split_by_key(block, range_of(block["item_id"], cuts))


def _number_range(element: tuple[int, MergedRange], sizes: dict[int, int]) -> Part:
    key, merged = element
    first_code = sum(size for other, size in sizes.items() if other < key)
    return key, list(in_blocks(number_items(merged.items, first_code)))


def _report(merged: MergedRange) -> Counts:
    never_trained_on = int(pc.sum(pc.equal(merged.items["train_count"], 0)).as_py() or 0)
    return Counts({"item_rows_repeated": merged.repeated, "items_never_trained_on": never_trained_on})
