"""Item towers: a vector of an item's own, learned from its ratings, or that and the vectors of its features.

    id           items[item]                                                     an item that was rated
    id+features  items[item] + the sum of weight x features[code] over its bag   that, or an item with a known value

In training, an item's own vector is left out of some rows by chance, as an item without ratings will have none: its features
then have to do alone (dropout of ids, after "DropoutNet": Volkovs, Yu and Poutanen 2017). The features' vectors begin at zero,
so they say nothing that no rating has taught them.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import tensorflow as tf

from schemas.stage_files import FEATURES_FILE
from transforms.train.encode_features import ItemFeatures
from transforms.train.recency import lift_items
from transforms.train.served_ids import ServedIds, save_served
from transforms.train.spectral import Start
from transforms.train.towers import IdTower

_ITEMS_AT_ONCE = 1 << 16


class FeatureTower(tf.keras.layers.Layer):
    """The sum of an item's own vector and of its features' vectors.

    Args:
      features: of the items.
      dim: of the vectors.
      id_dropout: the part of the items that train without their own vector.
      seed: of the first own vectors, where nothing else is said.
    """

    def __init__(self, features: ItemFeatures, dim: int, id_dropout: float, seed: int) -> None:
        super().__init__()
        encoder, bags = features
        self._encoder, self._id_dropout = encoder, id_dropout
        self.own = IdTower(len(bags.lengths), dim, seed)
        self.of_codes = self.add_weight(name="features", shape=(encoder.num_codes, dim), initializer="zeros")
        # Tensors that a compiled function refers to, rather than constants that its graph would hold.
        self._codes, self._weights = tf.constant(bags.codes), tf.constant(bags.weights)
        self._ends = tf.constant(np.cumsum(bags.lengths, dtype=np.int64))
        self._lengths = tf.constant(bags.lengths, tf.int64)

    def begin(self, start: Start) -> None:
        """Begins with the own vectors of items."""
        self.own.begin(start)

    def call(self, items: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        """Returns [batch, dim] float32 for [batch] int32 codes; with a `draw`, [2] int32, some without their own vectors."""
        own = self.own(items)
        if draw is not None and self._id_dropout:
            chance = tf.random.stateless_uniform(tf.shape(items), draw)
            own *= tf.cast(chance >= self._id_dropout, tf.float32)[:, tf.newaxis]
        ends, lengths = tf.gather(self._ends, items), tf.gather(self._lengths, items)
        places = tf.ragged.range(ends - lengths, ends).flat_values
        return own + weighted_sum(self.of_codes, tf.gather(self._codes, places), tf.gather(self._weights, places), lengths)

    @property
    def vectors(self) -> np.ndarray:
        """[num_items, dim] float32: every item's vector, by code."""
        num_items = len(self._lengths)
        starts = range(0, num_items, _ITEMS_AT_ONCE)
        pieces = (tf.range(start, min(start + _ITEMS_AT_ONCE, num_items)) for start in starts)
        return np.concatenate([self.call(piece).numpy() for piece in pieces])

    def save(self, ids: pa.Array, folder: Path, affinity_weight: float, bias: np.ndarray) -> None:
        """Writes a SavedModel, and beside it what encodes features.

        It takes ids, [n] string, and their bags: codes, [m] int32, weights, [m] float32, and lengths, [n] int32. It gives
        {"embedding": [n, dim + 1] float32, "known": [n] bool}.

        Args:
          ids: [num_items] string, by code.
          folder: a local folder.
          affinity_weight: the factor of the vectors.
          bias: [num_items] float32, the last dimension; 0 for an item without ratings.
        """
        own = lift_items(self.own.vectors, affinity_weight, bias)
        of_codes = lift_items(self.of_codes.numpy(), affinity_weight, np.zeros(self.of_codes.shape[0], np.float32))
        save_served(lambda scratch: _ServedFeatures(ids, own, of_codes, scratch), folder)
        (folder / FEATURES_FILE).write_text(json.dumps(self._encoder.to_json()), encoding="utf-8")


def make_item_tower(
    features: ItemFeatures | None, num_items: int, dim: int, id_dropout: float, seed: int
) -> IdTower | FeatureTower:
    """Returns the tower that looks at features where there are any, else the one by id."""
    return FeatureTower(features, dim, id_dropout, seed) if features else IdTower(num_items, dim, seed)


def weighted_sum(vectors: tf.Variable, codes: tf.Tensor, weights: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Returns [n, dim] float32: the sum of the weighted vectors of each bag, zero where it is empty.

    Args:
      vectors: [num_codes, dim] float32.
      codes: [m] int32.
      weights: [m] float32.
      lengths: [n] int: how many codes are each bag's.
    """
    num_bags = tf.shape(lengths)[0]
    bag = tf.repeat(tf.range(num_bags), lengths)
    return tf.math.unsorted_segment_sum(tf.gather(vectors, codes) * weights[:, tf.newaxis], bag, num_bags)


class _ServedFeatures(tf.Module):
    """Gives the vectors of items by their ids and their bags; nothing is added for what is unknown."""

    def __init__(self, ids: pa.Array, own: np.ndarray, of_codes: np.ndarray, scratch: Path) -> None:
        super().__init__()
        self.ids = ServedIds(ids, scratch)
        self.own = tf.Variable(own, trainable=False)
        self.of_codes = tf.Variable(of_codes, trainable=False)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="ids"),
            tf.TensorSpec([None], tf.int32, name="codes"),
            tf.TensorSpec([None], tf.float32, name="weights"),
            tf.TensorSpec([None], tf.int32, name="lengths"),
        ]
    )
    def embed(self, ids: tf.Tensor, codes: tf.Tensor, weights: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = self.ids.codes_of(ids)
        has_own = rows >= 0
        own = tf.gather(self.own, tf.maximum(rows, 0))
        vectors = tf.where(has_own[:, tf.newaxis], own, 0.0) + weighted_sum(self.of_codes, codes, weights, lengths)
        return {"embedding": vectors, "known": has_own | (lengths > 0)}
