"""Where training begins: vectors from a truncated singular value decomposition of who rated what.

The matrix of users and items has a 1 for each rating, divided by the square root of the user's number of ratings and of the
item's: D_user^-1/2 X D_item^-1/2. Its first singular vectors say in seconds much of what training would find in many epochs.
They are found by subspace iteration on a random start (Halko, Martinsson and Tropp 2011, "Finding structure with
randomness"), which reads the ratings twice an iteration and keeps nothing but the vectors.

TensorFlow is imported when it is needed, not before.
"""

from typing import NamedTuple

import numpy as np

from transforms.train.rows import TrainingRows

LENGTH = 1.0
"""Of the vectors at first: the root of the mean square over the ratings. Training ends with 1.5 to 3."""

_ITERATIONS = 3
_OVERSAMPLING = 8

_SMALL = 0.05
"""Dimensions that the matrix has nothing to say about, since it is small, begin at random, uniform in +-0.05."""

_SAME = 1e-10
"""Directions whose share of the variance is below this are rounding errors."""


class Start(NamedTuple):
    """First vectors.

    Attributes:
      users: [num_users, dim] float32.
      items: [num_items, dim] float32.
      rated: [num_items, dim] float32: for users that are the mean of what they rated.
    """

    users: np.ndarray
    items: np.ndarray
    rated: np.ndarray


def spectral_start(rows: TrainingRows, dim: int, seed: int) -> Start:
    """Returns the vectors that training begins with; whoever has no row has the zero vector.

    Args:
      rows: what is trained on.
      dim: of the vectors.
      seed: of the random start.
    """
    num_users, num_items = len(rows.user_ids), len(rows.item_ids)
    rng = np.random.default_rng([seed, dim])
    matrix = _Matrix(rows)
    wanted = min(dim + _OVERSAMPLING, num_users, num_items)
    right = rng.standard_normal((num_items, wanted), np.float32)
    for _ in range(_ITERATIONS):
        right = _orthonormal(matrix.transposed_times(_orthonormal(matrix.times(right))))
    left = matrix.times(right)
    variances, turn = np.linalg.eigh(_products(left))
    kept = np.flatnonzero(variances > variances[-1] * _SAME)[::-1][:dim]
    values, turn = np.sqrt(variances[kept]), turn[:, kept]
    users = left @ (turn / np.sqrt(values)).astype(np.float32)
    items = right @ (turn * np.sqrt(values)).astype(np.float32)
    rated = right @ (turn / np.sqrt(values)).astype(np.float32) * matrix.item_weight
    made = [
        _scaled(users, rows.user),
        _scaled(items, rows.item),
        _scaled(rated, rows.item),
    ]
    missing = dim - len(kept)
    if missing:
        seen = [
            np.bincount(codes, minlength=len(vectors)) > 0
            for vectors, codes in zip(made, (rows.user, *[rows.item] * 2), strict=True)
        ]
        made = [
            np.hstack([vectors, rng.uniform(-_SMALL, _SMALL, (len(vectors), missing)) * has[:, np.newaxis]]).astype(np.float32)
            for vectors, has in zip(made, seen, strict=True)
        ]
    return Start(*made)


class _Matrix:
    """The normalised matrix, as sums over rows that are sorted by user, and by item."""

    def __init__(self, rows: TrainingRows) -> None:
        import tensorflow as tf

        self._tf = tf
        self._num_users, self._num_items = len(rows.user_ids), len(rows.item_ids)
        by_item = np.argsort(rows.item, kind="stable")
        self._user_by_item, self._item_by_item = tf.constant(rows.user[by_item]), tf.constant(rows.item[by_item])
        del by_item
        self._user, self._item = tf.constant(rows.user), tf.constant(rows.item)
        self._user_weight = _weight(rows.user, self._num_users)
        self.item_weight = _weight(rows.item, self._num_items)

    def times(self, vectors: np.ndarray) -> np.ndarray:
        """Returns [num_users, n] float32 for [num_items, n] float32."""
        sums = self._tf.sparse.segment_sum(vectors * self.item_weight, self._item, self._user, num_segments=self._num_users)
        return sums.numpy() * self._user_weight

    def transposed_times(self, vectors: np.ndarray) -> np.ndarray:
        """Returns [num_items, n] float32 for [num_users, n] float32."""
        sums = self._tf.sparse.segment_sum(
            vectors * self._user_weight, self._user_by_item, self._item_by_item, num_segments=self._num_items
        )
        return sums.numpy() * self.item_weight


def _weight(codes: np.ndarray, num_codes: int) -> np.ndarray:
    return (1 / np.sqrt(np.maximum(1, np.bincount(codes, minlength=num_codes)))).astype(np.float32)[:, np.newaxis]


def _products(vectors: np.ndarray) -> np.ndarray:
    """Returns [n, n] float64: the inner products of the columns."""
    return (vectors.T @ vectors).astype(np.float64)


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Returns columns that span what the columns of [m, n] span, orthonormal; fewer where some say nothing new."""
    variances, turn = np.linalg.eigh(_products(vectors))
    kept = variances > variances[-1] * _SAME
    return vectors @ (turn[:, kept] / np.sqrt(variances[kept])).astype(np.float32)


def _scaled(vectors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Returns the vectors at the length that training begins with, over the ratings."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    mean = float(np.bincount(codes, minlength=len(vectors)) @ squares / len(codes))
    return (vectors * (LENGTH / np.sqrt(mean))).astype(np.float32) if mean else vectors
