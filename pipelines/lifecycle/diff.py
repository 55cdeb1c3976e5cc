"""Compares the tables of two releases, some buckets of users at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stages.outputs import IngestOutputs
from schemas.blocks import FEWER_USERS, one_block
from schemas.release_manifest import Release
from schemas.storage import join
from schemas.workspace import Workspace
from transforms.evaluate.compare import RBO_P, add_counts, check_p, compare_lists, count_items
from transforms.io.write import part_of
from transforms.lists.table import read_table
from transforms.search.id_map import list_lengths

_MOST = 5
"""Items that are named of those that lists have gained, and of those that they have lost."""

_LISTS = pa.schema([pa.field("user_id", pa.string()), pa.field("items", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Difference:
    """How two tables differ.

    Attributes:
      k: the length of list that is compared: the shorter of the two tables'.
      rbo_p: RBO's parameter.
      in_both: users that both tables have.
      changed: those of them whose lists differ, be it in their order alone.
      gained: users of the later table alone.
      lost: users of the earlier table alone.
      jaccard: the mean over the users of both of |both| / |either| of the items of their two lists; NaN where there are none.
      rbo: the mean of their rank-biased overlap.
      items: rows of COUNTS: each item that is in a list of either table, those of users of one table alone included.
    """

    k: int
    rbo_p: float
    in_both: int
    changed: int
    gained: int
    lost: int
    jaccard: float
    rbo: float
    items: pa.Table

    def as_json(self) -> dict[str, Any]:
        """Returns what there is to say of it, the items by number, and by name those in most lists."""
        gained, lost = (_only_in(self.items, side, other) for side, other in (("after", "before"), ("before", "after")))
        return {
            "k": self.k,
            "rbo_p": self.rbo_p,
            "users": {"in_both": self.in_both, "changed": self.changed, "gained": self.gained, "lost": self.lost},
            "jaccard": self.jaccard if self.in_both else None,
            "rbo": self.rbo if self.in_both else None,
            "items": {
                "gained": len(gained),
                "lost": len(lost),
                "most_gained": gained.slice(0, _MOST).to_pylist(),
                "most_lost": lost.slice(0, _MOST).to_pylist(),
            },
        }


def _only_in(items: pa.Table, side: str, other: str) -> pa.Table:
    """Returns the items (item_id, lists) that are in lists of one table alone, those in most lists first."""
    found = items.filter(pc.equal(items[other], 0)).select(["item_id", side]).rename_columns(["item_id", "lists"])
    return found.sort_by([("lists", "descending"), ("item_id", "ascending")])


def diff_releases(workspace: Workspace, before: Release, after: Release, p: float = RBO_P) -> Difference:
    """Compares the tables of two releases.

    A user is in bucket `hash % num_buckets`, so with g the greatest common divisor of the two tables' numbers of buckets, the
    users of the files whose bucket is r modulo g are the same on both sides. Each such group is compared by itself.

    Raises:
      InputError: if a file is gone or damaged, or `p` is out of range.
    """
    check_p(p)
    releases = (before, after)
    k = min(int(release.stages["recommend"].settings["k"]) for release in releases)
    groups = gcd(*(IngestOutputs.of(release.stages["ingest"]).num_buckets for release in releases))
    paths = [[join(workspace.root, file.path) for file in release.topk] for release in releases]
    sums = np.zeros(6)
    items = add_counts([])
    for group in range(groups):
        one, other = (_read_lists([path for path in side if part_of(path) % groups == group], k) for side in paths)
        place = pc.index_in(other["user_id"], one["user_id"])
        in_both = pc.is_valid(place)
        compared = compare_lists(one["items"].take(place.drop_null()), other["items"].filter(in_both), p)
        both = len(compared.changed)
        sums += [
            both,
            compared.changed.sum(),
            len(other) - both,
            len(one) - both,
            compared.jaccard.sum(),
            compared.rbo.sum(),
        ]
        items = add_counts([items, count_items(one["items"], other["items"])])
    both, changed, gained, lost = (int(each) for each in sums[:4])
    jaccard, rbo = (float(each / both) if both else float("nan") for each in sums[4:])
    return Difference(k, p, both, changed, gained, lost, jaccard, rbo, items)


def _read_lists(paths: Sequence[str], k: int) -> pa.RecordBatch:
    """Returns users and the first k items of their lists."""
    return one_block(_lists_of(paths, k), _LISTS, FEWER_USERS)


def _lists_of(paths: Iterable[str], k: int) -> Iterator[pa.RecordBatch]:
    for path in paths:
        for block in read_table(path, ["user_id", "recommendations"]):
            lists = pc.list_slice(block["recommendations"], 0, k)
            offsets = pa.array(np.append(0, np.cumsum(list_lengths(lists))), pa.int32())
            items = pa.ListArray.from_arrays(offsets, lists.flatten().field("item_id"))
            yield pa.RecordBatch.from_arrays([block["user_id"], items], schema=_LISTS)
