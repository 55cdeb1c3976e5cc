"""The tutorial's two-tower model: an embedding of each id, an in-batch softmax, and metrics over the whole catalogue."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from benchmarks.tutorial import published
from benchmarks.tutorial.ratings import Ratings


class TutorialModel(tfrs.Model):
    """The towers of the tutorial, with its loss.

    Args:
      ratings: whose ids the towers know.
      dim: of the vectors.
    """

    def __init__(self, ratings: Ratings, dim: int = published.DIM) -> None:
        super().__init__()
        tf.keras.utils.set_random_seed(published.SEED)
        self.user_model = _tower(ratings.user_ids, dim)
        self.item_model = _tower(ratings.item_ids, dim)
        self.task = tfrs.tasks.Retrieval()
        self.compile(optimizer=tf.keras.optimizers.Adagrad(published.LEARNING_RATE))

    def compute_loss(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns the softmax loss of a batch.

        Args:
          features: [batch] string "user_id" and "item_id", and [batch] int32 "row": the item's in the catalogue, by which
            the metrics tell whether it was found.
          training: leaves the metrics out.
        """
        users, items = self.user_model(features["user_id"]), self.item_model(features["item_id"])
        return self.task(users, items, candidate_ids=features["row"], compute_metrics=not training)

    def judge_with(self, candidates: tfrs.layers.factorized_top_k.TopK) -> None:
        """Makes `accuracy` find candidates with that layer, which answers with rows of the catalogue.

        Two things that the tutorial leaves out, TFRS 0.7.7 insists on: metrics come as a list (a metric by itself is dropped
        without a word, and nothing is measured), and an approximate layer is judged by ids (it refuses scores).
        """
        self.task.factorized_metrics = [tfrs.metrics.FactorizedTopK(candidates, ks=list(published.ACCURACY))]
        self.compile(optimizer=self.optimizer)

    def accuracy(self, test: tf.data.Dataset) -> dict[int, float]:
        """Returns how often a test row's item is among the first so many candidates, by that number."""
        found = self.evaluate(test, return_dict=True, verbose=0)
        return {k: float(found[f"factorized_top_k/top_{k}_categorical_accuracy"]) for k in published.ACCURACY}

    def vectors(self, ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
        """Returns [num_users, dim] and [num_items, dim] float32, by code."""
        towers = ((self.user_model, ratings.user_ids), (self.item_model, ratings.item_ids))
        users, items = (tower(tf.constant(ids, tf.string)).numpy() for tower, ids in towers)
        return users, items


def _tower(ids: np.ndarray, dim: int) -> tf.keras.Sequential:
    # One more row, for ids that are not known.
    lookup = tf.keras.layers.StringLookup(vocabulary=ids, mask_token=None)
    return tf.keras.Sequential([lookup, tf.keras.layers.Embedding(len(ids) + 1, dim)])


def batches(ratings: Ratings, part: slice, batch_size: int) -> tf.data.Dataset:
    """Returns rows of the ratings as batches of what `TutorialModel` takes: one by one from a shuffled dataset, as it does."""
    user, item = ratings.user[part], ratings.item[part]
    rows = {
        "user_id": tf.constant(ratings.user_ids[user], tf.string),
        "item_id": tf.constant(ratings.item_ids[item], tf.string),
        "row": item,
    }
    return tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
