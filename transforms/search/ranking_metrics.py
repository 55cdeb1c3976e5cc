"""Judges ranked lists: against the items held out of training, and an approximate list against the exact one.

For a user with H held-out items, of whom hit(r) tells whether the item at rank r (from 1) is one:

    recall@k   = hits in the first k / H
    ndcg@k     = sum over r <= k of hit(r) / log2(r + 1), over the same sum for a list that begins with all H
    hit_rate@k = 1 if there is a hit in the first k
    mrr        = 1 / rank of the first hit in the whole list, 0 without one

A metric is their mean over the users who have held-out items. coverage@k is the share of the catalogue that is in the first k
of any user at all. All are kept as sums and bitmaps that add up, so that any number of workers can share the judging.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np

from transforms.search.top_k import Lists, contains

JudgedBlock = tuple[np.ndarray, Lists]
"""A block's lists and what was held out: the arguments of `metrics_of_users`."""


@dataclass(frozen=True)
class RankingMetrics:
    """What `JudgeRankings` finds."""

    users: int
    """Users with held-out items: those whom the means are over."""
    means: dict[str, float]
    """'recall@10', 'ndcg@10', 'hit_rate@10', 'coverage@10' and so on for each cutoff, and 'mrr'."""
    standard_errors: dict[str, float]
    """Of the means over users, by the same names; empty with fewer than two users."""


@dataclass
class RankingSums:
    """What has been judged so far."""

    users: int
    sums: np.ndarray
    """[num_metrics, 2] float64: the sum over users of each metric, and of its square."""
    covered: np.ndarray
    """[num_cutoffs, num_items] bool, packed to bits: items that are in anyone's list."""


class JudgeRankings(beam.CombineFn):
    """Combines judged blocks into RankingMetrics."""

    def __init__(self, cutoffs: Sequence[int], num_items: int) -> None:
        """Judges at each of `cutoffs` (from 1 to the length of the lists), in a catalogue of `num_items` (codes below that)."""
        if not cutoffs or min(cutoffs) < 1:
            raise ValueError(f"cutoffs must be one or more numbers from 1 on, got {list(cutoffs)}")
        self.cutoffs = sorted(set(cutoffs))
        self.num_items = num_items

    @property
    def names(self) -> list[str]:
        """The metrics, in the order of `RankingSums.sums`."""
        return [f"{name}@{k}" for k in self.cutoffs for name in ("recall", "ndcg", "hit_rate")] + ["mrr"]

    def create_accumulator(self) -> RankingSums:
        num_bytes = math.ceil(self.num_items / 8)
        return RankingSums(0, np.zeros((len(self.names), 2)), np.zeros((len(self.cutoffs), num_bytes), np.uint8))

    def add_input(self, accumulator: RankingSums, block: JudgedBlock) -> RankingSums:
        codes, holdout = block
        of_users = metrics_of_users(codes, holdout, self.cutoffs)
        accumulator.users += len(of_users)
        accumulator.sums += np.stack([of_users.sum(axis=0), np.square(of_users).sum(axis=0)], axis=1)
        for bits, k in zip(accumulator.covered, self.cutoffs, strict=True):
            listed = np.unique(codes[:, :k])
            listed = listed[listed >= 0]
            np.bitwise_or.at(bits, listed >> 3, np.uint8(1) << (listed & 7).astype(np.uint8))
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[RankingSums]) -> RankingSums:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.users += accumulator.users
            merged.sums += accumulator.sums
            merged.covered |= accumulator.covered
        return merged

    def extract_output(self, accumulator: RankingSums) -> RankingMetrics:
        users, (sums, squares) = accumulator.users, accumulator.sums.T
        means = dict(zip(self.names, (sums / max(1, users)).tolist(), strict=True))
        covered = np.bitwise_count(accumulator.covered).sum(axis=1, dtype=np.int64) / max(1, self.num_items)
        means |= {f"coverage@{k}": float(share) for k, share in zip(self.cutoffs, covered, strict=True)}
        errors = {}
        if users > 1:
            variances = np.maximum(squares - sums**2 / users, 0) / (users - 1)
            errors = dict(zip(self.names, np.sqrt(variances / users).tolist(), strict=True))
        return RankingMetrics(users, means, errors)


