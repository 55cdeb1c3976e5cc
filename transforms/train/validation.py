"""Chooses the slice of the rows to validate on, and measures there how well held-out items are ranked, exactly."""

from typing import NamedTuple

import numpy as np

from transforms.ingest.split import hash_pairs
from transforms.io.partition import hash_ids
from transforms.train.rows import TrainingRows
from transforms.train.settings import TrainingSettings

RECALL_AT = 100
NDCG_AT = 10
MAX_VALIDATION_USERS = 2_000
_SCORES_AT_ONCE = 1 << 24


class Quality(NamedTuple):
    """How well the held-out items of users are ranked, a mean over the users."""

    recall_at_100: float
    ndcg_at_10: float


def validation_rows(rows: TrainingRows, settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the rows to validate on, and those to train on until the number of epochs is known.

    'temporal': the latest rows by time, with one cut for all; nothing that came after it is trained on, and who came after it
    is not validated on. 'random': by a hash of (user, item), so that the same pair goes the same way next time. 'last': the
    last row of each user, or of as many users, by a hash, as the fraction allows. With the latter two, users and items that
    would be left without any other row are not validated on: their vectors would be noise.

    Returns:
      [n] bool: held out, and [n] bool: trained on.
    """
    if settings.validation == "temporal" and rows.timestamp is not None:
        after = _after_cut(rows.timestamp, settings.validation_fraction)
        if after.any():
            known = np.bincount(rows.user[~after], minlength=len(rows.user_ids)) > 0
            return after & known[rows.user], ~after
    users = hash_ids(rows.user_ids, 2 * settings.seed + 2)
    if settings.validation == "last" and rows.timestamp is not None:
        chosen = _last_of_each(rows.user, rows.timestamp)
        share = settings.validation_fraction * len(chosen) / chosen.sum(dtype=np.int64)
        chosen &= (users < share * 2.0**64)[rows.user]
    else:
        pairs = hash_pairs(users[rows.user], hash_ids(rows.item_ids, 2 * settings.seed + 3)[rows.item])
        chosen = pairs < np.uint64(settings.validation_fraction * 2**64)
    for codes, num_codes in ((rows.user, len(rows.user_ids)), (rows.item, len(rows.item_ids))):
        left = np.bincount(codes[~chosen], minlength=num_codes)
        chosen &= left[codes] > 0
    return chosen, ~chosen


def _after_cut(timestamp: np.ndarray, fraction: float) -> np.ndarray:
    """Returns [n] bool: the latest `fraction` of the rows; those of one second go together, and never more than half go."""
    times = np.sort(timestamp)
    cut = times[min(len(times) - 1, round(len(times) * (1 - fraction)))]
    if fraction and np.searchsorted(times, cut) < len(times) / 2:
        cut += 1
    return timestamp >= cut if fraction else np.zeros(len(times), bool)


def _last_of_each(user: np.ndarray, timestamp: np.ndarray) -> np.ndarray:
    """Returns [n] bool: each user's last row, the last of those of one second."""
    order = np.lexsort((timestamp, user))
    last = np.zeros(len(user), bool)
    last[order[np.flatnonzero(np.diff(user[order], append=-1))]] = True
    return last


def some_users(rows: TrainingRows, most_rows: int, seed: int) -> np.ndarray:
    """Returns [n] bool: the rows of some users, by a hash, about `most_rows` where there are more."""
    if most_rows >= len(rows.user):
        return np.ones(len(rows.user), bool)
    chosen = hash_ids(rows.user_ids, 2 * seed + 4) < most_rows / len(rows.user) * 2.0**64
    return chosen[rows.user]


class Validation(NamedTuple):
    """Users to validate on, a sample where there are many.

    Attributes:
      users: [num_users] int32 codes.
      seen: [s] int64, ascending: (the user's row in `users`) x num_items + item, for each row trained on.
      held_out: [h] int64, ascending: the same, for each row held out.
    """

    users: np.ndarray
    seen: np.ndarray
    held_out: np.ndarray

    def some(self, num_users: int, num_items: int) -> "Validation":
        """Returns the same for no more than `num_users` of the users, spread evenly."""
        if len(self.users) <= num_users:
            return self
        rows = np.arange(num_users) * len(self.users) // num_users
        place = np.full(len(self.users), -1, np.int64)
        place[rows] = np.arange(num_users)
        seen, held_out = (
            (place[keys // num_items] * num_items + keys % num_items)[place[keys // num_items] >= 0]
            for keys in (self.seen, self.held_out)
        )
        return Validation(self.users[rows], seen, held_out)


def make_validation(rows: TrainingRows, held_out: np.ndarray, trained_on: np.ndarray, seed: int) -> Validation:
    """Returns what is needed to validate on the rows where `held_out` ([n] bool) is true, after training on `trained_on`."""
    users = np.unique(rows.user[held_out])
    if len(users) > MAX_VALIDATION_USERS:
        users = np.sort(np.random.default_rng(seed).choice(users, MAX_VALIDATION_USERS, replace=False))
    place = np.full(len(rows.user_ids), -1, np.int64)
    place[users] = np.arange(len(users))
    key = place[rows.user] * len(rows.item_ids) + rows.item
    sampled = place[rows.user] >= 0
    return Validation(users, key[sampled & trained_on], key[sampled & held_out])


def quality_of(user_vectors: np.ndarray, item_vectors: np.ndarray, validation: Validation) -> Quality:
    """Returns the means of `qualities_of`."""
    recall, ndcg = qualities_of(user_vectors, item_vectors, validation)
    return Quality(float(recall.mean()), float(ndcg.mean()))


def qualities_of(user_vectors: np.ndarray, item_vectors: np.ndarray, validation: Validation) -> tuple[np.ndarray, np.ndarray]:
    """Ranks the whole catalogue for each validation user, exactly, without the items seen in training.

    Args:
      user_vectors: [num_users, dim] float32, of the validation's users.
      item_vectors: [num_items, dim] float32; an item whose score is -inf is in no list.
      validation: the users' seen and held-out items.

    Returns:
      [num_users] float64: each user's Recall@100, and likewise NDCG@10.
    """
    import tensorflow as tf

    num_items = len(item_vectors)
    k = min(RECALL_AT, num_items)
    held = np.bincount(validation.held_out // num_items, minlength=len(user_vectors))
    discount = 1 / np.log2(np.arange(min(NDCG_AT, k)) + 2)
    ideal = np.cumsum(discount)[np.minimum(held, len(discount)) - 1]
    found_of_all, gain_of_all = [], []
    rows_at_once = max(1, _SCORES_AT_ONCE // num_items)
    for start in range(0, len(user_vectors), rows_at_once):
        scores = user_vectors[start : start + rows_at_once] @ item_vectors.T
        first, last = np.searchsorted(validation.seen, np.array([start, start + len(scores)]) * num_items)
        scores.reshape(-1)[validation.seen[first:last] - start * num_items] = -np.inf
        best, top = (each.numpy() for each in tf.math.top_k(scores, k))
        key = (np.arange(start, start + len(scores)) * num_items)[:, np.newaxis] + top
        found = np.searchsorted(validation.held_out, key)
        hit = (validation.held_out[np.minimum(found, len(validation.held_out) - 1)] == key) & (best > -np.inf)
        found_of_all.append(hit.sum(axis=1))
        gain_of_all.append(hit[:, : len(discount)] @ discount)
    return np.concatenate(found_of_all) / held, np.concatenate(gain_of_all) / ideal
