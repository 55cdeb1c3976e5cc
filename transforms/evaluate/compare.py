"""Compares the lists of two tables: how many changed, how much of them is the same, and how early.

    before  u1: a b c      u2: a b          u4: c       (u1, a, 0) (u1, b, 1) ...   every listed item is one number:
    after   u1: b a d      u2: a b    u3: x                                         its row << 32 | its code

What both lists of a user hold are the numbers that both tables hold; everything else is sums of them by row.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import FEWER_USERS, joined
from schemas.errors import InputError
from transforms.search.id_map import list_lengths, places_in_lists

RBO_P = 0.9
"""With it, the first ten ranks hold 86 % of RBO's weight (Webber et al., section 4.4)."""

COUNTS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("before", pa.int64(), nullable=False),
        pa.field("after", pa.int64(), nullable=False),
    ]
)
"""In how many lists an item is, before and after."""


@dataclass(frozen=True)
class Compared:
    """What was found of the users of both tables.

    Attributes:
      changed: [num_users] bool: whether the two lists differ, be it in their order alone.
      jaccard: [num_users] float64: |both| / |either| of the items of the two lists; 1 where both are empty.
      rbo: [num_users] float64: their rank-biased overlap, extrapolated from what is listed.
    """

    changed: np.ndarray
    jaccard: np.ndarray
    rbo: np.ndarray


def check_p(p: float) -> None:
    """Raises InputError unless `p` can be RBO's parameter."""
    if not 0 < p < 1:
        raise InputError(f"rbo_p must be above 0 and below 1, got {p:g}: change --rbo_p")


def compare_lists(before: pa.ListArray, after: pa.ListArray, p: float = RBO_P) -> Compared:
    """Compares two lists of items for each of some users.

    RBO is `RBO_EXT` of Webber, Moffat and Zobel (2010), "A similarity measure for indefinite rankings", equation 32, which
    takes lists of different lengths; two empty lists have 1, an empty one and another have 0. Where a list, against its
    contract, has an item twice, the first time counts.

    Args:
      before: [num_users] lists of string, best first, none null.
      after: [num_users] lists of string.
      p: of RBO: the weight of each rank is `p` times that of the one before.
    """
    check_p(p)
    num_users = len(before)
    sides = [_Side.of(column, codes) for column, codes in zip((before, after), _codes_of(before, after), strict=True)]
    common, at_before, at_after = np.intersect1d(sides[0].keys, sides[1].keys, assume_unique=True, return_indices=True)
    row = common >> 32
    depth = np.maximum(sides[0].rank[at_before], sides[1].rank[at_after])
    sizes = [np.bincount(side.keys >> 32, minlength=num_users) for side in sides]
    both = np.bincount(row, minlength=num_users)
    either = sizes[0] + sizes[1] - both
    jaccard = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    same = np.bincount(row[sides[0].rank[at_before] == sides[1].rank[at_after]], minlength=num_users)
    lengths = [list_lengths(column) for column in (before, after)]
    changed = (lengths[0] != lengths[1]) | (same != np.maximum(sizes[0], sizes[1]))
    return Compared(changed, jaccard, _rbo(row, depth, np.minimum(*sizes), np.maximum(*sizes), p))


def _rbo(row: np.ndarray, depth: np.ndarray, short: np.ndarray, long: np.ndarray, p: float) -> np.ndarray:
    """Returns [num_users] float64: RBO_EXT.

    With X(d) the items that both lists have by depth d, s and l their lengths:
    RBO_EXT = (1 - p) / p * (sum_{d=1..l} X(d) p^d / d + sum_{d=s+1..l} X(s) (d - s) p^d / (s d))
              + ((X(l) - X(s)) / l + X(s) / s) p^l
    An item that both have by depth m counts in every X(d) from m on, so it adds H(l) - H(m - 1) to the first sum, where H(n) is
    the sum of p^d / d up to n.

    Args:
      row: [num_common] int64: the user of each item that both lists have.
      depth: [num_common] int64: the lower of its two ranks, from 1.
      short: [num_users] int64: s.
      long: [num_users] int64: l.
      p: the parameter.
    """
    num_users = len(long)
    ranks = np.arange(1, long.max(initial=0) + 1)
    powers = p ** ranks.astype(np.float64)
    of_power = np.concatenate([[0.0], np.cumsum(powers)])
    of_share = np.concatenate([[0.0], np.cumsum(powers / ranks)])
    first = np.bincount(row, of_share[long[row]] - of_share[depth - 1], num_users)
    by_long = np.bincount(row, minlength=num_users)
    by_short = np.bincount(row[depth <= short[row]], minlength=num_users)
    share = by_short / np.maximum(short, 1)
    second = share * (of_power[long] - of_power[short] - short * (of_share[long] - of_share[short]))
    beyond = ((by_long - by_short) / np.maximum(long, 1) + share) * p ** long.astype(np.float64)
    return np.where(long > 0, (1 - p) / p * (first + second) + beyond, 1.0)


@dataclass(frozen=True)
class _Side:
    """The listed items of one table.

    Attributes:
      keys: [num_pairs] int64, ascending, no two equal: row << 32 | code.
      rank: [num_pairs] int64: of each, from 1.
    """

    keys: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(cls, column: pa.ListArray, codes: np.ndarray) -> "_Side":
        lengths = list_lengths(column)
        row = np.repeat(np.arange(len(column)), lengths)
        rank = places_in_lists(lengths) + 1
        keys, first = np.unique(row << 32 | codes, return_index=True)
        return cls(keys, rank[first])


def _codes_of(before: pa.ListArray, after: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a number for each listed item of both, the same for the same item."""
    items = [column.flatten().cast(pa.large_string()) for column in (before, after)]
    codes = joined(items, "item_id", FEWER_USERS).dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes[: len(items[0])], codes[len(items[0]) :]


def count_items(before: pa.ListArray, after: pa.ListArray) -> pa.Table:
    """Returns rows of COUNTS: each item of either column of lists, once."""
    pieces = []
    for name, column in (("before", before), ("after", after)):
        counted = pc.value_counts(column.flatten())
        columns = {"item_id": counted.field("values"), name: counted.field("counts")}
        zeros = pa.array(np.zeros(len(counted), np.int64))
        pieces.append(pa.table([columns.get(field.name, zeros) for field in COUNTS], schema=COUNTS))
    return add_counts(pieces)


def add_counts(counts: Iterable[pa.Table]) -> pa.Table:
    """Returns rows of COUNTS, each item once, of several tables of them."""
    whole = pa.concat_tables([COUNTS.empty_table(), *counts])
    added = whole.group_by("item_id").aggregate([("before", "sum"), ("after", "sum")])
    return pa.table([added["item_id"], added["before_sum"], added["after_sum"]], schema=COUNTS)
