"""Splits interactions into training and holdout: by time, by last items, by chance, as files say, or not at all.

Every split is stable (the same rows give the same parts, whatever the order or the number of workers) and leak-free: nothing
that training, a history or the seen items contain comes from the holdout part.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.blocks import Block
from schemas.errors import InputError
from schemas.flags import FINITE, check_fields, flag, one_of
from transforms.io.partition import hash_ids

SPLITS = ("random", "temporal", "last", "given", "none")
DEFAULT_HOLDOUT = {"random": 0.2, "temporal": 0.1, "last": 1, "none": 0}
SAMPLE_ROWS = 1 << 20
"""How many times decide where a temporal split cuts: exact up to so many ratings, within about 0.1 % of them beyond."""


@dataclass(frozen=True)
class SplitSettings:
    """How to hold out interactions.

    Attributes:
      split: 'random' (each pair by chance, the tutorial's 80/20), 'temporal' (everything after one moment), 'last' (each
        user's last positives), 'given' (as files of their own say) or 'none'.
      holdout: the fraction to hold out (random, temporal), or how many items a user (last).
      min_rating: the lowest rating that counts as a positive; None counts every row.
      seed: of the random split.
    """

    split: str = flag("random", rule=one_of(*SPLITS), help="random, temporal, last, given (by --heldout) or none")
    holdout: float = flag(
        0.2,
        unset=None,
        help="what is held out: a fraction (default: random 0.2, temporal 0.1), or items of each user (default: last 1)",
    )
    min_rating: float | None = flag(None, rule=FINITE, help="the lowest rating that counts as a positive (default: any)")
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self)
        if self.split in ("random", "temporal") and not 0 < self.holdout < 1:
            raise InputError(
                f"holdout must be between 0 and 1 (a fraction) for --split {self.split}, got {self.holdout:g}: change --holdout"
            )
        if self.split == "last" and not (1 <= self.holdout < math.inf and self.holdout == int(self.holdout)):
            raise InputError(
                f"holdout must be a whole number of items for --split last, got {self.holdout:g}: change --holdout"
            )


class UserRows(NamedTuple):
    """The rows of some users, sorted by user and then by time.

    Attributes:
      user: [n] int64, ascending from 0.
      pair: [n] uint64, a hash of (user_id, item_id).
      timestamp: [n] int64, seconds.
      positive: [n] bool.
      given: [n] bool: whether the row is of a file that is held out.
    """

    user: np.ndarray
    pair: np.ndarray
    timestamp: np.ndarray
    positive: np.ndarray
    given: np.ndarray


class Parts(NamedTuple):
    """Which rows go where; a row in neither part is left out altogether.

    Attributes:
      train: [n] bool, positives to learn from and below-the-minimum rows that count as seen.
      holdout: [n] bool, positives to judge by.
    """

    train: np.ndarray
    holdout: np.ndarray


def hash_pairs(user_hashes: np.ndarray, item_hashes: np.ndarray) -> np.ndarray:
    """Returns [n] uint64: a hash of each (user, item) from the two ids' hashes (of different seeds)."""
    mixed = user_hashes * np.uint64(0x9E3779B97F4A7C15) ^ item_hashes
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return mixed ^ (mixed >> np.uint64(32))


def split_rows(rows: UserRows, settings: SplitSettings, cut: int | None) -> Parts:
    """Decides for each row whether it trains, is held out, or is left out.

    Args:
      rows: sorted by user, then by time.
      settings: the kind of split.
      cut: for the temporal split, the first second that is held out.
    """
    if settings.split == "random":
        held = rows.pair < np.uint64(int(settings.holdout * 2.0**64))
    elif settings.split == "temporal":
        held = rows.timestamp >= cut
    elif settings.split == "last":
        held = _after_last(rows, int(settings.holdout))
    else:
        held = rows.given
    return Parts(train=~held, holdout=held & rows.positive)


def _after_last(rows: UserRows, held_items: int) -> np.ndarray:
    """Marks each row from a user's `held_items`-th positive from the end on, where the user keeps one positive or more."""
    positives = np.bincount(rows.user, rows.positive, minlength=0).astype(np.int64)
    before = np.cumsum(rows.positive) - rows.positive
    starts = np.searchsorted(rows.user, np.arange(len(positives)))
    rank = before - before[starts][rows.user]
    total = positives[rows.user]
    return (rank >= total - held_items) & (total > held_items)


class FindCut(beam.CombineFn):
    """Finds the second from which on a fraction of all interactions happened.

    Keeps the interactions whose hashes are smallest (a bottom-k sample), so that the answer depends on nothing but the data.

    Args:
      holdout: the fraction to hold out.
      sample_rows: the size of the sample.
    """

    def __init__(self, holdout: float, sample_rows: int = SAMPLE_ROWS) -> None:
        super().__init__()
        self._holdout = holdout
        self._sample_rows = sample_rows

    def create_accumulator(self) -> np.ndarray:
        return np.empty((2, 0), np.uint64)

    def add_input(self, sample: np.ndarray, block: Block) -> np.ndarray:
        hashes = hash_pairs(hash_ids(block["user_id"]), hash_ids(block["item_id"], seed=1))
        times = block["timestamp"].to_numpy(zero_copy_only=False).astype(np.uint64)
        return self._smallest(np.concatenate([sample, np.stack([hashes ^ times, times])], axis=1))

    def merge_accumulators(self, samples: Iterable[np.ndarray]) -> np.ndarray:
        return self._smallest(np.concatenate(list(samples), axis=1))

    def extract_output(self, sample: np.ndarray) -> int:
        times = np.sort(sample[1]).astype(np.int64)
        if not len(times):
            return 0
        return int(times[min(len(times) - 1, round(len(times) * (1 - self._holdout)))])

    def _smallest(self, sample: np.ndarray) -> np.ndarray:
        if sample.shape[1] <= self._sample_rows:
            return sample
        return sample[:, np.argpartition(sample[0], self._sample_rows)[: self._sample_rows]]


class FindLatest(beam.CombineFn):
    """Finds the latest second of all interactions; 0 where there are no times."""

    def create_accumulator(self) -> int:
        return 0

    def add_input(self, latest: int, block: Block) -> int:
        return max(latest, pc.max(block["timestamp"]).as_py() or 0)

    def merge_accumulators(self, accumulators: Iterable[int]) -> int:
        return max(accumulators, default=0)

    def extract_output(self, latest: int) -> int:
        return latest


def user_rows(block: Block, user: np.ndarray, settings: SplitSettings, given: np.ndarray | None = None) -> UserRows:
    """Prepares sorted rows for `split_rows`.

    Args:
      block: n rows of `schemas.interactions.VALID`, sorted by user, then by time.
      user: [n] int64, the rank of each row's user.
      settings: says what a positive is, and the seed.
      given: [n] bool, which rows are of a file that is held out; None where there is none.
    """
    rating = block["rating"].fill_null(np.inf).to_numpy(zero_copy_only=False)
    positive = np.ones(len(user), bool) if settings.min_rating is None else rating >= settings.min_rating
    pair = hash_pairs(
        _hash_repeated(block["user_id"], 2 * settings.seed), _hash_repeated(block["item_id"], 2 * settings.seed + 1)
    )
    timestamp = block["timestamp"].fill_null(0).to_numpy(zero_copy_only=False)
    return UserRows(user, pair, timestamp, positive, np.zeros(len(user), bool) if given is None else given)


def _hash_repeated(ids: pa.Array, seed: int) -> np.ndarray:
    """Hashes a column whose values repeat: each different value once."""
    encoded = ids.dictionary_encode()
    return hash_ids(encoded.dictionary, seed)[encoded.indices.to_numpy()]
