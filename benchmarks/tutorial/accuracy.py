"""Row 1: the tutorial's model as published, and Shortlist's on the same rows, by how often a test row's item is listed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_recommenders as tfrs

from benchmarks.tutorial import published
from benchmarks.tutorial.figures import Figure
from benchmarks.tutorial.job import run_job, write_training_rows
from benchmarks.tutorial.model import TutorialModel, batches
from benchmarks.tutorial.ratings import Ratings


def train_model(ratings: Ratings, epochs: int = published.EPOCHS) -> TutorialModel:
    """Trains the tutorial's model on the training rows."""
    model = TutorialModel(ratings)
    model.fit(batches(ratings, ratings.train, published.BATCH_SIZE), epochs=epochs, verbose=0)
    return model


def measure_model(ratings: Ratings, model: TutorialModel) -> Iterator[Figure]:
    """Row 1: the accuracies of both models, as the tutorial counts them and as lists are served.

    The tutorial lets every list hold what its user has seen in training. A model that has learnt its training rows is punished
    for it: the better it ranks them, the less room they leave for a test row's item. Served lists leave them out.
    """
    users, items = model.vectors(ratings)
    layer = tfrs.layers.factorized_top_k.BruteForce().index(items)
    model.judge_with(layer)
    as_published = model.accuracy(batches(ratings, ratings.test, published.EVALUATION_BATCH_SIZE))
    user, item = ratings.user[ratings.test], ratings.item[ratings.test]
    with tempfile.TemporaryDirectory(prefix="shortlist-") as scratch:
        train = write_training_rows(ratings, Path(scratch))
        with_seen = run_job(ratings, train, scratch, "--recommend_seen").lists
        unseen = run_job(ratings, train, scratch).lists
    shortlist = accuracy_of(with_seen[user], item)
    for k, claimed in published.ACCURACY.items():
        yield Figure(1, f"top-{k} accuracy", "", claimed, as_published[k], shortlist[k])
    tutorial = accuracy_of(unseen_lists(users, items, ratings)[user], item)
    shortlist = accuracy_of(unseen[user], item)
    for k in published.ACCURACY:
        yield Figure(1, f"top-{k} accuracy, what was seen left out", "", None, tutorial[k], shortlist[k])


def unseen_lists(users: np.ndarray, items: np.ndarray, ratings: Ratings) -> np.ndarray:
    """Returns [num_users, 100] codes: the best items for each user, by brute force, but for those of its training rows.

    Args:
      users: [num_users, dim] float32.
      items: [num_items, dim] float32.
      ratings: whose training rows to leave out.
    """
    scores = users @ items.T
    scores[ratings.user[ratings.train], ratings.item[ratings.train]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : max(published.ACCURACY)]
    return np.where(np.take_along_axis(scores, order, axis=1) == -np.inf, -1, order)


def accuracy_of(lists: np.ndarray, item: np.ndarray) -> dict[int, float]:
    """Returns the share of rows whose item is among the first so many of their list, by that number.

    It is what `tfrs.metrics.FactorizedTopK` counts.

    Args:
      lists: [num_rows, at least 100] codes, best first; -1 where there is none.
      item: [num_rows] codes.
    """
    hits = lists == item[:, np.newaxis]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in published.ACCURACY}
