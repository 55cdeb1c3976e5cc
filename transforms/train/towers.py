"""Two towers in TensorFlow Recommenders: a vector for each user and each item, whose inner product is the score.

The loss is that of a softmax over the catalogue: the items that a user rated against all items, estimated from candidates that
are drawn anew at each step and shared by all its users. See `transforms.train.shared_softmax` for the task. Candidates are the
items of random training rows, so items come up as often as they are popular, and the log of that is taken off their scores (the
logQ correction: Yi et al. 2019; where some more are uniform from the catalogue, of the mixture: Yang et al. 2020). It is
computed in log space, since TFRS's own correction clips probabilities at 1e-6.

An item's popularity is a bias of its score, not learned but counted, so vectors only say how tastes differ from the average,
and L2 draws users and items that little is known of towards what is popular. What is served has the bias as its last dimension:
see `transforms.train.recency`.

Training works on codes; what `save` writes works on ids and needs nothing but TensorFlow.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_recommenders as tfrs

from transforms.train.recency import lift_items
from transforms.train.served_ids import ServedIds, save_served
from transforms.train.shared_softmax import SharedSoftmax
from transforms.train.spectral import Start

SELDOM_RATE = 6.0
"""How much faster than items the vectors of users learn: all that a user rated comes up in a few steps of an epoch."""


class SparseAdam(tf.keras.optimizers.Adam):
    """Adam (Kingma and Ba 2015) that touches only the rows of an embedding that are in the batch.

    Keras decays the moments of every row at every step, so that a step takes as long as the vocabulary is large. Here the
    moments of a row stand still while it is away ("lazy" Adam). They are short: what a row's gradient was the last time says
    little of what it is now. The learning rate falls in a straight line, to nothing after the last step.

    Args:
      learning_rate: of the first step.
      num_steps: how many there will be.
      seldom: variables whose rows come up seldom, each time with many ratings: they learn `SELDOM_RATE` times as fast.
    """

    def __init__(self, learning_rate: float, num_steps: int, seldom: Sequence[tf.Variable] = ()) -> None:
        falling = tf.keras.optimizers.schedules.PolynomialDecay(learning_rate, num_steps, end_learning_rate=0.0)
        super().__init__(falling, beta_1=0.5, beta_2=0.99)
        self._seldom = {variable.ref() for variable in seldom}

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates the rows in `gradient`, which Keras has made unique; all of a variable whose gradient is not sparse."""
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        slot = self._index_dict[self._var_key(variable)]
        first, second = self._momentums[slot], self._velocities[slot]
        step = tf.cast(self.iterations + 1, tf.float32)
        rate = self.learning_rate * (SELDOM_RATE if variable.ref() in self._seldom else 1.0)
        rate *= tf.sqrt(1 - tf.pow(self.beta_2, step)) / (1 - tf.pow(self.beta_1, step))
        rows, values = gradient.indices, gradient.values
        mean = self.beta_1 * tf.gather(first, rows) + (1 - self.beta_1) * values
        square = self.beta_2 * tf.gather(second, rows) + (1 - self.beta_2) * tf.square(values)
        first.scatter_update(tf.IndexedSlices(mean, rows))
        second.scatter_update(tf.IndexedSlices(square, rows))
        variable.scatter_sub(tf.IndexedSlices(rate * mean / (tf.sqrt(square) + self.epsilon), rows))


def first_vectors(seed: int) -> tf.keras.initializers.Initializer:
    """Returns what vectors begin as: uniform in +-0.05."""
    return tf.keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)


class Batch(NamedTuple):
    """What a step learns from: some users, each with some of the items that it rated.

    Attributes:
      users: [batch] int32 codes.
      items: [n] int32 codes: what they rated.
      whose: [n] int32, ascending: which of `users` each is of.
      rows: [n] int32: which rows of training they are.
      candidates: [num_candidates] int32 codes: items of random training rows.
      draw: [2] int32: the seed of whatever a tower draws by chance for them.
    """

    users: tf.Tensor
    items: tf.Tensor
    whose: tf.Tensor
    rows: tf.Tensor
    candidates: tf.Tensor
    draw: tf.Tensor


class IdTower(tf.keras.layers.Embedding):
    """A vector of its own for each id that training saw.

    Args:
      num_ids: codes are 0 to num_ids - 1.
      dim: of the vectors.
      seed: of the first vectors, where nothing else is said.
    """

    def __init__(self, num_ids: int, dim: int, seed: int) -> None:
        super().__init__(num_ids, dim, embeddings_initializer=first_vectors(seed))
        self.build(None)

    def begin(self, start: Start) -> None:
        """Begins with the vectors of items."""
        self.embeddings.assign(start.items)

    def call(self, codes: tf.Tensor, draw: tf.Tensor | None = None) -> tf.Tensor:
        """Returns [batch, dim] float32 for [batch] int32 codes; nothing here is drawn by chance."""
        return super().call(codes)

    @property
    def vectors(self) -> np.ndarray:
        """[num_ids, dim] float32: every id's vector, by code."""
        return self.embeddings.numpy()

    def save(self, ids: pa.Array, folder: Path, affinity_weight: float, bias: np.ndarray) -> None:
        """Writes an item tower as a SavedModel: ids, [n] string -> {"embedding": [n, dim + 1] float32, "known": [n] bool}.

        Args:
          ids: [num_ids] string, by code.
          folder: a local folder.
          affinity_weight: the factor of the vectors.
          bias: [num_ids] float32, the last dimension.
        """
        save_served(lambda scratch: ServedVectors(ids, lift_items(self.vectors, affinity_weight, bias), scratch), folder)


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


