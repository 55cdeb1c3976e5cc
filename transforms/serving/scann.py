"""Searches a shard inside a TensorFlow graph, with ScaNN's own ops: what `scann_index` and `search.Shard` find, to the bit.

The index is not built again: the files that ScaNN writes hold what its op takes. A searcher is made when it is first used and
lives as long as its process; its name stands for its contents, so that two models in one process never take each other's.
ScaNN copies the vectors it is given, so they lie in memory twice: in the model's variables and in the searcher.

Scored items are 64-bit keys, as in `top_k`, but TensorFlow sorts int64 only, and descending, so here greater is better:

    [ score as an ordered integer ][ 2^32 - 1 - code ]
"""

import hashlib
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

from transforms.search.scann_index import BATCH, EXACT_SLACK, MIN_BATCH, SCORED_TOGETHER, ShardIndex
from transforms.search.search import SearchSettings, Shard

PAD = tf.int64.min
"""The key of no item."""
NO_MORE = PAD + 1
"""A bound below every item's key: see `top_k.is_certain`."""

_LOW = 0xFFFF_FFFF
_MAGNITUDE = 0x7FFF_FFFF

_STRINGS = {
    "scann_config": "scann_config.pb",
    "serialized_partitioner": "serialized_partitioner.pb",
    "ah_codebook": "ah_codebook.pb",
}
_ARRAYS = {"datapoint_to_token": "datapoint_to_token.npy", "hashed_dataset": "hashed_dataset.npy"}
"""What ScaNN's op takes beside the vectors, and the files that ScaNN writes it to."""


