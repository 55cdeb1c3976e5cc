"""A retrieval task beside TFRS's own: the softmax of users over candidates that all of them share.

In `tfrs.tasks.Retrieval` every rating is a row of its own with its batch for candidates, so a user with a hundred ratings asks
the same question a hundred times. Here a user asks once, and all its items of the step learn from the answer:

    loss = mean over the ratings of   log (Z(u) + exp(score(u, i) - log q(i)) / C)  -  score(u, i)
    Z(u) = mean over C candidates c of   exp(score(u, c) - log q(c))

where q(c) is how likely a candidate is drawn. Z(u) estimates by importance sampling the sum over the whole catalogue, so this
is the negative log-likelihood of what was rated under a softmax over all items (the multinomial likelihood of Liang et al.
2018, "Variational autoencoders for collaborative filtering"), but for one term: an item is among its own candidates, as it is
in TFRS's task. That leaves alone what is far above the others already, and matters to the top of a list. The more candidates
there are, the less the term counts.
"""

from collections.abc import Callable

import tensorflow as tf
from tensorflow_recommenders.tasks import base


@tf.custom_gradient
def log_normalizers(
    queries: tf.Tensor, candidates: tf.Tensor, offsets: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, None]]]:
    """Returns log sum over c of exp(<query, candidate c> + offset c), for each query.

    The weights of the softmax are computed once, and serve the gradient; offsets are taken as constants.

    Args:
      queries: [batch, dim] float32.
      candidates: [num_candidates, dim] float32.
      offsets: [num_candidates] float32.

    Returns:
      [batch] float32.
    """
    logits = tf.matmul(queries, candidates, transpose_b=True) + offsets
    most = tf.reduce_max(logits, axis=1, keepdims=True)
    weights = tf.exp(logits - most)
    totals = tf.reduce_sum(weights, axis=1, keepdims=True)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None]:
        # A gather hands back only the rows that it took.
        scale = tf.convert_to_tensor(upstream)[:, tf.newaxis] / totals
        return scale * tf.matmul(weights, candidates), tf.matmul(weights, scale * queries, transpose_a=True), None

    return tf.squeeze(tf.math.log(totals) + most, axis=1), gradient


class SharedSoftmax(tf.keras.layers.Layer, base.Task):
    """The task: see the module."""

    def call(
        self,
        queries: tf.Tensor,
        rated: tf.Tensor,
        whose: tf.Tensor,
        candidates: tf.Tensor,
        *,
        rated_bias: tf.Tensor,
        candidate_bias: tf.Tensor,
        rated_log_probability: tf.Tensor,
        candidate_log_probability: tf.Tensor,
    ) -> tf.Tensor:
        """Returns the mean loss over the ratings.

        Args:
          queries: [batch, dim] float32, of users.
          rated: [n, dim] float32: items that they rated.
          whose: [n] int32, ascending: which of the users each is of; each has one at least.
          candidates: [num_candidates, dim] float32.
          rated_bias: [n] float32: added to the scores of what was rated.
          candidate_bias: [num_candidates] float32: likewise of candidates.
          rated_log_probability: [n] float32: how likely a random candidate is each of the rated items.
          candidate_log_probability: [num_candidates] float32: likewise of the candidates.
        """
        count = tf.math.log(tf.cast(tf.shape(candidates)[0], tf.float32))
        normalizers = log_normalizers(queries, candidates, candidate_bias - candidate_log_probability) - count
        scores = tf.reduce_sum(tf.gather(queries, whose) * rated, axis=1) + rated_bias
        own = scores - rated_log_probability - count
        others = tf.gather(normalizers, whose)
        return tf.reduce_mean(others + tf.math.softplus(own - others) - scores)
