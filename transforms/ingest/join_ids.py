"""Compares the ids of one file with those of another: how many are known there, and how those that are not are spelled.

`1` and `1.0` are two ids. Where a file of ids knows another's items by other names, everything runs and nothing fits: no item
has a title, none is blocked. Ids are counted exactly, each distinct one once. A sample of those that are unknown is then
looked for among the other file's ids by plain spelling (no spaces around, no `.0`, no leading zeros, lower case).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.words import are, counted
from transforms.io.partition import hash_ids, split_by_key

SAMPLE_IDS = 100
"""How many unknown ids are looked for by another spelling."""

FEW = 0.5
"""Below this share of known ids there is a warning: a list outlives some of the ids that it names, but where most are unknown,
it is more likely of another catalogue, or spelled otherwise."""

_EXAMPLES = 3
_SHOWN = 80
_SEED = 6
_PARTITION_SEED = 7

JOINED = "ids_joined"
"""The metric that has, by the name of a file of ids, what became of them: see `Joined.metric`."""


class Joined(NamedTuple):
    """How the ids of one file meet those of another.

    Attributes:
      ids: how many distinct ids the file has.
      known: how many of them the other file has.
      unknown: of those that it has not, the `SAMPLE_IDS` with the smallest hashes.
      others: of the other file's ids that this one has not, likewise a few.
    """

    ids: int
    known: int
    unknown: tuple[str, ...]
    others: tuple[str, ...]

    def metric(self, spellings: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Returns JSON: counts, the share that is known, examples, and which of the sampled ids are spelled otherwise there."""
        return {
            "ids": self.ids,
            "known": self.known,
            "share": self.known / self.ids if self.ids else None,
            "unknown_examples": [shortened(each) for each in self.unknown[:_EXAMPLES]],
            "other_examples": [shortened(each) for each in self.others[:_EXAMPLES]],
            "unknown_sampled": len(self.unknown),
            "spelled_otherwise": len({one for one, _ in spellings}),
            "spellings": [[shortened(one), shortened(other)] for one, other in spellings[:_EXAMPLES]],
        }


def shortened(text: str) -> str:
    """Returns the start of a long id: enough to find it by."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def plain_spelling(ids: pa.Array) -> pa.Array:
    """Returns [n] string: ids without what another file may have spelled otherwise; ids that then are equal likely mean one."""
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(ids))
    return pc.replace_substring_regex(pc.replace_substring_regex(plain, r"\.0+$", ""), r"^0+([0-9])", r"\1")


def _smallest(ids: pa.Array, count: int) -> tuple[str, ...]:
    order = np.argsort(hash_ids(ids, _SEED), kind="stable")[:count]
    return tuple(ids.take(pa.array(order)).to_pylist())


def join_ids(ids: pa.Array, others: pa.Array) -> Joined:
    """Compares all ids with all others; each may be there more than once."""
    ids, others = pc.unique(ids), pc.unique(others)
    known = pc.is_in(ids, others)
    unknown = ids.filter(pc.invert(known))
    only_others = others.filter(pc.invert(pc.is_in(others, ids)))
    return Joined(len(ids), len(ids) - len(unknown), _smallest(unknown, SAMPLE_IDS), _smallest(only_others, _EXAMPLES))


def merge_joined(found: Sequence[Joined]) -> Joined:
    """Adds up what was found of disjoint sets of ids."""
    unknown, others = (
        pa.array([each for joined in found for each in getattr(joined, name)], pa.string()) for name in ("unknown", "others")
    )
    return Joined(
        sum(joined.ids for joined in found),
        sum(joined.known for joined in found),
        _smallest(unknown, SAMPLE_IDS),
        _smallest(others, _EXAMPLES),
    )


JoinedByName = dict[str, Joined]


class MergeJoined(beam.CombineFn):
    """`merge_joined` by name, as a combiner: in any order, in any grouping."""

    def create_accumulator(self) -> JoinedByName:
        return {}

    def add_input(self, merged: JoinedByName, found: JoinedByName) -> JoinedByName:
        return self.merge_accumulators([merged, found])

    def merge_accumulators(self, accumulators: Iterable[JoinedByName]) -> JoinedByName:
        every = list(accumulators)
        names = sorted({name for each in every for name in each})
        return {name: merge_joined([each[name] for each in every if name in each]) for name in names}

    def extract_output(self, merged: JoinedByName) -> JoinedByName:
        return merged


def find_spellings(others: pa.Array, unknown: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs of an unknown id and one of the others that has the same plain spelling."""
    if not unknown or not len(others):
        return []
    ours = pa.array(unknown, pa.string())
    plain = plain_spelling(ours)
    theirs = pc.unique(others)
    spelled = plain_spelling(theirs)
    near = pc.is_in(spelled, plain)
    place = pc.index_in(plain, spelled.filter(near))
    found = zip(unknown, place.to_pylist(), strict=True)
    candidates = theirs.filter(near)
    return [(one, candidates[at].as_py()) for one, at in found if at is not None]


Spellings = dict[str, list[tuple[str, str]]]
"""By name: an unknown id, and what is there instead."""


def _merge_spellings(found: Iterable[Spellings]) -> Spellings:
    first: dict[str, dict[str, str]] = {}
    for spellings in found:
        for name, pairs in spellings.items():
            mine = first.setdefault(name, {})
            for one, other in pairs:
                mine[one] = min(other, mine.get(one, other))
    return {name: sorted(mine.items()) for name, mine in first.items()}