def metrics_of_users(codes: np.ndarray, holdout: Lists, cutoffs: Sequence[int]) -> np.ndarray:
    """Returns recall, NDCG and hit rate at each cutoff, and at last the reciprocal rank, of the users with held-out items.

    Args:
      codes: [num_rows, k] int64, best first, -1 after the last.
      holdout: num_rows lists of held-out codes, none twice; an item outside the catalogue is -1, and is missed.
      cutoffs: ascending, from 1 to k.

    Returns:
      [num_users, 3 * num_cutoffs + 1] float64.

    Raises:
      ValueError: a cutoff is longer than the lists.
    """
    if cutoffs[-1] > codes.shape[1]:
        raise ValueError(f"cutoffs must be at most the length of the lists, {codes.shape[1]}, got {cutoffs[-1]}")
    judged = np.flatnonzero(holdout.counts)
    codes, holdout = codes[judged], holdout.take(judged)
    relevant = holdout.counts
    hits = contains(holdout, codes) & (codes >= 0)
    discounts = 1 / np.log2(np.arange(2, codes.shape[1] + 2))
    ideal = np.cumsum(discounts)
    found = np.cumsum(hits, axis=1)
    gained = np.cumsum(hits * discounts, axis=1)
    columns = []
    for k in cutoffs:
        columns += [found[:, k - 1] / relevant, gained[:, k - 1] / ideal[np.minimum(k, relevant) - 1], found[:, k - 1] > 0]
    columns.append(hits.any(axis=1) / (hits.argmax(axis=1) + 1))
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Estimate:
    """A mean over a sample."""

    mean: float
    standard_error: float
    """Of the mean; infinite for a sample of fewer than two."""


def recall_of_rows(codes: np.ndarray, exact_codes: np.ndarray) -> np.ndarray:
    """Returns which share of each row's exact list an approximate search found: [num_rows with any] float64.

    Args:
      codes: [num_rows, m] int64, found, -1 where there is none.
      exact_codes: [num_rows, k] int64, to be found, -1 where there is none; rows without any do not count.
    """
    present = exact_codes >= 0
    counts = present.sum(axis=1)
    exact = Lists(exact_codes[present], np.concatenate([[0], np.cumsum(counts)]))
    hits = (contains(exact, codes) & (codes >= 0)).sum(axis=1)
    return hits[counts > 0] / counts[counts > 0]


class MeanOfRows(beam.CombineFn):
    """Combines arrays of values, one a row, into the Estimate of their mean."""

    def create_accumulator(self) -> np.ndarray:
        return np.zeros(3)

    def add_input(self, sums: np.ndarray, values: np.ndarray) -> np.ndarray:
        return sums + np.array([len(values), values.sum(), np.square(values).sum()])

    def merge_accumulators(self, accumulators: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum([np.zeros(3), *accumulators], axis=0)

    def extract_output(self, sums: np.ndarray) -> Estimate:
        count, total, squares = sums.tolist()
        if not count:
            return Estimate(0.0, math.inf)
        error = math.sqrt(max(0.0, squares - total**2 / count) / (count - 1) / count) if count > 1 else math.inf
        return Estimate(total / count, error)


def recall_against(codes: np.ndarray, exact_codes: np.ndarray) -> Estimate:
    """Returns the mean over rows of `recall_of_rows`, with its standard error."""
    mean = MeanOfRows()
    return mean.extract_output(mean.add_input(mean.create_accumulator(), recall_of_rows(codes, exact_codes)))


def compared_metrics(k: int) -> tuple[str, str]:
    """Returns the held-out metrics that are compared: of the whole list, and of its first ten."""
    return f"recall@{k}", f"ndcg@{min(10, k)}"
