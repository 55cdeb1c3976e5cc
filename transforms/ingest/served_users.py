"""Adds what the lists say to the users that have ratings: who else is served, and what must not be recommended to whom.

    users of a bucket, with their histories ──┐
    users to serve ──> by bucket ─────────────┼─> the users of the bucket
    pairs to exclude ──> by bucket ───────────┘

The lists change from day to day, the histories need not be made again for that.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_USERS, Block, in_blocks, one_block
from schemas.interactions import EXCLUSIONS, SERVED_USERS
from schemas.parquet_files import read_parquet_blocks
from schemas.users import USERS
from transforms.ingest.histories import USERS_A_BLOCK, group_lists, places_of, sorted_unique
from transforms.io.partition import key_by_user
from transforms.io.write import Counts, Part


def add_lists(rated: Block, listed: Iterable[Block]) -> tuple[Block, dict[str, int]]:
    """Returns the users of a bucket, sorted, and what there is to count.

    Args:
      rated: rows of USERS, sorted: those who have ratings.
      listed: rows of SERVED_USERS and of EXCLUSIONS.
    """
    by_kind: dict[int, list[Block]] = {len(SERVED_USERS): [], len(EXCLUSIONS): []}
    for each in listed:
        by_kind[each.num_columns].append(each)
    served, excluded = (one_block(by_kind[len(kind)], kind, FEWER_USERS) for kind in (SERVED_USERS, EXCLUSIONS))
    users = sorted_unique(rated["user_id"], served["user_id"])
    new = users.filter(pc.invert(pc.is_in(users, rated["user_id"])))
    empty = group_lists(np.zeros(0, np.int64), pa.array([], pa.string()), len(new))
    without = pa.RecordBatch.from_arrays([new if name == "user_id" else empty for name in USERS.names], schema=USERS)
    everyone = one_block([rated, without], USERS, FEWER_USERS)
    everyone = everyone.take(pc.index_in(users, everyone["user_id"]))

    row = places_of(excluded["user_id"], users)
    item = places_of(excluded["item_id"], sorted_unique(excluded["item_id"]))
    unknown = int((row < 0).sum())
    order = np.lexsort((item, row))[unknown:]
    items = group_lists(row[order], excluded["item_id"].take(pa.array(order)), len(users))
    columns = [items if name == "excluded" else everyone[name] for name in USERS.names]
    counts = {"users_without_ratings": len(new), "exclusions_of_unknown_users": unknown}
    return pa.RecordBatch.from_arrays(columns, schema=USERS), counts


class _AddLists(beam.DoFn):
    def __init__(self, rated: Mapping[int, str]) -> None:
        super().__init__()
        self._rated = rated

    def process(self, element: tuple[int, Iterable[Block]]) -> Iterator[Any]:
        bucket, listed = element
        path = self._rated.get(bucket)
        users, counts = add_lists(one_block(read_parquet_blocks(path) if path else [], USERS), listed)
        yield beam.pvalue.TaggedOutput("metrics", Counts(counts))
        if users.num_rows:
            yield bucket, list(in_blocks(users, USERS_A_BLOCK))


class ServedUsers(NamedTuple):
    """What `AddLists` makes: a part a bucket, and metrics."""

    users: beam.PCollection[Part]
    metrics: beam.PCollection[Counts]


@dataclass
class AddLists(beam.PTransform):
    """Adds blocks of SERVED_USERS and of EXCLUSIONS to the users that have ratings.

    Attributes:
      rated: paths of USERS, by bucket.
      num_buckets: how many hash buckets of users there are.
    """

    rated: Mapping[int, str]
    num_buckets: int

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, listed: beam.PCollection[Block]) -> ServedUsers:
        # Every bucket gets an element: its users are written whether a list names one of them or not.
        nobody = pa.RecordBatch.from_pylist([], SERVED_USERS)
        each = listed.pipeline | "EachBucket" >> beam.Create(range(self.num_buckets)).with_output_types(int)
        seeds = each | "StartBucket" >> beam.Map(lambda bucket: (bucket, nobody)).with_output_types(tuple[int, Block])
        keyed = listed | "KeyByUser" >> beam.FlatMap(partial(key_by_user, num_buckets=self.num_buckets)).with_output_types(
            tuple[int, Block]
        )
        made = (
            (seeds, keyed)
            | "GatherLists" >> beam.Flatten()
            | "GroupByBucket" >> beam.GroupByKey()
            | "AddLists" >> beam.ParDo(_AddLists(self.rated)).with_outputs("metrics", main="users")
        )
        return ServedUsers(made.users, made.metrics)
