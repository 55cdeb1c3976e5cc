"""Two towers in TensorFlow Recommenders: a vector for each user and each item, whose inner product is the score.

The loss is TFRS's in-batch softmax: each user of a batch picks its item among the items of the batch, and some more that are
uniform from the catalogue, if asked for. Items come into batches as often as they are popular, so the log of that is
taken off their scores (the logQ correction: Yi et al. 2019; of the mixture: Yang et al. 2020). It is taken off in log space, as
one more dimension of the vectors, since TFRS's own correction clips probabilities at 1e-6.

An item's popularity is a bias of its score, not learned but counted, so vectors only say how tastes differ from the average,
and L2 draws users and items that little is known of towards what is popular. What is served has the bias as its last dimension:
see `transforms.train.recency`.

Training works on codes; what `save` writes works on ids and needs nothing but TensorFlow.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_recommenders as tfrs

from transforms.train.recency import lift_items
from transforms.train.served_ids import ServedIds, save_served


class SparseAdam(tf.keras.optimizers.Adam):
    """Adam (Kingma and Ba 2015) that touches only the rows of an embedding that are in the batch.

    Keras decays the moments of every row at every step, so that a step takes as long as the vocabulary is large. Here the
    moments of a row stand still while it is away ("lazy" Adam).
    """

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates the rows in `gradient`, which Keras has made unique; all of a variable whose gradient is not sparse."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        slot = self._index_dict[self._var_key(variable)]
        first, second = self._momentums[slot], self._velocities[slot]
        step = tf.cast(self.iterations + 1, tf.float32)
        rate = self.learning_rate * tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        rows, values = gradient.indices, gradient.values
        mean = self.beta_1 * tf.gather(first, rows) + (1 - self.beta_1) * values
        square = self.beta_2 * tf.gather(second, rows) + (1 - self.beta_2) * tf.square(values)
        first.scatter_update(tf.IndexedSlices(mean, rows))
        second.scatter_update(tf.IndexedSlices(square, rows))
        variable.scatter_sub(tf.IndexedSlices(rate * mean / (tf.sqrt(square) + self.epsilon), rows))


def first_vectors(seed: int) -> tf.keras.initializers.Initializer:
    """Returns what vectors begin as: uniform in +-0.05."""
    return tf.keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)


def l2_of(weight: float) -> tf.keras.regularizers.Regularizer | None:
    """Returns the regularizer that adds weight / 2 times the mean squared length of a layer's outputs to the loss."""
    return tf.keras.regularizers.L2(weight / 2) if weight else None


class Batch(NamedTuple):
    """Some training rows.

    Attributes:
      users: [batch] int32 codes.
      items: [batch] int32 codes.
      rows: [batch] int32: which rows of training they are.
      draw: [2] int32: the seed of whatever a tower draws by chance for them.
    """

    users: tf.Tensor
    items: tf.Tensor
    rows: tf.Tensor
    draw: tf.Tensor


