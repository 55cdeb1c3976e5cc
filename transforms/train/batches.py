"""Puts the training rows of an epoch in order: each step takes some users, each with some of the items that it rated.

    user 0  a b c d e f      an epoch's groups, of at most 4   (0: d a f) (0: c e b) (1: x) (2: h g)
    user 1  x                a step takes some of them, at random
    user 2  g h

All items of a group are learned from at once: what is computed of the user, and for all candidates, is computed once for
them. Every row is in one group of each epoch; which rows of a user are together is drawn anew each time.
"""

from typing import NamedTuple

import numpy as np

_ROWS_AT_ONCE = 1 << 20


class Groups(NamedTuple):
    """An epoch's groups, in the order in which they are taken.

    Attributes:
      rows: [n] int32: the training rows, those of a group side by side.
      starts: [num_groups + 1] int64: where in `rows` each group begins, by number.
      turn: [num_groups] int64: the numbers of the groups, in the order in which they are taken.
    """

    rows: np.ndarray
    starts: np.ndarray
    turn: np.ndarray


class Steps(NamedTuple):
    """Some steps of training.

    Attributes:
      rows: [m] int32: the training rows of all steps.
      group: [m] int32: which group of its step each row is in, ascending within a step.
      bounds: [num_steps + 1] int32: where in `rows` each step begins.
      first: [num_steps, batch] int32: a training row of each group, whose user is the group's.
    """

    rows: np.ndarray
    group: np.ndarray
    bounds: np.ndarray
    first: np.ndarray


def group_starts(lengths: np.ndarray, most: int, fewest_groups: int = 1) -> np.ndarray:
    """Returns [num_groups + 1] int64: where each group begins among rows that are sorted by user; those of a user are as equal
    as can be.

    Args:
      lengths: [num_users] int: how many rows each user has.
      most: rows in a group.
      fewest_groups: of a user, where it has as many rows.
    """
    lengths = lengths.astype(np.int64)
    groups = np.minimum(lengths, np.maximum(fewest_groups, -(-lengths // most)))
    ends = np.cumsum(lengths)
    of_user = np.arange(groups.sum()) - np.repeat(np.cumsum(groups) - groups, groups)
    starts = np.repeat(ends - lengths, groups) + of_user * np.repeat(lengths, groups) // np.repeat(groups, groups)
    return np.append(starts, ends[-1] if len(ends) else 0)


def shuffled_groups(user: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Groups:
    """Returns an epoch's groups.

    Args:
      user: [n] int32, ascending.
      starts: what `group_starts` returned.
      rng: what decides.
    """
    rows = np.empty(len(user), np.int32)
    begin = 0
    while begin < len(user):
        # Whole users at a time, which sort faster than all at once; a user of more rows than that is a block of its own.
        end = int(np.searchsorted(user, user[min(begin + _ROWS_AT_ONCE, len(user)) - 1]))
        if end <= begin or begin + _ROWS_AT_ONCE >= len(user):
            end = int(np.searchsorted(user, user[min(begin + _ROWS_AT_ONCE, len(user)) - 1], side="right"))
        rows[begin:end] = begin + np.argsort((user[begin:end] - user[begin]) + rng.random(end - begin))
        begin = end
    return Groups(rows, starts, rng.permutation(len(starts) - 1))


def steps_of(groups: Groups, batch: int, first_step: int, num_steps: int) -> Steps:
    """Returns some steps of an epoch, `batch` groups each.

    Args:
      groups: of the epoch.
      batch: how many a step takes.
      first_step: the first of the steps.
      num_steps: how many.
    """
    chosen = groups.turn[first_step * batch : (first_step + num_steps) * batch]
    starts = groups.starts[chosen]
    sizes = groups.starts[chosen + 1] - starts
    ends = np.cumsum(sizes)
    places = np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1])
    group = np.repeat(np.arange(len(chosen), dtype=np.int32) % batch, sizes)
    bounds = np.concatenate([[0], ends[batch - 1 :: batch]]).astype(np.int32)
    return Steps(groups.rows[places], group, bounds, groups.rows[starts].reshape(-1, batch))
