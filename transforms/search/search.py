"""Finds the top-k items of a block of users in all shards of the index: exactly k, none seen, each row certain.

The plain functions of both plans. A block becomes a few requests (users who need lists of about the same length together);
every shard answers every request; the answers are settled, and rows that are not certain are asked for again: wider, and at
last exactly.

    first_requests(block) -> requests --Shard.answer--> an answer from each shard --settle--> certain rows + the next request

`top_k_of_block` walks this loop in one process. Where shards live on several workers, each of them is sent the request and
their answers meet again, `MAX_ROUNDS` times at most. What a row gets depends on that row and the shards, never on its block.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from schemas.errors import InputError
from schemas.flags import Rule, at_least, check_fields, flag
from transforms.search.scann_index import EXACT_BELOW, ShardIndex, ShardPlan
from transforms.search.top_k import (
    NO_MORE,
    PAD,
    Lists,
    exclude,
    is_certain,
    merge,
    pack,
    unpack,
    width_per_shard,
)

MAX_ROUNDS = 3
"""A request is answered narrow, then wide, then exactly; exact answers are certain."""

_MIN_EXCLUDED = 8
_EXACT_SHARE = 64
_MAX_KEYS = 1 << 22


@dataclass(frozen=True)
class SearchSettings:
    """What an approximate search costs and finds; an exact one ignores it."""

    leaves_to_search: int | None = flag(
        None,
        called="leaves to search",
        rule=at_least(1, "raise it"),
        help="leaves of each shard's tree to search (default: calibrated)",
    )
    """In each shard that has a tree; None opens all."""
    reorder_per_neighbor: float = flag(
        3.0,
        unset=None,
        called="reorder per neighbor",
        rule=Rule("a number from 1 on", lambda value: 1 <= value < math.inf, "raise it"),
        help="vectors scored exactly for each neighbor asked for (default: calibrated)",
    )
    """How many of the roughly best vectors are scored exactly, for each neighbor asked for."""
    exact: bool = False
    """Whether to search exactly all the same: what is left where no approximate search finds enough."""

    def __post_init__(self) -> None:
        check_fields(self)


def served_plan(plan: ShardPlan, num_allowed: int) -> ShardPlan:
    """Returns what a shard is once the items that may not be recommended are left out of it.

    A shard that is exact, or keeps few of its items, is built again without the others. Where that would be slow, their rows
    are asked for and dropped.

    Args:
      plan: of the whole shard.
      num_allowed: how many of its items may be recommended.
    """
    few = num_allowed < max(EXACT_BELOW, plan.num_vectors // 4)
    if num_allowed < plan.num_vectors and (plan.kind == "exact" or few):
        return ShardPlan("exact", num_allowed, plan.dim)
    return plan


class Shard:
    """A shard that can be searched: its index, and which items its rows are."""

    def __init__(self, index: ShardIndex, codes: np.ndarray, blocked: np.ndarray | None = None) -> None:
        """Prepares a shard for searching, leaving blocked items out of it: see `served_plan`.

        Args:
          index: the shard's.
          codes: [num_vectors] integers, strictly ascending: the code of the item in each row.
          blocked: [num_vectors] bool: which rows' items may not be recommended.
        """
        codes = np.asarray(codes, np.int64)
        if len(codes) != index.num_vectors:
            raise ValueError(f"the index has {index.num_vectors} vectors and its id map {len(codes)} rows: they are no pair")
        if (np.diff(codes) <= 0).any():
            raise ValueError(
                "a shard's rows must be in ascending order of code, since equal scores go to the lower row: sort them"
            )
        self._blocked_rows = np.zeros(len(codes), bool) if blocked is None else blocked
        allowed = np.flatnonzero(~self._blocked_rows)
        if served_plan(index.plan, len(allowed)) != index.plan:
            index, codes = index.subset(allowed), codes[allowed]
            self._blocked_rows = np.zeros(len(codes), bool)
        self.index = index
        self.codes = codes
        self.num_items = int((~self._blocked_rows).sum())

    @cached_property
    def _exact_shard(self) -> "Shard":
        """This shard without its blocked rows, for exact searches."""
        if self.num_items == self.index.num_vectors:
            return self
        allowed = np.flatnonzero(~self._blocked_rows)
        return Shard(self.index.subset(allowed), self.codes[allowed])

    def answer(self, request: "Request", settings: SearchSettings) -> "Answer":
        """Returns the best items that may be recommended for each row of a request, as far as it asks for them."""
        if request.exact or self.index.is_exact:
            return self._exact_shard._exact_answer(request.queries, request.shard_width)
        num_vectors = self.index.num_vectors
        # As many more as are likely to be blocked.
        asked = min(num_vectors, math.ceil(request.shard_width * num_vectors / self.num_items))
        reorder = math.ceil(asked * settings.reorder_per_neighbor)
        rows, scores = self.index.search(request.queries, asked, settings.leaves_to_search, reorder)
        keys = self._keys(rows, scores)
        # Fewer than asked for: the leaves that were opened hold no others.
        bounds = np.where(rows[:, -1] < 0, NO_MORE, keys[:, -1])
        if self.num_items < num_vectors:
            keys = merge(np.where(self._blocked_rows[rows], PAD, keys), request.shard_width)
            bounds = np.minimum(bounds, np.where(keys[:, -1] == PAD, bounds, keys[:, -1]))
        return Answer(keys, bounds)

    def _exact_answer(self, queries: np.ndarray, width: int) -> "Answer":
        keys = self._keys(*self.index.search_exact(queries, min(width, self.num_items)))
        return Answer(keys, keys[:, -1] if width < self.num_items else np.full(len(keys), PAD))

    def _keys(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns the keys ([num_queries, width] uint64) of rows and scores, PAD where the row is -1."""
        if not rows.size:
            return np.full(rows.shape, PAD)
        keys = pack(scores, self.codes.take(rows, mode="wrap"))
        if rows[:, -1].min() < 0:
            keys[rows < 0] = PAD
        return keys