def repair_of(one: str, other: str) -> str:
    """Returns what to do about two ids of the same plain spelling."""
    if one.strip() == other.strip():
        return "remove the spaces around the ids"
    if one.removesuffix(".0") == other.removesuffix(".0"):
        return "write whole numbers without .0 (pandas makes integers with gaps into floats: astype('Int64') or str)"
    if one.lower() == other.lower():
        return "write the ids in the same case"
    return "write the ids the same way in both"


def in_words(joined: Mapping[str, Any]) -> str:
    """Returns '98 of 100 ids are known (98 %)' of a metric, and what there is to say of the others."""
    verb = are(1 if 1 in (joined["known"], joined["ids"]) else joined["known"])
    words = f"{joined['known']:,} of {counted(joined['ids'], 'id')} {verb} known"
    if joined["share"] is not None:
        words += f" ({math.floor(1000 * joined['share']) / 10:g} %)"
    if joined["unknown_examples"]:
        words += f"; unknown: {', '.join(map(repr, joined['unknown_examples']))}"
    if joined["spelled_otherwise"]:
        one, other = joined["spellings"][0]
        words += (
            f"; {joined['spelled_otherwise']:,} of {joined['unknown_sampled']:,} unknown ids that were looked at differ in "
            f"spelling alone, such as {one!r} and {other!r}: {repair_of(one, other)}"
        )
    return words


def nothing_joins(joined: Mapping[str, Any], what: str, elsewhere: str, repair: str) -> str:
    """Returns an error that shows an id of either side.

    Args:
      joined: the metric.
      what: the ids, such as 'ids of --block_items'.
      elsewhere: where they are not, such as 'the catalogue'.
      repair: what to do where the spelling tells nothing.
    """
    if joined["spellings"]:
        one, other = joined["spellings"][0]
        repair = repair_of(one, other)
    else:
        one = min(joined["unknown_examples"], key=len)
        other = min(joined["other_examples"], key=len) if joined["other_examples"] else None
    verb = "have" if elsewhere.endswith("s") else "has"
    there = f"{elsewhere} {verb} {repr(other) if other is not None else 'none at all'}"
    if joined["ids"] == 1:
        return f"the only one of the {what}, {one!r}, is not in {elsewhere}, {there}: {repair}"
    return f"none of the {joined['ids']:,} {what} is in {elsewhere}: they are such as {one!r}, {there}: {repair}"


OTHERS = "others"
"""The name of those that all other ids are compared with."""


@dataclass
class JoinIds(beam.PTransform):
    """Compares sets of ids with others, and reports the outcome as the metric `ids_joined`, by the names of the sets.

    What it is applied to are blocks by name, `OTHERS` among them; an id may be there as often as it likes.

    Attributes:
      column: of the ids in all blocks.
      num_partitions: how many workers may share the ids.
      with_new: names of sets, and of a set each whose ids count as known too.
    """

    column: str
    num_partitions: int
    with_new: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, sets: Mapping[str, beam.PCollection[Block]]) -> beam.PCollection[dict[str, Any]]:
        key = partial(_key_by_id, column=self.column, num_partitions=self.num_partitions)
        keyed = {
            name: blocks | f"Key {name}" >> beam.FlatMap(key).with_output_types(tuple[int, Block])
            for name, blocks in sets.items()
        }
        joined = (
            keyed
            | "GroupByPartition" >> beam.CoGroupByKey()
            | "JoinPartition" >> beam.Map(_join_partition, self.with_new)
            | "Merge" >> beam.CombineGlobally(MergeJoined())
        )
        spellings = (
            sets[OTHERS]
            | "FindSpellings" >> beam.Map(_spellings_in, beam.pvalue.AsSingleton(joined), self.column)
            | "MergeSpellings" >> beam.CombineGlobally(_merge_spellings)
        )
        names = [name for name in sets if name != OTHERS]
        return joined | "Report" >> beam.Map(_report, beam.pvalue.AsSingleton(spellings), names)


def _key_by_id(block: Block, column: str, num_partitions: int) -> Iterator[tuple[int, Block]]:
    ids = pa.RecordBatch.from_arrays([pc.unique(block[column])], ["id"])
    return split_by_key(ids, (hash_ids(ids["id"], _PARTITION_SEED) % np.uint64(num_partitions)).astype(np.int64))


def _join_partition(element: tuple[int, Mapping[str, Iterable[Block]]], with_new: Mapping[str, str]) -> JoinedByName:
    _, found = element
    nothing = pa.array([], pa.string())
    ids = {name: pa.concat_arrays([nothing, *(block["id"] for block in blocks)]) for name, blocks in found.items()}
    others = {name: [ids[OTHERS], *(ids[new] for new in [with_new.get(name)] if new)] for name in ids if name != OTHERS}
    return {name: join_ids(ids[name], pa.concat_arrays(known)) for name, known in others.items()}


def _spellings_in(block: Block, joined: JoinedByName, column: str) -> Spellings:
    found = {name: find_spellings(block[column], each.unknown) for name, each in joined.items()}
    return {name: pairs for name, pairs in found.items() if pairs}


def _report(joined: JoinedByName, spellings: Spellings, names: Sequence[str]) -> dict[str, Any]:
    nothing = Joined(0, 0, (), ())
    return {JOINED: {name: joined.get(name, nothing).metric(spellings.get(name, [])) for name in names}}