def pack(scores: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
    """Returns the keys, [...] int64, of scores ([...] float32, none NaN) and codes ([...] int32, from 0 on)."""
    bits = tf.bitcast(scores + 0.0, tf.int32)  # 0.0 and -0.0 are equal.
    ordered = tf.where(bits < 0, tf.bitwise.bitwise_xor(bits, _MAGNITUDE), bits)
    return tf.cast(ordered, tf.int64) * (_LOW + 1) + (_LOW - tf.cast(codes, tf.int64))


def unpack(keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the scores (float32, -inf for PAD) and the codes (int64, -1 for PAD) that `pack` put together."""
    ordered = tf.cast(tf.bitwise.right_shift(keys, tf.constant(32, tf.int64)), tf.int32)
    bits = tf.where(ordered < 0, tf.bitwise.bitwise_xor(ordered, _MAGNITUDE), ordered)
    is_item = keys > NO_MORE
    scores = tf.where(is_item, tf.bitcast(bits, tf.float32), -math.inf)
    return scores, tf.where(is_item, _LOW - tf.bitwise.bitwise_and(keys, tf.constant(_LOW, tf.int64)), -1)


def merge(keys: tf.Tensor, k: Any) -> tf.Tensor:
    """Returns the k best keys of each row, [n, k] int64, best first, PAD where there are fewer."""
    columns = tf.shape(keys)[1]
    best = tf.math.top_k(keys, tf.minimum(k, columns)).values
    return tf.pad(best, [[0, 0], [0, tf.maximum(0, k - columns)]], constant_values=PAD)


class ServedAnswer(NamedTuple):
    """What a shard answers: see `search.Answer`."""

    keys: tf.Tensor
    """[n, m] int64, best first."""
    bounds: tf.Tensor
    """[n] int64: the key before which the shard has kept nothing back."""


class ServedShard(tf.Module):
    """A shard that can be searched in a graph.

    Args:
      shard: with at least one item that may be recommended; its index must be no tree with SOAR, which ScaNN's ops cannot hold.
      blocked: [num_vectors] bool: which rows may not be recommended.
    """

    def __init__(self, shard: Shard, blocked: np.ndarray) -> None:
        super().__init__()
        index = shard.index
        self.plan = index.plan
        self._rounding = index.rounding
        self._num_items = int((~blocked).sum())
        self.codes = tf.Variable(shard.codes.astype(np.int32), trainable=False)
        self.blocked = tf.Variable(blocked, trainable=False) if blocked.any() else None
        with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
            index.save(folder)
            files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
            self.stored = tf.Variable(np.load(Path(folder, "dataset.npy")), trainable=False)
            arrays = {name: np.load(Path(folder, file)) for name, file in _ARRAYS.items() if file in files}
        strings = {name: [files[file]] for name, file in _STRINGS.items() if file in files}
        self.parts = {name: tf.Variable(value, trainable=False) for name, value in {**strings, **arrays}.items()}
        digest = hashlib.sha256()
        for name, data in files.items():
            digest.update(f"{name} {len(data)}\n".encode() + data)
        self._name = f"shortlist-{digest.hexdigest()[:32]}"
        self._exact_config = None if index.is_exact else _config_of(index.subset(np.arange(1)))

    def answer(self, queries: tf.Tensor, shard_width: tf.Tensor, exact: tf.Tensor, settings: SearchSettings) -> ServedAnswer:
        """Answers a request, as `search.Shard.answer` does.

        Args:
          queries: [n, dim] float32, n at least 1.
          shard_width: int32, how many items are asked for.
          exact: bool, whether nothing may be missed.
          settings: of an approximate search.
        """
        if self.plan.kind == "exact":
            return self._exact_answer(queries, shard_width)
        return tf.cond(
            exact,
            lambda: self._exact_answer(queries, shard_width),
            lambda: self._approximate_answer(queries, shard_width, settings),
        )

    def _approximate_answer(self, queries: tf.Tensor, shard_width: tf.Tensor, settings: SearchSettings) -> ServedAnswer:
        num_vectors = self.plan.num_vectors
        # As many more as are likely to be blocked.
        asked = tf.math.ceil(tf.cast(shard_width, tf.float64) * num_vectors / self._num_items)
        asked = tf.minimum(num_vectors, tf.cast(asked, tf.int32))
        reorder = tf.cast(tf.math.ceil(tf.cast(asked, tf.float64) * settings.reorder_per_neighbor), tf.int32)
        handle = scann_ops.tensors_to_scann(
            self.stored,
            *(
                self.parts.get(name, tf.constant(b"" if name in _STRINGS else 0, dtype))
                for name, dtype in (
                    ("scann_config", tf.string),
                    ("serialized_partitioner", tf.string),
                    ("datapoint_to_token", tf.int32),
                    ("ah_codebook", tf.string),
                    ("hashed_dataset", tf.uint8),
                )
            ),
            *_no_int8(),
            shared_name=self._name,
        )
        keys = self._keys(handle, queries, asked, reorder, settings.leaves_to_search)
        # Fewer than asked for: the leaves that were opened hold no others.
        bounds = tf.where(keys[:, -1] == PAD, NO_MORE, keys[:, -1])
        if self.blocked is not None:
            keys = merge(self._allowed(keys), shard_width)
            bounds = tf.where(keys[:, -1] == PAD, bounds, tf.maximum(bounds, keys[:, -1]))
        return ServedAnswer(keys, bounds)

    def _exact_answer(self, queries: tf.Tensor, shard_width: tf.Tensor) -> ServedAnswer:
        width = tf.minimum(shard_width, self._num_items)
        # The best of all rows hold the best of those that may be recommended.
        num_blocked = self.plan.num_vectors - self._num_items
        keys = self._exact_keys(queries, width + num_blocked)
        if self.blocked is not None:
            keys = merge(self._allowed(keys), width)
        return ServedAnswer(keys, tf.where(shard_width < self._num_items, keys[:, -1], PAD))

    def _exact_keys(self, queries: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Returns the best keys, [n, columns] int64; more rows are reordered until rounding cannot matter."""
        num_vectors = self.plan.num_vectors
        none = tf.constant(b"", tf.string)
        handle = scann_ops.tensors_to_scann(
            self.stored,
            self.parts["scann_config"] if self._exact_config is None else tf.constant([self._exact_config]),
            none,
            tf.constant(0, tf.int32),
            none,
            tf.constant(0, tf.uint8),
            *_no_int8(),
            shared_name=self._name if self._exact_config is None else f"{self._name}-exact",
        )
        tolerance = self._rounding * tf.norm(tf.cast(queries, tf.float64), axis=1)

        def found(width: tf.Tensor) -> tf.Tensor:
            return self._keys(handle, queries, tf.minimum(width, num_vectors), width, None)

        def may_miss(width: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
            scores = tf.cast(unpack(tf.stack([keys[:, columns - 1], keys[:, -1]]))[0], tf.float64)
            return (width < num_vectors) & tf.reduce_any(~(scores[0] - scores[1] > tolerance))

        width = columns + EXACT_SLACK
        _, keys = tf.while_loop(
            may_miss,
            lambda width, keys: (4 * width, found(4 * width)),
            (width, found(width)),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
        )
        return keys[:, :columns]

    def _keys(self, handle: tf.Tensor, queries: tf.Tensor, columns: tf.Tensor, reorder: tf.Tensor, leaves: int | None) -> Any:
        """Asks ScaNN, as `ShardIndex` does: [n, columns] int64 keys, best first, PAD where a leaf holds no more."""
        num_queries, num_stored = tf.shape(queries)[0], self.stored.shape[0]
        wanted = columns + (num_stored - self.plan.num_vectors)
        together = -(-tf.maximum(reorder, wanted) // SCORED_TOGETHER) * SCORED_TOGETHER
        if leaves is not None:
            short = tf.maximum(0, -num_queries % BATCH - (BATCH - MIN_BATCH))
            queries = tf.pad(queries, [[0, short], [0, 0]])
        rows, scores = scann_ops.scann_search_batched(
            handle, queries, wanted, tf.minimum(num_stored, together), -1 if leaves is None else leaves, num_queries > BATCH
        )
        shape = tf.stack([tf.shape(queries)[0], wanted])
        rows, scores = (tf.reshape(each, shape)[:num_queries] for each in (rows, scores))
        absent = tf.math.is_nan(scores) | (rows >= self.plan.num_vectors)
        codes = tf.gather(self.codes, tf.where(absent, 0, rows))
        return merge(tf.where(absent, PAD, pack(tf.where(absent, 0.0, scores), codes)), columns)

    def _allowed(self, keys: tf.Tensor) -> tf.Tensor:
        """Returns the keys with PAD in place of what may not be recommended."""
        rows = tf.searchsorted(tf.cast(self.codes, tf.int64), tf.reshape(unpack(keys)[1], [-1]))
        blocked = tf.gather(self.blocked, tf.minimum(rows, self.plan.num_vectors - 1))
        return tf.where(tf.reshape(blocked, tf.shape(keys)), PAD, keys)


def _config_of(index: ShardIndex) -> bytes:
    with tempfile.TemporaryDirectory(prefix="shortlist-") as folder:
        index.save(folder)
        return Path(folder, _STRINGS["scann_config"]).read_bytes()


def _no_int8() -> list[tf.Tensor]:
    """Returns what says that there are no vectors in int8: no dataset, no multipliers, no norms."""
    return [tf.constant(0, tf.int8), tf.constant(0.0), tf.constant(0.0)]