@dataclass(frozen=True)
class Request:
    """Rows of a block that need lists of about the same length."""

    rows: np.ndarray
    """[num_rows] int64: which rows of the block."""
    queries: np.ndarray
    """[num_rows, dim] float32: the users' vectors."""
    width: int
    """How many items, seen ones included, the merged list must be right for."""
    shard_width: int
    """How many items each shard is asked for."""
    exact: bool = False
    """Whether nothing may be missed."""

    def next(self, uncertain: np.ndarray) -> "Request":
        """Returns what is asked next for the rows that `uncertain` ([num_rows] bool) marks: more, and then everything.

        Raises:
          RuntimeError: a wide and exact request has left rows uncertain, which no answer of a `Shard` does.
        """
        wide = self.shard_width >= self.width
        if wide and self.exact:
            raise RuntimeError(f"{uncertain.sum()} rows are not certain after an exact search of width {self.width}")
        return Request(self.rows[uncertain], self.queries[uncertain], self.width, self.width, self.exact or wide)


@dataclass(frozen=True)
class Answer:
    """What one shard answers to a request."""

    keys: np.ndarray
    """[num_rows, m] uint64: items as `top_k.pack` keys, best first, PAD where there is none."""
    bounds: np.ndarray
    """[num_rows] uint64: the key before which the shard has kept nothing back; see `top_k.is_certain`."""


@dataclass(frozen=True)
class TopK:
    """The lists of a block's rows."""

    codes: np.ndarray
    """[num_rows, k] int64, best first, -1 after the last."""
    scores: np.ndarray
    """[num_rows, k] float32, -inf after the last."""
    counts: np.ndarray
    """[num_rows] int64: how many items each row has, which is min(k, items that may be recommended)."""


@dataclass
class SearchCounters:
    """How many rows were searched, and how many with more than the usual effort."""

    rows: int = 0
    rows_widened: int = 0
    """Asked for again, because a shard might have kept something back or too much was excluded."""
    rows_exact: int = 0
    """Searched exactly though the index is approximate: after widening, or at once where long lists make that cheaper."""

    def add(self, request: Request, is_first: bool) -> None:
        """Counts a request's rows."""
        num_rows = len(request.rows)
        self.rows += num_rows if is_first else 0
        self.rows_exact += num_rows if request.exact else 0
        self.rows_widened += 0 if is_first or request.exact else num_rows


