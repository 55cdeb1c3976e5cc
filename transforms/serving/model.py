"""Serving as one TensorFlow model: user ids in; item ids and scores out, the same as in the table.

    user_id ──> what training knew ──> user tower ──> ScaNN, shard by shard ──> exclude, merge, certify ──> lists
                (history, seen)            └──> unknown: what is popular

It does in a graph what `search.search_block` does in NumPy, request by request, so the answers are the same. What is saved
needs TensorFlow and ScaNN's ops, and nothing else. It holds all users and all items of the job: it is as large as they are.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from transforms.search.search import SearchSettings, first_requests
from transforms.search.top_k import Lists
from transforms.serving.scann import PAD, ServedShard, merge, pack, unpack
from transforms.train.served_ids import ServedIds

PERSONALISED, POPULAR = "personalised", "popular"
SERVING_DEFAULT, WITH_HISTORY = "serving_default", "with_history"
"""The signatures: for users as training knew them, and with what they have rated since."""


@dataclass(frozen=True)
class KnownUsers:
    """What is known of the users, row by row."""

    ids: pa.Array
    """[n] string."""
    histories: pa.ListArray
    """[n] list<string>: what the tower makes a vector of, oldest first."""
    unwanted: Lists
    """n lists of codes that they must not get, -1 for an item that is not served."""


@dataclass(frozen=True)
class ServedItems:
    """The items that may be recommended, in ascending order of code."""

    ids: pa.Array
    """[n] string."""
    codes: np.ndarray
    """[n] int64."""
    popularity: np.ndarray
    """[n] float32: the score that users without a vector see."""


class ServedModel(tf.Module):
    """Recommends items to users.

    Args:
      tower: a loaded user tower.
      users: those that training knew; others have no history and have seen nothing.
      items: those that may be recommended.
      shards: of the index, those that have such items.
      k: items a user.
      settings: of the search.
      recommend_seen: whether what a request gives as history may be recommended.
      scratch: a local folder that stays until the model is saved.
    """

    def __init__(
        self,
        tower: Any,
        users: KnownUsers,
        items: ServedItems,
        shards: Sequence[ServedShard],
        k: int,
        settings: SearchSettings,
        recommend_seen: bool,
        scratch: Path,
    ) -> None:
        super().__init__()
        self.tower = tower
        self._embed = tower.signatures["serving_default"]
        self.takes_history = "history" in self._embed.structured_input_signature[1]
        self._k = k
        self._settings = settings
        self._recommend_seen = recommend_seen
        self.users = ServedIds(users.ids, scratch, "served_users")
        self.items = ServedIds(items.ids, scratch, "served_items")
        self.item_ids = _texts(items.ids)
        self.item_codes = _variable(items.codes)
        self.unwanted = _variable(users.unwanted.values.astype(np.int32))
        self.unwanted_ends = _variable(users.unwanted.offsets)
        if self.takes_history:
            encoded = users.histories.flatten().dictionary_encode()
            self.rated_ids = _texts(encoded.dictionary)
            self.rated = _variable(encoded.indices.to_numpy().astype(np.int32))
            self.rated_ends = _variable(_offsets_of(users.histories))
        by_popularity = pack(tf.constant(items.popularity), tf.constant(items.codes.astype(np.int32)))
        self.popular = _variable(np.sort(by_popularity.numpy())[::-1].copy())
        self.shards = list(shards)
        # What is asked of the shards depends on how much a row excludes; this is what, for so much at most.
        spans = [0]
        while not spans[-1] or spans[-1] < sum(shard.plan.num_vectors for shard in shards):
            spans.append(max(8, 2 * spans[-1]))
        plans = [shard.plan for shard in shards]
        asked = [
            first_requests(
                np.zeros((1, 1), np.float32), Lists(np.zeros(span, np.int64), np.array([0, span])), k, plans, settings.exact
            )[0]
            for span in spans
        ]
        self._spans = np.array(spans, np.int64)
        self._widths = np.array([request.width for request in asked], np.int32)
        self._shard_widths = np.array([request.shard_width for request in asked], np.int32)
        self._scans = np.array([request.exact for request in asked])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="user_id")], autograph=False)
    def recommend(self, user_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """Recommends to users what the table has for them.

        Args:
          user_id: [n] string.

        Returns:
          item_id: [n, k] string, best first, '' after the last; score: [n, k] float32, -inf after the last;
          source: [n] string, 'personalised' or 'popular'.
        """
        rows = self.users.codes_of(user_id)
        unwanted, unwanted_row = _lists_of(rows, self.unwanted, self.unwanted_ends)
        history, history_row = tf.constant([], tf.string), tf.constant([], tf.int32)
        if self.takes_history:
            rated, history_row = _lists_of(rows, self.rated, self.rated_ends)
            history = tf.gather(self.rated_ids, rated)
        return self._recommend(user_id, history, history_row, unwanted, unwanted_row)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="user_id"),
            tf.TensorSpec([None, None], tf.string, name="history"),
        ],
        autograph=False,
    )
    def recommend_with_history(self, user_id: tf.Tensor, history: tf.Tensor) -> dict[str, tf.Tensor]:
        """Recommends to users who have rated something since training, or whom training did not know.

        Args:
          user_id: [n] string; '' for a user without an id.
          history: [n, m] string: the items that the user has rated, oldest first, '' where there are fewer. A tower by history
            makes its vector of these, in place of what training knew. None of them is recommended, nor what training knew to
            be seen.

        Returns:
          What `recommend` does.
        """
        unwanted, unwanted_row = _lists_of(self.users.codes_of(user_id), self.unwanted, self.unwanted_ends)
        places = tf.where(history != "")
        given, row = tf.gather_nd(history, places), tf.cast(places[:, 0], tf.int32)
        if not self._recommend_seen:
            places = self.items.codes_of(given)
            codes = tf.where(places >= 0, tf.gather(self.item_codes, tf.maximum(places, 0)), -1)
            unwanted = tf.concat([unwanted, tf.cast(codes, tf.int32)], 0)
            unwanted_row = tf.concat([unwanted_row, row], 0)
        return self._recommend(user_id, given, row, unwanted, unwanted_row)

    def _recommend(
        self, user_id: tf.Tensor, history: tf.Tensor, history_row: tf.Tensor, unwanted: tf.Tensor, unwanted_row: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Recommends, given histories and what is unwanted as values ([total]) and their rows ([total] int32)."""
        num_users = tf.shape(user_id)[0]
        inputs = {"ids": user_id}
        if self.takes_history:
            lengths = tf.math.bincount(history_row, minlength=num_users, maxlength=num_users, dtype=tf.int64)
            inputs |= {"history": history, "history_lengths": lengths}
        embedded = self._embed(**inputs)
        known = embedded["known"]
        counts = tf.math.bincount(unwanted_row, minlength=num_users, maxlength=num_users, dtype=tf.int64)
        # A row's unwanted items as (row, code) in one number, ascending, so that all rows are looked up at once.
        pairs = tf.sort(_pairs(unwanted_row, tf.cast(unwanted, tf.int64)))
        level = tf.searchsorted(self._spans, tf.minimum(counts, self._spans[-1]))
        keys = tf.fill(tf.stack([num_users, self._k]), tf.constant(PAD, tf.int64))
        keys = self._search(keys, embedded["embedding"], known, level, pairs)
        keys = self._fill_popular(keys, known, counts, pairs)
        scores, codes = unpack(keys)
        places = tf.reshape(tf.searchsorted(self.item_codes, tf.reshape(codes, [-1])), tf.shape(codes))
        item_ids = tf.where(codes >= 0, tf.gather(self.item_ids, places), "")
        return {"item_id": item_ids, "score": scores, "source": tf.where(known, PERSONALISED, POPULAR)}

    def _search(self, keys: tf.Tensor, vectors: tf.Tensor, known: tf.Tensor, level: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
        """Puts the lists of known rows into keys ([n, k] int64): asks until every row is certain, as `search_block` does."""

        def ask(at: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = tf.where(known & (level == at))[:, 0]
            width = tf.gather(self._widths, at)

            def settle(
                rows: tf.Tensor, shard_width: tf.Tensor, exact: tf.Tensor, keys: tf.Tensor
            ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
                queries = tf.gather(vectors, rows)
                answers = [shard.answer(queries, shard_width, exact, self._settings) for shard in self.shards]
                found = tf.concat([answer.keys for answer in answers], 1)
                if len(answers) > 1:
                    found = merge(found, tf.minimum(width, tf.shape(found)[1]))
                lists = merge(_without(found, rows, pairs), self._k)
                bounds = tf.reduce_max(tf.stack([answer.bounds for answer in answers]), 0)
                keys = tf.tensor_scatter_nd_update(keys, rows[:, tf.newaxis], lists)
                certain = lists[:, -1] >= bounds
                return rows[~certain], width, exact | (shard_width >= width), keys

            asked = (rows, tf.gather(self._shard_widths, at), tf.gather(self._scans, at), keys)
            shapes = (tf.TensorShape([None]), tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([None, self._k]))
            done = tf.while_loop(lambda rows, *_: tf.size(rows) > 0, settle, asked, shape_invariants=shapes)
            return at + 1, done[3]

        last = len(self._spans)
        return tf.while_loop(lambda at, _: at < last, ask, (tf.constant(0), keys))[1]

    def _fill_popular(self, keys: tf.Tensor, known: tf.Tensor, counts: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
        """Puts what is popular and not unwanted into the rows of keys that are not known."""
        rows = tf.where(~known)[:, 0]

        def fill() -> tf.Tensor:
            first = self.popular[: self._k + tf.reduce_max(tf.gather(counts, rows))]
            lists = tf.tile(first[tf.newaxis], tf.stack([tf.size(rows), 1]))
            return tf.tensor_scatter_nd_update(keys, rows[:, tf.newaxis], merge(_without(lists, rows, pairs), self._k))

        return tf.cond(tf.size(rows) > 0, fill, lambda: keys)


def _variable(values: np.ndarray) -> tf.Variable:
    return tf.Variable(values, trainable=False)


def _texts(ids: pa.Array) -> tf.Variable:
    return tf.Variable(tf.constant(ids.to_numpy(zero_copy_only=False).astype(object), tf.string), trainable=False)


def _offsets_of(lists: pa.ListArray) -> np.ndarray:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def _lists_of(rows: tf.Tensor, values: tf.Variable, ends: tf.Variable) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the lists of rows ([n] int64, -1: empty) one after the other, and whose each value is ([total] int32)."""
    at = tf.maximum(rows, 0)
    starts = tf.gather(ends, at)
    lengths = tf.where(rows >= 0, tf.gather(ends, at + 1) - starts, 0)
    row = tf.repeat(tf.range(tf.shape(rows)[0]), lengths)
    within = tf.range(tf.size(row, tf.int64)) - tf.gather(tf.cumsum(lengths, exclusive=True), row)
    return tf.gather(values, tf.gather(starts, row) + within), row


def _pairs(rows: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
    """Returns (row, code) as one int64; a code of -1 makes no other row's pair."""
    return tf.cast(rows, tf.int64) * 2**32 + codes + 1


def _without(keys: tf.Tensor, rows: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
    """Returns keys ([m, w] int64) with PAD in place of what is unwanted in their rows ([m] int64)."""
    asked = tf.reshape(_pairs(rows[:, tf.newaxis], unpack(keys)[1]), [-1])
    padded = tf.concat([pairs, [tf.int64.max]], 0)
    found = tf.gather(padded, tf.searchsorted(padded, asked)) == asked
    return tf.where(tf.reshape(found, tf.shape(keys)), PAD, keys)


def save_model(make: Callable[[Path], ServedModel], folder: Path) -> None:
    """Writes a model as a SavedModel.

    Args:
      make: returns the model, given a folder for its vocabularies.
      folder: a local folder, made here.
    """
    with tempfile.TemporaryDirectory(prefix="shortlist-") as scratch:
        model = make(Path(scratch))
        signatures = {SERVING_DEFAULT: model.recommend, WITH_HISTORY: model.recommend_with_history}
        tf.saved_model.save(model, str(folder), signatures, tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]))
    # It holds a random number, is not needed, and would make equal models differ.
    (folder / "fingerprint.pb").unlink()