def mixed_log_probability(log_probability: tf.Tensor, num_drawn: tf.Tensor, num_uniform: int, num_items: int) -> tf.Tensor:
    """Returns how likely a random candidate is each of some items, where some candidates are training rows' items and the rest
    are uniform from the catalogue (mixed negative sampling: Yang et al. 2020); in log space, where no item is too rare.

    Args:
      log_probability: [n] float32, how likely a random training row has the item.
      num_drawn: candidates that are training rows' items.
      num_uniform: candidates that are uniform.
      num_items: of the catalogue.

    Returns:
      [n] float32, logarithms.
    """
    if not num_uniform:
        return log_probability
    from_rows = log_probability + tf.math.log(tf.cast(num_drawn, tf.float32))
    uniform = tf.fill(tf.shape(from_rows), math.log(num_uniform) - math.log(num_items))
    return tf.reduce_logsumexp([from_rows, uniform], axis=0) - tf.math.log(tf.cast(num_drawn + num_uniform, tf.float32))


class TwoTowers(tfrs.Model):
    """A user tower and an item tower, trained with a task of TFRS's kind.

    Args:
      user_tower: Batch -> [batch, dim] float32.
      item_tower: [n] int32 codes, [2] int32 draw -> [n, dim] float32.
      log_probability: [num_items] float32, how likely a random training row has the item.
      mixed_negatives: how many candidates, uniform from all items, are added to those of each step.
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
        self.l2 = tf.Variable(0.0, trainable=False)
        """Adds l2 / 2 times the mean squared length of the vectors, over a step's ratings, to the loss."""
        self._log_probability = tf.constant(log_probability, tf.float32)
        self._bias = tf.constant(np.zeros(len(log_probability)) if bias is None else bias, tf.float32)
        self._mixed_negatives = mixed_negatives
        self._seed = seed
        self._task = SharedSoftmax()

    def compute_loss(self, inputs: Batch, training: bool = False) -> tf.Tensor:
        """Returns the loss of a batch, the L2 penalty included.

        Args:
          inputs: the batch.
          training: changes nothing here.
        """
        num_items, num_rated = self._log_probability.shape[0], tf.shape(inputs.items)[0]
        # The user tower draws with the seed as it is, negatives with the next, the item tower with the one after.
        more = tf.random.stateless_uniform([self._mixed_negatives], tf.add(inputs.draw, [1, 0]), 0, num_items, tf.int32)
        shared = tf.concat([inputs.candidates, more], axis=0)
        # One look-up for what was rated and for the candidates, so that each row of a table is updated once.
        vectors = self.item_tower(tf.concat([inputs.items, shared], axis=0), tf.add(inputs.draw, [2, 0]))
        rated, candidates = tf.split(vectors, [num_rated, tf.shape(shared)[0]])
        queries = self.user_tower(inputs)
        probabilities = mixed_log_probability(
            tf.gather(self._log_probability, tf.concat([inputs.items, shared], axis=0)),
            tf.shape(inputs.candidates)[0],
            self._mixed_negatives,
            num_items,
        )
        of_rated, of_candidates = tf.split(probabilities, [num_rated, tf.shape(shared)[0]])
        loss = self._task(
            queries,
            rated,
            inputs.whose,
            candidates,
            rated_bias=tf.gather(self._bias, inputs.items),
            candidate_bias=tf.gather(self._bias, shared),
            rated_log_probability=of_rated,
            candidate_log_probability=of_candidates,
        )
        num_each = tf.math.segment_sum(tf.ones_like(inputs.whose, tf.float32), inputs.whose)
        squares = tf.reduce_sum(tf.square(rated)) + tf.reduce_sum(num_each[:, tf.newaxis] * tf.square(queries))
        return loss + self.l2 / 2 * squares / tf.cast(num_rated, tf.float32)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.int32),
            *[tf.TensorSpec([None], tf.int32)] * 4,
            tf.TensorSpec([None, None], tf.int32),
        ]
    )
    def train_steps(
        self,
        users: tf.Tensor,
        items: tf.Tensor,
        whose: tf.Tensor,
        rows: tf.Tensor,
        bounds: tf.Tensor,
        candidates: tf.Tensor,
    ) -> tf.Tensor:
        """Trains on batch after batch without going back to Python.

        Args:
          users: [num_steps, batch] int32, see Batch.
          items: [n] int32, of all steps.
          whose: [n] int32.
          rows: [n] int32.
          bounds: [num_steps + 1] int32: where among them each step begins.
          candidates: [num_steps, num_candidates] int32.

        Returns:
          [num_steps] float32, the loss of each batch before the step on it, L2 terms included.
        """
        num_steps = tf.shape(users)[0]
        losses = tf.TensorArray(tf.float32, num_steps)
        for step in tf.range(num_steps):
            # The optimizer counts steps, and is in the checkpoint: a training that goes on draws what it would have drawn.
            draw = tf.stack([self._seed, tf.cast(self.optimizer.iterations, tf.int32)])
            here = slice(bounds[step], bounds[step + 1])
            batch = Batch(users[step], items[here], whose[here], rows[here], candidates[step], draw)
            losses = losses.write(step, self.train_step(batch)["total_loss"])
        return losses.stack()