def rows_by_need(num_excluded: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields rows that exclude about as many items, so that a heavy user slows nobody else down.

    Args:
      num_excluded: [num_rows] int64.

    Yields:
      How many items, at most, they exclude: a power of two (since k is added, few lists are much longer than they need to be)
      or 0; and which rows they are, [m] int64, ascending.
    """
    spans = 2 ** np.ceil(np.log2(np.maximum(num_excluded, _MIN_EXCLUDED))).astype(np.int64)
    spans[num_excluded == 0] = 0
    for span in np.unique(spans):
        yield int(span), np.flatnonzero(spans == span)


def in_parts(rows: np.ndarray, keys_a_row: int) -> list[np.ndarray]:
    """Splits rows ([n] int64, n at least 1) so that their keys fit memory."""
    return np.array_split(rows, max(1, math.ceil(len(rows) * keys_a_row / _MAX_KEYS)))


def first_requests(
    queries: np.ndarray, excluded: Lists, k: int, plans: Sequence[ShardPlan], exact: bool = False
) -> list[Request]:
    """Splits a block into requests.

    Args:
      queries: [num_rows, dim] float32.
      excluded: a list for each row; how long they are is all that counts here.
      k: how many items each row wants.
      plans: what each shard is.
      exact: whether nothing may be missed.

    Raises:
      InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, got {k}: raise --k")
    if len(queries) != len(excluded):
        raise ValueError(f"{len(queries)} queries and {len(excluded)} lists to exclude: both must have one for each row")
    num_vectors = sum(plan.num_vectors for plan in plans)
    if not num_vectors:
        return []
    approximate = [plan.num_vectors for plan in plans if plan.kind != "exact"]
    requests = []
    for span, members in rows_by_need(excluded.counts):
        width = min(k + span, num_vectors)
        shard_width = width_per_shard(width, len(plans))
        # A list so long is found sooner by a plain scan.
        scan = bool(approximate) and (exact or shard_width * _EXACT_SHARE > min(approximate))
        requests += [
            Request(rows, queries[rows], width, shard_width, scan) for rows in in_parts(members, shard_width * len(plans))
        ]
    return requests


def settle(request: Request, answers: Sequence[Answer], excluded: Lists, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Merges what all shards answered to a request, without what each row excludes.

    Args:
      request: what they were asked.
      answers: one from each shard, in any order.
      excluded: a list of codes for each row of the request.
      k: how many items each row wants.

    Returns:
      keys: [num_rows, k] uint64, best first, PAD after the last.
      certain: [num_rows] bool; the other rows are to be asked for with `request.next(~certain)`.
    """
    keys = np.concatenate([answer.keys for answer in answers], axis=1)
    # What lies behind `width` items cannot be needed, and need not be looked up.
    if len(answers) > 1:
        keys = merge(keys, min(request.width, keys.shape[1]))
    merged = merge(exclude(keys, excluded), k)
    return merged, is_certain(merged, np.stack([answer.bounds for answer in answers], axis=1))


def top_k_of_block(
    shards: Sequence[Shard], queries: np.ndarray, excluded: Lists, k: int, settings: SearchSettings, exact: bool = False
) -> tuple[TopK, SearchCounters]:
    """Finds the best k items for each row of a block, in all shards of the index.

    Each row gets exactly min(k, items that may be recommended) items. Where every search is exact, they are the best, equal
    scores by code, however the items are sharded and the rows are blocked.

    Args:
      shards: all of them.
      queries: [num_rows, dim] float32: the users' vectors.
      excluded: codes that each row must not get.
      k: how many items.
      settings: of approximate searches.
      exact: whether to search exactly, whatever the index; the truth that an approximate search is measured by.
    """
    keys, counters = search_block(shards, queries, excluded, k, settings, exact)
    return top_k_of(keys), counters


def search_block(
    shards: Sequence[Shard], queries: np.ndarray, excluded: Lists, k: int, settings: SearchSettings, exact: bool = False
) -> tuple[np.ndarray, SearchCounters]:
    """Does what `top_k_of_block` says, and returns the lists as [num_rows, k] uint64 keys: asks until every row is certain."""
    requests = first_requests(queries, excluded, k, [shard.index.plan for shard in shards], exact or settings.exact)
    keys = np.full((len(excluded), k), PAD)
    counters = SearchCounters()
    for first in requests:
        request: Request | None = first
        while request is not None:
            counters.add(request, is_first=request is first)
            answers = [shard.answer(request, settings) for shard in shards]
            keys[request.rows], certain = settle(request, answers, excluded.take(request.rows), k)
            request = None if certain.all() else request.next(~certain)
    return keys, counters


def top_k_of(keys: np.ndarray) -> TopK:
    """Unpacks settled keys, [num_rows, k] uint64."""
    scores, codes = unpack(keys)
    return TopK(codes, scores, (codes >= 0).sum(axis=1))