class IdTower(tf.keras.layers.Embedding):
    """A vector of its own for each id that training saw.

    Args:
      num_ids: codes are 0 to num_ids - 1.
      dim: of the vectors.
      l2: adds l2 / 2 times the mean squared length of the batch's vectors to the loss.
      seed: of the first vectors.
    """

    def __init__(self, num_ids: int, dim: int, l2: float, seed: int) -> None:
        super().__init__(
            num_ids,
            dim,
            embeddings_initializer=first_vectors(seed),
            activity_regularizer=l2_of(l2),
        )
        self.build(None)

    def call(self, codes: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        """Returns [batch, dim] float32 for [batch] int32 codes; nothing here is drawn by chance."""
        return super().call(codes)

    @property
    def vectors(self) -> np.ndarray:
        """[num_ids, dim] float32: every id's vector, by code."""
        return self.embeddings.numpy()

    def save(self, ids: pa.Array, folder: Path, taste: float, bias: np.ndarray) -> None:
        """Writes an item tower as a SavedModel: ids, [n] string -> {"embedding": [n, dim + 1] float32, "known": [n] bool}.

        Args:
          ids: [num_ids] string, by code.
          folder: a local folder.
          taste: the factor of the vectors.
          bias: [num_ids] float32, the last dimension.
        """
        save_served(lambda scratch: ServedVectors(ids, lift_items(self.vectors, taste, bias), scratch), folder)


class ServedVectors(tf.Module):
    """Gives the vectors of ids; an unknown one has the zero vector."""

    def __init__(self, ids: pa.Array, vectors: np.ndarray, scratch: Path) -> None:
        super().__init__()
        self.ids = ServedIds(ids, scratch)
        self.vectors = tf.Variable(vectors, trainable=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="ids")])
    def embed(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        codes = self.ids.codes_of(ids)
        known = codes >= 0
        vectors = tf.gather(self.vectors, tf.maximum(codes, 0))
        return {"embedding": tf.where(known[:, tf.newaxis], vectors, 0.0), "known": known}


def negatives(users: tf.Tensor, items: tf.Tensor, more: tf.Tensor) -> tf.Tensor:
    """Tells which candidates each user of a batch is scored against.

    Those are its own item and all that are other items, except those of the batch that are the same user's: the same item
    again is an accidental hit, and what the same user has elsewhere in the batch is a positive too.

    Args:
      users: [batch] int32 codes.
      items: [batch] int32 codes: the first candidates.
      more: [m] int32 codes: candidates that come after the batch's own.

    Returns:
      [batch, batch + m] bool.
    """
    same_user = users[:, tf.newaxis] == users[tf.newaxis, :]
    same_item = items[:, tf.newaxis] == tf.concat([items, more], axis=0)[tf.newaxis, :]
    same_user = tf.pad(same_user, [[0, 0], [0, tf.shape(more)[0]]])
    return tf.linalg.set_diag(~(same_user | same_item), tf.ones_like(users, tf.bool))


def mixed_log_probability(log_probability: tf.Tensor, batch_size: tf.Tensor, num_uniform: int, num_items: int) -> tf.Tensor:
    """Returns how likely a random candidate is each of some items, where some candidates are training rows' items and the rest
    are uniform from the catalogue (mixed negative sampling: Yang et al. 2020); in log space, where no item is too rare.

    Args:
      log_probability: [n] float32, how likely a random training row has the item.
      batch_size: candidates that are training rows' items.
      num_uniform: candidates that are uniform.
      num_items: of the catalogue.

    Returns:
      [n] float32, logarithms.
    """
    if not num_uniform:
        return log_probability
    from_rows = log_probability + tf.math.log(tf.cast(batch_size, tf.float32))
    uniform = tf.fill(tf.shape(from_rows), math.log(num_uniform) - math.log(num_items))
    return tf.reduce_logsumexp([from_rows, uniform], axis=0) - tf.math.log(tf.cast(batch_size + num_uniform, tf.float32))


class TwoTowers(tfrs.Model):
    """A user tower and an item tower, trained with TFRS's retrieval task.

    Args:
      user_tower: Batch -> [batch, dim] float32.
      item_tower: [batch] int32 codes, [2] int32 draw -> [batch, dim] float32.
      log_probability: [num_items] float32, how likely a random training row has the item.
      mixed_negatives: how many candidates, uniform from all items, are added to each batch's own.
      seed: of what is drawn by chance.
      bias: [num_items] float32, what is added to every score of the item; None adds nothing.
    """

    def __init__(
        self,
        user_tower: tf.keras.layers.Layer,
        item_tower: tf.keras.layers.Layer,
        log_probability: np.ndarray,
        mixed_negatives: int = 0,
        seed: int = 0,
        bias: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.user_tower = user_tower
        self.item_tower = item_tower
        self._log_probability = tf.constant(log_probability, tf.float32)
        self._bias = tf.constant(np.zeros(len(log_probability)) if bias is None else bias, tf.float32)
        self._mixed_negatives = mixed_negatives
        self._seed = seed
        # A mean, where TFRS's default is a sum: neither the learning rate nor the L2 term then depends on the batch size.
        self._task = tfrs.tasks.Retrieval(
            loss=tf.keras.losses.CategoricalCrossentropy(from_logits=True, reduction="sum_over_batch_size")
        )

    def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
        """Returns the softmax loss of a batch; the towers' L2 terms are in `losses`.

        Args:
          inputs: the batch.
          training: changes nothing here.
        """
        users, items, _, draw = inputs
        num_items = self._log_probability.shape[0]
        # The user tower draws with the seed as it is, negatives with the next, the item tower with the one after.
        more = tf.random.stateless_uniform([self._mixed_negatives], tf.add(draw, [1, 0]), 0, num_items, tf.int32)
        codes = tf.concat([items, more], axis=0)
        queries = self.user_tower(inputs)
        candidates = self.item_tower(codes, tf.add(draw, [2, 0]))
        log_probability = mixed_log_probability(
            tf.gather(self._log_probability, codes), tf.shape(items)[0], self._mixed_negatives, num_items
        )
        offset = tf.gather(self._bias, codes) - log_probability
        return self._task(
            tf.concat([queries, tf.ones_like(queries[:, :1])], axis=1),
            tf.concat([candidates, offset[:, tf.newaxis]], axis=1),
            score_mask=negatives(users, items, more),
            compute_metrics=False,
            compute_batch_metrics=False,
        )

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)] * 3)
    def train_steps(self, users: tf.Tensor, items: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Trains on batch after batch without going back to Python.

        Args:
          users: [num_steps, batch] int32.
          items: likewise.
          rows: likewise, which rows of training they are.

        Returns:
          [num_steps] float32, the loss of each batch before the step on it, L2 terms included.
        """
        num_steps = tf.shape(users)[0]
        losses = tf.TensorArray(tf.float32, num_steps)
        for step in tf.range(num_steps):
            # The optimizer counts steps, and is in the checkpoint: a training that goes on draws what it would have drawn.
            draw = tf.stack([self._seed, tf.cast(self.optimizer.iterations, tf.int32)])
            batch = Batch(users[step], items[step], rows[step], draw)
            losses = losses.write(step, self.train_step(batch)["total_loss"])
        return losses.stack()
