"""User towers: a vector of a user's own, or one made of what the user has rated, or the sum of both.

    id          users[user]                             a user that training saw
    history     mean of rated[item] over its items      any user with a known item, also one who came later
    id+history  their sum                               either

A training step draws some items of each history, which bounds its time and memory whatever the length, and touches the rows of
those items alone. What is served is made of whole histories, summed without holding a vector for each item.
"""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import tensorflow as tf

from transforms.train.recency import lift_users
from transforms.train.served_ids import ServedIds, save_served
from transforms.train.spectral import Start
from transforms.train.towers import Batch, IdTower, ServedVectors, first_vectors

_USERS_AT_ONCE = 1 << 16


class Drawn(NamedTuple):
    """What is drawn from the histories of a batch's users.

    Attributes:
      items: [m] int32 codes.
      whose: [m] int32, ascending: which of the different users each is of.
      counts: [num_users] int32: how many each of them has.
      user: [batch] int32: which of them each of the batch is.
      has_own: [n] bool: whether each of the batch's ratings is among its user's.
    """

    items: tf.Tensor
    whose: tf.Tensor
    counts: tf.Tensor
    user: tf.Tensor
    has_own: tf.Tensor


class Histories:
    """What each user rated in training, as rows that are sorted by user.

    Args:
      user: [n] int32 codes, ascending.
      item: [n] int32 codes.
      num_users: how many users there are.
    """

    def __init__(self, user: np.ndarray, item: np.ndarray, num_users: int) -> None:
        self.lengths = np.bincount(user, minlength=num_users)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.items = item
        # Tensors that a compiled function refers to, rather than constants that its graph would hold.
        self._starts, self._lengths, self._items = (
            tf.constant(array, tf.int32) for array in (self.starts[:-1], self.lengths, item)
        )

    def draw(self, batch: Batch, num_drawn: int) -> Drawn:
        """Draws from the histories of a batch's users, once for each user.

        A history is taken whole where it has no more than `num_drawn` items; else it is made a ring, cut anywhere into so many
        pieces, as equal as can be, and each gives one item at random.

        Args:
          batch: some users and what they rated.
          num_drawn: the most items a user.
        """
        users, user = tf.unique(batch.users)
        starts, lengths = (tf.gather(each, users)[:, tf.newaxis] for each in (self._starts, self._lengths))
        chance = tf.random.stateless_uniform([tf.shape(users)[0], num_drawn + 1], batch.draw)
        # In 64 bits: the product of a slot and a length may not fit 32.
        slots = tf.range(num_drawn + 1, dtype=tf.int64)
        cuts = tf.cast(slots * tf.cast(lengths, tf.int64) // num_drawn, tf.int32)
        turn = _some_of(lengths, chance[:, :1])
        drawn = cuts[:, :-1] + _some_of(cuts[:, 1:] - cuts[:, :-1], chance[:, 1:])
        is_long = lengths > num_drawn
        slot = tf.range(num_drawn)[tf.newaxis, :]
        rows = starts + tf.where(is_long, (drawn + turn) % lengths, slot)
        is_there = slot < lengths
        of_rated = tf.gather(user, batch.whose)
        whose = tf.broadcast_to(tf.range(tf.shape(users)[0])[:, tf.newaxis], tf.shape(rows))
        return Drawn(
            tf.gather(self._items, rows[is_there]),
            whose[is_there],
            tf.minimum(lengths[:, 0], num_drawn),
            user,
            tf.gather_nd(rows, tf.stack([of_rated, self._slots_of(batch, tf.gather(turn[:, 0], of_rated), num_drawn)], axis=1))
            == batch.rows,
        )

    def _slots_of(self, batch: Batch, turn: tf.Tensor, num_drawn: int) -> tf.Tensor:
        """Returns [n] int32: the slot that may have drawn each of the batch's ratings, given how its user's ring is turned."""
        users = tf.gather(batch.users, batch.whose)
        length, place = tf.gather(self._lengths, users), batch.rows - tf.gather(self._starts, users)
        on_ring = tf.cast((place - turn) % length, tf.int64)
        piece = ((on_ring + 1) * num_drawn - 1) // tf.cast(length, tf.int64)
        return tf.where(length > num_drawn, tf.cast(piece, tf.int32), place)

    def of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns whole histories: [m] int32 items, and [m] int32: whose they are, by place in `users`, ascending."""
        lengths = self.lengths[users]
        row = np.repeat(np.arange(len(users), dtype=np.int32), lengths)
        first = np.repeat(self.starts[users] - (np.cumsum(lengths) - lengths), lengths)
        return self.items[first + np.arange(len(row))], row


def _some_of(number: tf.Tensor, chance: tf.Tensor) -> tf.Tensor:
    """Returns int32 from 0 to number - 1, by chance in [0, 1); what is nearly 1 may round up."""
    return tf.minimum(tf.cast(chance * tf.cast(number, tf.float32), tf.int32), number - 1)


class UserTower(Protocol):
    """Makes the vectors of users: without what a batch learns from in training, else of all that they rated."""

    @property
    def seldom(self) -> list[tf.Variable]:
        """Variables whose rows come up seldom in training, as those of a user do."""

    def begin(self, start: Start) -> None:
        """Begins with the vectors of a start."""

    def __call__(self, batch: Batch) -> tf.Tensor:
        """Returns [batch, dim] float32."""

    def vectors_of(self, users: np.ndarray) -> np.ndarray:
        """Returns [n, dim] float32 for [n] int32 codes."""

    def save(self, user_ids: pa.Array, item_ids: pa.Array, folder: Path) -> None:
        """Writes a SavedModel: ids (and histories) -> {"embedding": [n, dim + 1] float32, "known": [n] bool}.

        The last dimension is 1, for the items' biases; what is unknown has the zero vector.
        """


class UserIdTower(tf.keras.layers.Layer):
    """A vector of its own for each user that training saw; the arguments are those of IdTower."""

    def __init__(self, num_users: int, dim: int, seed: int) -> None:
        super().__init__()
        self.own = IdTower(num_users, dim, seed)

    @property
    def seldom(self) -> list[tf.Variable]:
        return [self.own.embeddings]

    def begin(self, start: Start) -> None:
        self.own.embeddings.assign(start.users)

    def call(self, batch: Batch) -> tf.Tensor:
        return self.own(batch.users)

    def vectors_of(self, users: np.ndarray) -> np.ndarray:
        return self.own.vectors[users]

    def save(self, user_ids: pa.Array, item_ids: pa.Array, folder: Path) -> None:
        save_served(lambda scratch: ServedVectors(user_ids, lift_users(self.own.vectors), scratch), folder)


class HistoryTower(tf.keras.layers.Layer):
    """The mean of the vectors of what a user rated; each item has a vector for this, apart from the item tower's.

    In training the items that a step learns from are left out, so that the tower does not learn to find what it was shown, and
    of a long history a sample is drawn anew at each step.

    Args:
      histories: of training.
      num_items: codes are 0 to num_items - 1.
      dim: of the vectors.
      num_drawn: the most items of a history that a step looks at.
      seed: of the first vectors, where nothing else is said.
    """

    def __init__(self, histories: Histories, num_items: int, dim: int, num_drawn: int, seed: int) -> None:
        super().__init__()
        self._histories, self._num_drawn = histories, num_drawn
        self.rated = self.add_weight(name="rated", shape=(num_items, dim), initializer=first_vectors(seed))

    def call(self, batch: Batch) -> tf.Tensor:
        drawn = self._histories.draw(batch, self._num_drawn)
        # Not tf.sparse.segment_sum: its gradient takes time in proportion to the whole table.
        vectors = tf.gather(self.rated, drawn.items)
        sums = tf.math.unsorted_segment_sum(vectors, drawn.whose, tf.shape(drawn.counts)[0])
        own = tf.where(drawn.has_own[:, tf.newaxis], tf.gather(self.rated, batch.items), 0.0)
        num_own = tf.math.segment_sum(tf.cast(drawn.has_own, tf.int32), batch.whose)
        others = tf.gather(drawn.counts, drawn.user) - num_own
        left = tf.gather(sums, drawn.user) - tf.math.segment_sum(own, batch.whose)
        return left / tf.cast(tf.maximum(others, 1), tf.float32)[:, tf.newaxis]

    @property
    def seldom(self) -> list[tf.Variable]:
        return []

    def begin(self, start: Start) -> None:
        self.rated.assign(start.rated)

    def vectors_of(self, users: np.ndarray) -> np.ndarray:
        vectors = [
            mean_of(self.rated, *self._histories.of(some), len(some)).numpy()
            for some in np.split(users, range(_USERS_AT_ONCE, len(users), _USERS_AT_ONCE))
        ]
        return np.concatenate(vectors)

    def save(self, user_ids: pa.Array, item_ids: pa.Array, folder: Path) -> None:
        save_served(lambda scratch: _ServedHistories(item_ids, self.rated.numpy(), scratch), folder)


class IdAndHistoryTower(tf.keras.layers.Layer):
    """The sum of a user's own vector and the mean of the vectors of what it rated.

    Args:
      id_tower: gives the one.
      history_tower: gives the other.
      id_dropout: the part of a batch's users that train without the user's own vector: histories then learn to do alone, as
        they must for users who come later (dropout of ids, after "DropoutNet": Volkovs, Yu and Poutanen 2017).
    """

    def __init__(self, id_tower: UserIdTower, history_tower: HistoryTower, id_dropout: float) -> None:
        super().__init__()
        self.id_tower, self.history_tower, self._id_dropout = id_tower, history_tower, id_dropout

    def call(self, batch: Batch) -> tf.Tensor:
        # The history draws with the seed as it is, and TwoTowers with the next two.
        chance = tf.random.stateless_uniform(tf.shape(batch.users), tf.add(batch.draw, [3, 0]))
        has_own = tf.cast(chance >= self._id_dropout, tf.float32)[:, tf.newaxis]
        return has_own * self.id_tower(batch) + self.history_tower(batch)

    @property
    def seldom(self) -> list[tf.Variable]:
        return self.id_tower.seldom

    def begin(self, start: Start) -> None:
        # What is a user's own is what its history does not say: nothing, at first.
        self.id_tower.own.embeddings.assign(np.zeros_like(start.users))
        self.history_tower.begin(start)

    def vectors_of(self, users: np.ndarray) -> np.ndarray:
        return self.id_tower.vectors_of(users) + self.history_tower.vectors_of(users)

    def save(self, user_ids: pa.Array, item_ids: pa.Array, folder: Path) -> None:
        rated, own = self.history_tower.rated.numpy(), self.id_tower.own.vectors
        save_served(lambda scratch: _ServedHistories(item_ids, rated, scratch, user_ids, own), folder)


def make_user_tower(
    kind: str, histories: Histories, num_items: int, dim: int, num_drawn: int, id_dropout: float, seed: int
) -> UserTower:
    """Returns the tower that `kind` names: id, history or id+history."""
    num_users = len(histories.lengths)
    if kind == "id":
        return UserIdTower(num_users, dim, seed)
    if kind == "history":
        return HistoryTower(histories, num_items, dim, num_drawn, seed + 2)
    id_tower = UserIdTower(num_users, dim, seed)
    return IdAndHistoryTower(id_tower, HistoryTower(histories, num_items, dim, num_drawn, seed + 2), id_dropout)


def mean_of(vectors: tf.Variable, items: tf.Tensor, row: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
    """Returns [num_rows, dim] float32: the mean of the vectors of each row's items, zero where it has none.

    Args:
      vectors: [num_items, dim] float32.
      items: [m] int32.
      row: [m] int32, ascending: whose each item is.
      num_rows: how many rows there are.
    """
    return tf.sparse.segment_mean(vectors, items, row, num_rows)


class _ServedHistories(tf.Module):
    """Means of histories, given as ids, and users' own vectors where there are some; what is unknown is left out."""

    def __init__(
        self,
        item_ids: pa.Array,
        rated: np.ndarray,
        scratch: Path,
        user_ids: pa.Array | None = None,
        own: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.items = ServedIds(item_ids, scratch, "items")
        self.rated = tf.Variable(rated, trainable=False)
        self.users = ServedIds(user_ids, scratch, "users") if user_ids is not None else None
        self.own = tf.Variable(own, trainable=False) if own is not None else None

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="ids"),
            tf.TensorSpec([None], tf.string, name="history"),
            tf.TensorSpec([None], tf.int64, name="history_lengths"),
        ]
    )
    def embed(self, ids: tf.Tensor, history: tf.Tensor, history_lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        codes = self.items.codes_of(history)
        is_known = codes >= 0
        row = tf.repeat(tf.range(tf.shape(ids)[0]), history_lengths)[is_known]
        vectors = mean_of(self.rated, codes[is_known], row, tf.shape(ids)[0])
        known = tf.math.unsorted_segment_max(tf.ones_like(row), row, tf.shape(ids)[0]) > 0
        if self.users is not None:
            users = self.users.codes_of(ids)
            own = tf.gather(self.own, tf.maximum(users, 0))
            vectors += tf.where((users >= 0)[:, tf.newaxis], own, 0.0)
            known |= users >= 0
        lifted = tf.concat([vectors, tf.cast(known, tf.float32)[:, tf.newaxis]], axis=1)
        return {"embedding": lifted, "known": known}
